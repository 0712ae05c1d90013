"""The page on runs: complete, honest, safe to open, and whole when a run is not."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from aqa_cli.main import cli
from click.testing import CliRunner

from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import ExtractConfig, FitConfig, HeadConfig
from aqa_pipeline.errors import DataError
from aqa_pipeline.extraction.extract import extract
from aqa_pipeline.extraction.plan import plan_extraction
from aqa_pipeline.project import Project
from aqa_pipeline.report.page import write_report
from aqa_pipeline.training.fit import fit_head
from tests.support.small_project import fake_backbone, make_project
from tests.training.test_fit import make_cache

EVIL = "<script>alert(1)</script>"
SMALL = HeadConfig(hidden=8, reduced_dim=4, num_groups=4)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def fit_run(root: Path, name: str, *, head: HeadConfig = SMALL, **fit: object) -> Path:
    """A run of a few epochs on features without videos; its names try to break out."""
    clips = 40
    manifest, cache = make_cache(
        root,
        clips=clips,
        clip_id=[f"{EVIL} {i}" for i in range(clips)],
        category=[(EVIL, "plain")[i % 2] for i in range(clips)],
        split=["test" if i % 4 < 2 else "train" for i in range(clips)],
    )
    folder = root / "runs" / name
    config = {"epochs": 2, "num_seeds": 2, "batch_size": 8, **fit}
    fit_head(
        manifest,
        cache,
        folder,
        head_config=head,
        fit_config=FitConfig(**config),  # type: ignore[arg-type]
        device=torch.device("cpu"),
    )
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("project")
    fit_run(root, "core")
    return Project(root=root)


def report(project: Project, *folders: Path, out: Path) -> Page:
    write_report(folders, out, project=project)
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return report(project, project.runs / "core", out=out)


def test_the_page_says_the_runs_numbers_and_how_the_epoch_was_chosen(
    page: Page, project: Project
) -> None:
    metrics = json.loads((project.runs / "core" / "metrics.json").read_text())
    rho = metrics["heads"]["rho"]
    assert f"{rho['mean']:.4f}".replace("-", "−") in page.said
    low, high = (f"{v:.4f}".replace("-", "−") for v in rho["interval_95"])
    assert f"{low} to {high}" in page.said
    assert f"{100 * metrics['ensemble']['relative_l2']:.4f}" in page.said
    assert f"Protocol: {metrics['selection']}" in page.said
    assert f"Metrics on the test split: {metrics['selection']}" in page.said
    config = json.loads((project.runs / "core" / "config.json").read_text())
    assert config["cache"]["fingerprint_sha256"] in page.said
    assert config["versions"]["torch"] in page.said


def test_the_page_has_every_figure(page: Page) -> None:
    for title in (
        "Prediction against score", "Cumulative score", "Residuals by difficulty",
        "Residuals by category", "Training loss", "Choosing the epoch", "Spread of the votes",
        "Training pairs per group", "Tree path",
    ):  # fmt: skip
        assert title in page.said
    assert [title in page.said for title in ("Best clip", "Median clip", "Worst clip")] == [
        True
    ] * 3
    assert len(page.all("svg")) == 8 + 3
    assert "No pictures: the video of" in page.said


def test_the_page_needs_and_runs_nothing(page: Page) -> None:
    assert not page.open
    assert not page.all("script")
    assert EVIL in page.said
    assert not page.all("link")
    sources = [img["src"] or "" for img in page.all("img")]
    assert all(source.startswith("data:") for source in sources)
    policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none';")
    assert not re.search(r"on\w+=", page.text.split("</style>")[1].split("<svg")[0])
    outside = re.findall(r'(?:href|src)="(?!#|data:)[^"]*"', page.text)
    assert outside == []


def test_the_page_is_sound_html(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(a.get("href") or "")[1:] for a in page.all("a")}
    assert targets <= set(ids)
    assert all(svg.get("aria-label") for svg in page.all("svg"))
    assert len(page.all("h1")) == 1


def test_votes_of_a_case_average_to_its_head(page: Page, project: Project) -> None:
    told = re.findall(r"All (\d+) votes of the first head, together ([\d.−]+) points", page.said)
    tables = page.text.split('aria-label="Votes"')[1:]
    assert len(told) == len(tables) == 3
    for (count, mean), table in zip(told, tables, strict=True):
        cells = re.findall(r"<td>([\d.−]+)</td></tr>", table.split("</table>")[0])
        votes = [float(cell.replace("−", "-")) for cell in cells]
        assert len(votes) == int(count)
        assert sum(votes) / len(votes) == pytest.approx(float(mean.replace("−", "-")), abs=0.011)


def copy_of(run: Path, root: Path, *without: str) -> Path:
    folder = root / "run"
    shutil.copytree(run, folder)
    for name in without:
        (folder / name).unlink()
    return folder


def test_what_a_run_does_not_have_is_left_out(project: Project, tmp_path: Path) -> None:
    bare = copy_of(
        project.runs / "core", tmp_path,
        "metrics.json", "history.csv", "predictions.csv", "head.safetensors", "exemplars.h5",
    )  # fmt: skip
    page = report(project, bare, out=tmp_path / "r.html")
    assert "There are no metrics yet." in page.said
    assert not page.all("svg")
    assert "Votes, groups and tree paths are left out" in page.said


def test_without_the_cache_the_rest_of_the_page_stays(project: Project, tmp_path: Path) -> None:
    elsewhere = Project(root=tmp_path)
    page = report(elsewhere, project.runs / "core", out=tmp_path / "r.html")
    assert "tree paths are left out" in page.said
    assert "made-up.csv: no such manifest" in page.said
    assert "Prediction against score" in page.said
    assert "Tree path" not in page.said


def test_a_direct_mlp_has_neither_votes_nor_a_tree(tmp_path: Path) -> None:
    head = HeadConfig(kind="mlp", mode="direct", hidden=8, reduced_dim=4)
    run = fit_run(tmp_path, "mlp", head=head, model_selection="test")
    page = report(Project(root=tmp_path), run, out=tmp_path / "r.html")
    assert "Best clip" in page.said
    assert "Metrics on the test split: best epoch chosen on the test set" in page.said
    for absent in ("Tree path", "votes", "per group", "left out"):
        assert absent not in page.said


def test_predictions_that_are_not_defined_are_not_drawn(project: Project, tmp_path: Path) -> None:
    diverged = copy_of(project.runs / "core", tmp_path)
    table = pd.read_csv(diverged / "predictions.csv")
    table.loc[0, "prediction"] = float("nan")
    table.to_csv(diverged / "predictions.csv", index=False)
    page = report(Project(root=tmp_path), diverged, out=tmp_path / "r.html")
    assert f"Scatter plot of {len(table) - 1} test clips" in page.text
    table.assign(prediction=float("nan")).to_csv(diverged / "predictions.csv", index=False)
    page = report(Project(root=tmp_path), diverged, out=tmp_path / "r.html")
    assert "Prediction against score" not in page.said
    assert "Training loss" in page.said


def test_several_runs_are_compared_and_folded_away(project: Project, tmp_path: Path) -> None:
    published = copy_of(project.runs / "core", tmp_path)
    metrics = json.loads((published / "metrics.json").read_text())
    metrics["selection"] = "best epoch chosen on the test set (as in the literature)"
    (published / "metrics.json").write_text(json.dumps(metrics))
    elsewhere = Project(root=tmp_path)  # no votes to be drawn: quicker
    page = report(elsewhere, project.runs / "core", published, out=tmp_path / "r.html")
    assert "2 runs" in page.said
    assert "the epochs were not all chosen alike" in page.said
    folded = [d for d in page.all("details") if d.get("class") == "run"]
    assert [d["id"] for d in folded] == ["run1", "run2"]
    assert all("open" not in d for d in folded)
    assert len(page.all("svg")) == 3 + 2 * 6
    assert {a["href"] for a in page.all("a")} == {"#run1", "#run2"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_folder_of_runs_shows_its_averages_and_its_parts(
    project: Project, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    for fold in (2, 10):
        shutil.copytree(project.runs / "core", parent / "dive" / f"fold{fold}")
    average = {"rho": 0.4321, "relative_l2": 0.01234}
    (parent / "metrics.json").write_text(
        json.dumps(
            {
                "method": "CoRe + GART",
                "selection": "chosen so",
                "rho_average": "Fisher z",
                "average": average,
                "categories": [{"category": EVIL, **average}],
                "parts": [],
            }
        )
    )
    page = report(Project(root=tmp_path), parent, out=tmp_path / "r.html")
    assert "Protocol: chosen so." in page.said
    assert "average 0.4321 1.2340" in page.said
    assert [a["href"] for a in page.all("a")] == ["#run1-1", "#run1-2"]
    names = re.findall(r'<a href="#run1-\d">([^<]*)</a>', page.text)
    assert names == ["dive/fold2", "dive/fold10"]


def test_what_is_no_run_is_one_sentence(project: Project, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run folder, it has no config\.json, nor has any"):
        report(project, tmp_path, out=tmp_path / "r.html")
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="format 'other', expected 'aqa-run'"):
        report(project, tmp_path, out=tmp_path / "r.html")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        report(project, tmp_path, out=tmp_path / "r.html")


def test_equal_runs_give_equal_pages(project: Project, page: Page, tmp_path: Path) -> None:
    again = report(project, project.runs / "core", out=tmp_path / "again.html")
    assert again.text == page.text


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose videos are there."""
    root = tmp_path_factory.mktemp("filmed")
    manifest = make_project(root, clips_per_video=8)
    plan = plan_extraction(
        manifest,
        cache_root=root / "cache",
        fingerprint=fingerprint_of(manifest.protocol, weights_sha256="00" * 32),
    )
    extract(plan, backbone=fake_backbone, config=ExtractConfig(workers=1))
    fit_head(
        manifest,
        FeatureCache.open(plan.folder),
        root / "runs" / "small",
        head_config=SMALL,
        fit_config=FitConfig(epochs=2, batch_size=4),
        device=torch.device("cpu"),
    )
    return Project(root=root)


def test_pictures_of_query_and_exemplar_stand_in_the_page(filmed: Project, tmp_path: Path) -> None:
    page = report(filmed, filmed.runs / "small", out=tmp_path / "r.html")
    pictures = page.all("img")
    assert len(pictures) == 3 * 2 * 4
    assert all((p["src"] or "").startswith("data:image/jpeg;base64,") for p in pictures)
    predictions = pd.read_csv(filmed.runs / "small" / "predictions.csv")
    for clip in predictions["clip_id"]:
        if f"query {clip}" in page.said:
            assert f"frame 1 of 4 of the query {clip}" in [p["alt"] for p in pictures]
    assert "frame 4 of 4 of the exemplar" in (pictures[-1]["alt"] or "")


def test_the_command_writes_beside_the_run_or_where_it_is_told(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / "aqa.toml").touch()
    monkeypatch.chdir(project.root)
    result = CliRunner().invoke(cli, ["report", "core", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["report"] == str(Path("runs/core/report.html"))
    metrics = json.loads((project.runs / "core" / "metrics.json").read_text())
    assert told["runs"][0]["rho"] == metrics["heads"]["rho"]["mean"]
    assert told["runs"][0]["selection"] == metrics["selection"]
    assert (project.runs / "core" / "report.html").exists()
    bad = CliRunner().invoke(cli, ["report", "core", "nobody", "--out", str(tmp_path / "x.html")])
    assert bad.exit_code == 4
    assert "not a run folder" in bad.stderr
    assert not (tmp_path / "x.html").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out_sideways_in_a_browser(page: Page, tmp_path: Path, width: int) -> None:
    opened = page.text.replace("<details", "<details open")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body><iframe width="{width}" height="900" srcdoc="{html.escape(opened)}"></iframe>'
        "<script>onload = () => { document.title = "
        "document.querySelector('iframe').contentDocument.documentElement.scrollWidth }</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\d+)</title>", done.stdout)
    assert found, done.stdout[:300]
    assert int(found[1]) <= width

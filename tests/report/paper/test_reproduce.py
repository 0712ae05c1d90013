"""Tables and figures of the paper on features that were made up, where nothing is learned."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from aqa_cli.main import cli
from click.testing import CliRunner

from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import HeadConfig, Protocol, ReproduceConfig
from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.manifest import Manifest, read_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.report.paper.figures import groups_at_depth
from aqa_pipeline.report.paper.reproduce import Reproduction, reproduce
from aqa_pipeline.report.paper.table import MeanStd, ResultTable
from tests.training.test_fit import PROTOCOL, make_cache

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ReproduceConfig(num_seeds=2, epochs=1)
SMALL = HeadConfig(hidden=16, reduced_dim=8)


def make(
    root: Path, what: str, manifest: Manifest, cache: FeatureCache, **options: Any
) -> Reproduction:
    config = options.pop("config", QUICK)
    return reproduce(
        what, manifest, cache, runs=root / "runs", config=config, head_config=SMALL,
        device=torch.device("cpu"), **options,
    )  # fmt: skip


def with_protocol(manifest: Manifest, **changes: Any) -> Manifest:
    protocol: Protocol = dataclasses.replace(PROTOCOL, **changes)
    write_protocol(manifest.path.with_suffix(".toml"), protocol)
    return read_manifest(manifest.path)


def test_table3_has_the_papers_numbers_beside_those_of_the_runs(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    made = make(tmp_path, "table3", manifest, cache)
    (table,) = made.tables
    folder = tmp_path / "runs" / "reproduce" / "table3-made-up"
    papers = {"I3D + MLP": (0.9381, 0.394), "I3D + GART": (0.9403, 0.366),
              "CoRe + GART": (0.9512, 0.260)}  # fmt: skip
    assert [row[0] for row in table.rows] == list(papers)
    for row, slug in zip(table.rows, ("i3d-mlp", "i3d-gart", "core-gart"), strict=True):
        metrics = json.loads((folder / slug / "metrics.json").read_text())
        assert metrics["method"] == row[0]
        heads = metrics["heads"]
        rho, relative = heads["rho"], heads["relative_l2"]
        assert (row[2], row[4]) == papers[str(row[0])]
        assert isinstance(row[3], MeanStd)
        assert isinstance(row[5], MeanStd)
        assert (row[3].mean, row[3].std) == pytest.approx((rho["mean"], rho["std"]))
        assert row[5].mean == pytest.approx(100 * relative["mean"])
        assert row[5].std == pytest.approx(100 * relative["std"])
    best_first = sorted(table.rows, key=lambda row: -row[3].mean)  # type: ignore[union-attr]
    order = ", ".join(str(row[0]) for row in best_first)
    assert f"order here, highest Sp. Corr. first: {order}" in made.notes
    notes = "\n".join(made.notes)
    assert "protocol: best epoch chosen on a validation part" in notes
    assert "I3D weights 000000000000, not those that `aqa weights fetch` fetches" in notes
    assert "of MTL-AQA; its numbers do not compare with those of made-up" in notes


def test_finished_runs_are_used_again_until_a_setting_or_a_score_changes(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)

    def fitted(manifest: Manifest = manifest, **options: Any) -> list[bool]:
        said: list[str] = []
        make(tmp_path, "table3", manifest, cache, log=said.append, **options)
        return ["as fitted before" not in sentence for sentence in said]

    assert fitted() == [True] * 3
    assert fitted() == [False] * 3
    # An interrupted run has no stamp; those before it are kept.
    (tmp_path / "runs/reproduce/table3-made-up/i3d-gart/reproduce.json").unlink()
    assert fitted() == [False, True, False]
    assert fitted(again=True) == [True] * 3
    assert fitted(config=dataclasses.replace(QUICK, epochs=2)) == [True] * 3
    clips = manifest.clips.assign(score=manifest.clips["score"] + 1)
    changed = dataclasses.replace(manifest, clips=clips)
    assert fitted(changed, config=dataclasses.replace(QUICK, epochs=2)) == [True] * 3


def test_test_set_model_selection_is_named(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    config = dataclasses.replace(QUICK, model_selection="test")
    made = make(tmp_path, "table3", manifest, cache, config=config)
    chosen = "protocol: best epoch chosen on the test set (as in the literature)"
    assert chosen in made.notes


def test_table2_runs_the_papers_own_rows_with_and_without_difficulty(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    without, with_dd = make(tmp_path, "table2", manifest, cache).tables
    assert (len(without.rows), len(with_dd.rows)) == (12, 4)
    for table, names in (
        (without, ["I3D + MLP*", "CoRe + GART*"]),
        (with_dd, ["I3D + MLP", "CoRe + GART"]),
    ):
        assert [row[0] for row in table.rows if isinstance(row[2], MeanStd)] == names
    folder = tmp_path / "runs/reproduce/table2-made-up"
    used = {
        path.parent.name: json.loads(path.read_text())["fit"]["use_difficulty"]
        for path in folder.glob("*/config.json")
    }
    assert used == {"i3d-mlp": True, "i3d-mlp-no-difficulty": False,
                    "core-gart": True, "core-gart-no-difficulty": False}  # fmt: skip


def test_table2_leaves_difficulty_out_where_the_protocol_does(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    manifest = with_protocol(manifest, label_transform="none", exemplar_key=())
    made = make(tmp_path, "table2", manifest, cache)
    assert not any(isinstance(cell, MeanStd) for row in made.tables[1].rows for cell in row)
    assert any("methods with DD were not run" in note for note in made.notes)


def test_table1_has_a_head_and_a_column_for_each_category(tmp_path: Path) -> None:
    sport = ["gym_vault" if i % 3 else "curling" for i in range(60)]
    manifest, cache = make_cache(tmp_path, category=sport)
    rho, relative = make(tmp_path, "table1", manifest, cache).tables
    assert rho.columns == ("Method", "from", "Gym Vault", "curling", "Avg. Corr.", "Year")
    paper, here = rho.rows[-2:]
    assert (paper[:3], paper[4]) == (("CoRe + GART*", "paper", 0.7746), 0.8401)
    assert np.isnan(paper[3])  # type: ignore[arg-type]
    folder = tmp_path / "runs/reproduce/table1-made-up/core-gart-no-difficulty"
    for name, column in (("gym_vault", 2), ("curling", 3)):
        heads = json.loads((folder / name / "metrics.json").read_text())["heads"]
        assert here[column].mean == pytest.approx(heads["rho"]["mean"])  # type: ignore[union-attr]
    means = [here[column].mean for column in (2, 3)]  # type: ignore[union-attr]
    assert here[4].mean == pytest.approx(fisher_mean(means))  # type: ignore[union-attr]
    assert here[4].std is not None  # type: ignore[union-attr]
    assert [row[1] for row in relative.rows] == ["paper"] * 3 + ["here", "paper", "here"]


def test_table4_says_that_the_papers_numbers_are_not_available(tmp_path: Path) -> None:
    folds = {f"fold_{k}": ["test" if i % 5 == k else "train" for i in range(60)] for k in (1, 2)}
    columns: dict[str, Any] = {"category": ["Suturing", "Knot_Tying"] * 30, **folds}
    manifest, cache = make_cache(tmp_path, **columns)
    manifest = with_protocol(manifest, fold_columns=tuple(folds))
    rho, _ = make(tmp_path, "table4", manifest, cache).tables
    assert rho.columns == ("Method", "from", "KT", "S", "Avg. Corr.")
    assert rho.rows[0] == ("I3D + MLP*", "paper", *["not available"] * 3)
    folder = tmp_path / "runs/reproduce/table4-made-up/i3d-mlp-no-difficulty/Suturing"
    by_fold = [
        json.loads((folder / f"fold{k}" / "metrics.json").read_text())["heads"]["rho"]["mean"]
        for k in (1, 2)
    ]
    assert rho.rows[1][3].mean == pytest.approx(np.mean(by_fold))  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["table1", "table4"])
def test_a_data_set_without_categories_has_no_such_table(tmp_path: Path, what: str) -> None:
    manifest, cache = make_cache(tmp_path)
    with pytest.raises(DataError, match=f"{what} has a column for each category, and this data"):
        make(tmp_path, what, manifest, cache)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_every_figure_is_a_drawing_of_its_own_and_its_data(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    for what in ("fig4", "fig6", "fig7", "fig8"):
        made = make(tmp_path, what, manifest, cache)
        assert {path.suffix for path in made.files} == {".svg", ".csv"}
        assert all(path.parent == made.folder for path in made.files)
        for path in made.files:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".svg":
                assert ET.fromstring(text.split("\n", 1)[1]).get("width")
                assert "var(" not in text, "only browsers know CSS variables"
            else:
                assert read_csv(path)
        paper = f"the paper's numbers behind Fig. {what[-1]}: not available"
        assert paper in made.notes


def test_fig4_counts_each_ordered_pair_once_under_both_rules(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    (table,) = make(tmp_path, "fig4", manifest, cache).tables
    train = manifest.clips[manifest.clips["split"] == "train"]
    sizes = train["difficulty"].value_counts()
    pairs = int((sizes * (sizes - 1)).sum())
    uniform, mass = ([int(row[column]) for row in table.rows] for column in (2, 4))  # type: ignore[arg-type]
    assert sum(uniform) == sum(mass) == pairs
    assert np.std(mass) < np.std(uniform) / 2, "equal mass is what the rule is for"


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_fig5_sweeps_depth_and_voters_and_says_how_depth_is_counted(
    tmp_path: Path, recipe: Any
) -> None:
    manifest, cache = make_cache(tmp_path)
    config = dataclasses.replace(QUICK, num_seeds=1, recipe=recipe)
    made = make(tmp_path, "fig5", manifest, cache, config=config)
    depth, voters = made.tables
    factor = 2 if recipe == "paper" else 1
    assert [row[:3] for row in depth.rows] == [
        (str(d), str(factor * 2 ** (d - 1)), "not available") for d in range(2, 8)
    ]
    assert [row[0] for row in voters.rows] == ["1", "2", "5", "10", "20", "all"]
    # Ten exemplars, drawn as in the run: the run's own number.
    assert voters.rows[3][2].mean == pytest.approx(depth.rows[3][3].mean)  # type: ignore[union-attr]
    exact = "2^d groups, as in the paper's text" if recipe == "paper" else "2^(d-1) groups"
    assert any(f"depth d has {exact}" in note for note in made.notes)
    assert groups_at_depth(5, "paper") == 32


def test_fig7_ends_where_every_clip_is_within_the_threshold(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    made = make(tmp_path, "fig7", manifest, cache)
    table = pd.read_csv(made.folder / "fig7.csv")
    for name, slug in (("I3D + MLP*", "i3d-mlp-no-difficulty"), ("CoRe + GART", "core-gart")):
        own = table[table["method"] == name]
        predicted = pd.read_csv(made.folder / slug / "predictions.csv")
        errors = (predicted["prediction"] - predicted["score"]).abs()
        assert own["threshold_points"].max() == pytest.approx(errors.max())
        assert own["share"].max() == 1


def test_fig8_shows_the_pair_furthest_apart_and_the_closest(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    large, small = make(tmp_path, "fig8", manifest, cache).tables
    differences = [
        abs(float(re.search(r"difference (-?[\d.]+)", table.title)[1]))  # type: ignore[index]
        for table in (large, small)
    ]
    assert differences[0] > 10 > 1 > differences[1]
    steps = [row[2] for row in large.rows if isinstance(row[2], float)]
    assert float(np.prod(steps)) == pytest.approx(large.rows[len(steps) - 1][3])


def test_figures_of_a_data_set_with_categories_are_of_one(tmp_path: Path) -> None:
    sport = ["diving" if i % 3 else "archery" for i in range(60)]
    manifest, cache = make_cache(tmp_path, category=sport)
    manifest = with_protocol(manifest, per_category=True)
    made = make(tmp_path, "fig6", manifest, cache)
    assert "of the category diving, column split" in made.notes
    names = {row["clip_id"] for row in read_csv(made.folder / "fig6-core-gart.csv")}
    diving = manifest.clips[manifest.clips["category"] == "diving"]
    assert names == set(diving.loc[diving["split"] == "test", "clip_id"])


def test_an_unknown_figure_is_one_sentence(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    with pytest.raises(UsageError, match="'fig9' is no table or figure that can be made"):
        make(tmp_path, "fig9", manifest, cache)


def test_the_command_prints_the_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["reproduce", "table3", "--dataset", "made-up", "--epochs", "1", "--seeds", "2"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Table 3 of the paper, on made-up"
    row = r"^CoRe \+ GART +\+ CoRe +0\.9512 +-?0\.\d{4} ± 0\.\d{4} +0\.260 "
    assert re.search(row, done.stdout, re.MULTILINE)
    assert "3/3 CoRe + GART" in done.stderr
    assert "written: runs/reproduce/table3-made-up/table3.csv" in lines
    again = CliRunner().invoke(cli, [*arguments, "--json"])
    rows = json.loads(again.stdout)["sheets"][0]["rows"]
    assert rows[0]["Sp. Corr. paper"] == 0.9381
    assert set(rows[0]["Sp. Corr. here"]) == {"mean", "std"}
    refused = CliRunner().invoke(cli, ["reproduce", "table1", "--dataset", "made-up"])
    assert refused.exit_code == 4
    assert refused.stderr.count("\n") == 1


def test_a_table_as_text_csv_and_records() -> None:
    table = ResultTable("t", ("a", "b"), (("x", MeanStd(1.5, 0.25)), ("y", float("nan"))), {"b": 1})
    assert table.texts() == [["x", "1.5 ± 0.2"], ["y", "-"]]
    assert table.csv() == 'a,b,"b, standard deviation"\nx,1.5,0.25\ny,nan,\n'
    assert table.records()[0] == {"a": "x", "b": {"mean": 1.5, "std": 0.25}}

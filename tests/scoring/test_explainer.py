"""An explanation: true to the score it explains, whole as a page and as files."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import ClipError, UsageError
from aqa_pipeline.report.explanation import fragment, page, view_of
from aqa_pipeline.report.explanation_files import write_explanation
from aqa_pipeline.runs.config import RunConfig
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.explainer import Explainer, Explanation
from tests.report.test_page import Page
from tests.support.explained import PROTOCOL, QUERY, explainer_of

EVIL = "<script>alert(1)</script>.mp4"


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explainer]:
    with explainer_of(tmp_path_factory.mktemp("project")) as found:
        yield found


@pytest.fixture(scope="module")
def explanation(explainer: Explainer) -> Explanation:
    return explainer.explain(query_of(explainer), ClipMetadata(difficulty=2.0))


def query_of(explainer: Explainer) -> str:
    return str(explainer.scorer.runs()[0].folder.parent.parent / QUERY)


def test_the_explained_score_is_the_scorers_own_to_the_bit(
    explainer: Explainer, explanation: Explanation
) -> None:
    scored = explainer.scorer.score(query_of(explainer), difficulty=2.0)
    assert explanation.scored.score == scored.score
    assert explanation.scored.exemplars == scored.exemplars
    np.testing.assert_array_equal(explanation.scored.features, scored.features)
    contributions = explanation.contributions
    assert contributions.score == pytest.approx(scored.score, abs=1e-4)
    total = contributions.baseline + contributions.points.sum()
    assert total == pytest.approx(contributions.score, abs=1e-9)


def test_frames_are_those_that_were_scored_only_larger(explanation: Explanation) -> None:
    from tests.support.videos import frame_numbers

    assert explanation.frames.shape == (18, 224, 224, 3)
    assert explanation.clip.frames.shape == (18, 112, 112, 3)
    assert frame_numbers(explanation.frames) == frame_numbers(explanation.clip.frames)
    assert explanation.frames_per_second == pytest.approx(25)
    assert explanation.heat.shape == (18, 4, 4)
    assert np.abs(explanation.heat).max() == 1


def test_exemplars_have_their_pictures_and_stand_on_both_sides(explanation: Explanation) -> None:
    first, *rest = explanation.exemplars
    assert first.is_nearest
    voters = {vote.clip_id for vote in explanation.scored.exemplars}
    by_hand = min(
        (d, name)
        for d, name in zip(explanation.distance, explanation.run.exemplars.clip_id, strict=True)
        if name in voters and d > 1e-3
    )
    assert (first.distance, first.clip_id) == by_hand
    assert first.frames is not None
    assert first.frames.shape == (18, 224, 224, 3)
    for other in rest:
        score = explanation.scored.score
        assert (other.score > score) != (first.score > score)


def test_without_manifest_or_video_a_sentence_stands_for_the_pictures(tmp_path: Path) -> None:
    with explainer_of(tmp_path) as explainer:
        (tmp_path / "videos" / "v0.mp4").unlink()
        (tmp_path / "videos" / "v1.mp4").unlink()
        lacking = explainer.explain(str(tmp_path / QUERY), ClipMetadata(difficulty=2.0))
        assert {one.without_frames for one in lacking.exemplars} == {"its video cannot be read"}
        (tmp_path / "manifests" / "small.csv").unlink()
        lacking = explainer.explain(str(tmp_path / QUERY), ClipMetadata(difficulty=2.0))
        assert "the manifest of 'small' cannot be read" in Page(page(view_of(lacking))).said
        files = write_explanation(lacking, tmp_path / "out")
        assert len(files) == 6


def test_the_page_says_everything_and_loads_nothing(explanation: Explanation) -> None:
    text = page(view_of(dataclasses.replace(explanation, name=EVIL)))
    seen = Page(text)
    assert seen.open == []
    assert EVIL in seen.said
    assert f"{explanation.scored.score:.2f}" in seen.said
    assert len(seen.all("video")) == 2 + len(explanation.exemplars)
    for source in [*seen.all("video"), *seen.all("img")]:
        assert str(source["src"]).startswith(("data:video/mp4;base64,", "data:image/jpeg;base64,"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    points = [f"{own:+.2f}".replace("-", "−") for own in explanation.contributions.points]
    assert [word for word in points if word in seen.said] == points
    for vote in explanation.scored.exemplars:
        assert vote.clip_id in seen.said


def test_equal_explanations_give_equal_pages(explanation: Explanation) -> None:
    assert page(view_of(explanation)) == page(view_of(explanation))
    ids = re.findall(r' id="([^"]+)"', fragment(view_of(explanation, key="job-7")))
    assert ids
    assert all(name.startswith("job-7-") for name in ids)


def test_files_are_pictures_and_films_of_the_right_size(
    explanation: Explanation, tmp_path: Path
) -> None:
    files = write_explanation(explanation, tmp_path / "new" / "folder")
    assert [path.name for path in files] == [
        "explain.html", "snippets.png", "heat-map.png", "heat-map.mp4", "side-by-side.mp4",
        "tree.png",
    ]  # fmt: skip
    sizes = {}
    for path in files[1:]:
        with av.open(io.BytesIO(path.read_bytes()), "r") as file:
            stream = file.streams.video[0]
            sizes[path.name] = (stream.width, stream.height, sum(1 for _ in file.decode(stream)))
    snippets = len(PROTOCOL.snippet_starts)
    assert sizes["heat-map.png"] == (224 * snippets, 448, 1)
    assert sizes["heat-map.mp4"] == (224, 224, 18)
    assert sizes["side-by-side.mp4"] == (3 * 224 + 16, 224, 18)


@pytest.mark.parametrize("config", [{"mode": "direct"}, {"kind": "mlp"}], ids=str)
def test_heads_without_votes_or_tree_are_explained_by_the_rest(
    tmp_path: Path, config: dict[str, str]
) -> None:
    with explainer_of(tmp_path, **config) as explainer:
        found = explainer.explain(str(tmp_path / QUERY), ClipMetadata(difficulty=2.5))
        said = Page(page(view_of(found))).said
        assert ("way through the tree" in said) == (found.path is not None)
        assert ("and their votes" in said) == bool(found.scored.exemplars)
        assert found.exemplars[0].frames is not None


def test_stages_are_told_and_what_is_missing_before_them(explainer: Explainer) -> None:
    stages: list[str] = []
    with pytest.raises(UsageError, match="scores by difficulty, which is not given"):
        explainer.explain(query_of(explainer), stage=stages.append)
    with pytest.raises(ClipError, match="no such video"):
        explainer.explain("gone.mp4", ClipMetadata(difficulty=2.0), stage=stages.append)
    assert stages == ["decoding"]
    explainer.explain(query_of(explainer), ClipMetadata(difficulty=2.0), stage=stages.append)
    assert stages[1:] == ["decoding", "network", "explaining"]


def test_over_folds_contributions_are_those_of_the_mean(tmp_path: Path) -> None:
    from aqa_pipeline.scoring.scorer import Scorer

    with explainer_of(tmp_path) as one:
        run = one.scorer.runs()[0]
        folds = [
            dataclasses.replace(run, config=RunConfig(dataset="small", part=Part(fold=k)))
            for k in (1, 2)
        ]
        encoder = one._encoder
        with Explainer(Scorer(folds, encoder), encoder, project=one._project) as both:
            single = one.explain(str(tmp_path / QUERY), ClipMetadata(difficulty=2.0))
            double = both.explain(str(tmp_path / QUERY), ClipMetadata(difficulty=2.0))
    np.testing.assert_allclose(double.contributions.points, single.contributions.points)
    np.testing.assert_allclose(double.cam, single.cam, rtol=1e-5)
    assert len(double.scored.exemplars) == 2 * len(single.scored.exemplars)


def test_a_run_folder_is_loaded_with_one_backbone_for_score_and_heat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the loading but the network itself, against ``Scorer.load``."""
    import torch

    from aqa_pipeline.backbone.encoder import Encoder
    from aqa_pipeline.project import Project
    from aqa_pipeline.runs.folder import write_run
    from aqa_pipeline.scoring.backbone import RunBackbone
    from aqa_pipeline.scoring.explainer import Explainer
    from tests.support.explained import Averages

    with explainer_of(tmp_path) as made:
        run = made.scorer.runs()[0]
        write_run(run, history=pd.DataFrame({"epoch": [1]}))
        expected = made.scorer.score(tmp_path / QUERY, difficulty=2.0)
    loaded = []

    def network(path: Path, protocol: Protocol, device: torch.device, *, precision: str) -> Any:
        loaded.append((path, precision))
        return Encoder.of(Averages(), protocol, device)  # type: ignore[arg-type]

    backbone = RunBackbone(tmp_path / "w", "float32")
    monkeypatch.setattr(
        "aqa_pipeline.scoring.explainer.find_backbone", lambda runs, weights, device: backbone
    )
    monkeypatch.setattr("aqa_pipeline.scoring.explainer.map_encoder", network)
    with Explainer.load(run.folder, project=Project(tmp_path), coverage=0.8) as explainer:
        found = explainer.explain(str(tmp_path / QUERY), ClipMetadata(difficulty=2.0))
    assert loaded == [(tmp_path / "w", "float32")]
    assert found.scored.score == expected.score
    assert found.scored.coverage == 0.8
    with pytest.raises(UsageError, match="coverage"):
        Explainer.load(run.folder, project=Project(tmp_path), coverage=1.5)

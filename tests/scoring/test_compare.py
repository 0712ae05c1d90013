from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import ClipError, UsageError
from aqa_pipeline.project import Project
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.batch import ScoreRequest
from aqa_pipeline.scoring.compare import compare, compare_clips, find_clip
from aqa_pipeline.scoring.scorer import Scorer
from tests.support.small_run import load_scorer, make_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    return make_run(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def scorer(made: tuple[Manifest, Path]) -> Iterator[Scorer]:
    with load_scorer(made[1]) as own:
        yield own


def features(first: float) -> npt.NDArray[np.float32]:
    return np.array([[first, first + 8, first + 4]], np.float32)


def test_the_two_orders_of_a_pair_agree(scorer: Scorer) -> None:
    a = scorer.score_features(features(10), ClipMetadata(difficulty=2.0))
    b = scorer.score_features(features(70), ClipMetadata(difficulty=2.0))
    one = compare(scorer.assessor(), a, b)
    other = compare(scorer.assessor(), b, a)
    assert one.difference == a.score - b.score == -other.difference
    assert one.probability is not None
    assert other.probability is not None
    assert one.probability + other.probability == pytest.approx(1)
    assert one.interval is not None
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert one.side_by_side is not None
    assert other.side_by_side == pytest.approx(-one.side_by_side)
    assert json.loads(json.dumps(one.as_dict()))["probability_a_is_better"] == one.probability


def test_a_clip_against_itself_is_a_tie(scorer: Scorer) -> None:
    a = scorer.score_features(features(10), ClipMetadata(difficulty=2.0))
    tie = compare(scorer.assessor(), a, a)
    assert tie.difference == 0
    assert tie.probability == pytest.approx(0.5)
    assert tie.side_by_side == 0


def test_clips_of_other_difficulties_are_compared_by_their_scores_alone(scorer: Scorer) -> None:
    a = scorer.score_features(features(10), ClipMetadata(difficulty=2.0))
    b = scorer.score_features(features(10), ClipMetadata(difficulty=2.5))
    result = compare(scorer.assessor(), a, b)
    assert result.side_by_side is None
    assert result.probability is not None


def test_a_name_is_a_video_or_a_clip_of_the_runs_manifest(
    made: tuple[Manifest, Path], scorer: Scorer, tmp_path: Path
) -> None:
    manifest, folder = made
    project = Project(root=folder.parent.parent)
    clip = find_clip(scorer, "v1_3", project=project)
    row = manifest.clips[manifest.clips["clip_id"] == "v1_3"].to_dict("records")[0]
    assert clip == ScoreRequest(
        name="v1_3",
        video=manifest.video_path(row["video"]),
        metadata=ClipMetadata(start_frame=15, end_frame=27, difficulty=2.5),
        known_score=row["score"],
    )
    given = ClipMetadata(difficulty=3.0, start_frame=4)
    found = find_clip(scorer, "v1_3", given, project=project)
    assert found.metadata == ClipMetadata(start_frame=4, end_frame=27, difficulty=3.0)
    path = str(manifest.video_path(row["video"]))
    found = find_clip(scorer, path, given, project=project)
    assert (found.metadata, found.known_score) == (given, None)
    with pytest.raises(ClipError, match=r"v9: no such video, and no clip of that id"):
        find_clip(scorer, "v9", project=project)
    with pytest.raises(ClipError, match=r"v9: no such video, and no manifest"):
        find_clip(scorer, "v9", project=Project(root=tmp_path))
    result = compare_clips(scorer, clip, find_clip(scorer, "v0_2", project=project))
    assert result.a.difficulty == 2.5
    assert result.b.difficulty == 2.0


def test_a_clip_that_cannot_be_read_ends_it(scorer: Scorer) -> None:
    clips = [
        ScoreRequest(name, Path(name), ClipMetadata(difficulty=2.0))
        for name in ("gone.mp4", "too.mp4")
    ]
    with pytest.raises(ClipError, match=r"gone\.mp4: no such video"):
        compare_clips(scorer, *clips)


def test_two_categories_are_not_compared(scorer: Scorer) -> None:
    a = scorer.score_features(features(10), ClipMetadata(category="dive", difficulty=2.0))
    b = scorer.score_features(features(10), ClipMetadata(category="vault", difficulty=2.0))
    with pytest.raises(UsageError, match="scales of their own"):
        compare(scorer.assessor(), a, b)

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
from aqa_pipeline.scoring.compare import RankingConfidence, compare, compare_clips, find_clip
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


@pytest.mark.parametrize("shrunk", [False, True])
def test_of_pairs_given_a_probability_that_share_turns_out_so(shrunk: bool) -> None:
    """Whether the predictor errs around the truth or the truth around the predictor."""
    rng = np.random.default_rng(1)
    one, noise = rng.normal(0, 3, 5000), 2 * rng.standard_t(4, 5000)
    truth, predicted = (one + noise, one) if shrunk else (one, one + noise)
    known = np.arange(600)
    confidence = RankingConfidence(truth[known], predicted[known], np.ones(600))
    a, b = rng.integers(600, 5000, size=(2, 8000))
    said = np.array(
        [confidence.probability(d, scale_a=1, scale_b=1) for d in predicted[a] - predicted[b]]
    )
    happened = truth[a] > truth[b]
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
        inside = (said >= low) & (said < high)
        assert inside.sum() > 700
        assert abs(happened[inside].mean() - said[inside].mean()) < 0.05


def test_the_two_orders_of_a_pair_sum_to_one_and_a_tie_is_a_half() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=60)
    confidence = RankingConfidence(truth, truth + rng.normal(size=60), rng.uniform(1, 3, 60))
    for difference in (0.0, 0.1, 1.0, 50.0):
        p = confidence.probability(difference, scale_a=2, scale_b=3)
        q = confidence.probability(-difference, scale_a=3, scale_b=2)
        assert p + q == pytest.approx(1)
    assert confidence.probability(0.0, scale_a=1, scale_b=1) == pytest.approx(0.5)


def test_it_rises_with_the_difference_and_is_never_certain() -> None:
    truth = np.arange(8.0)
    confidence = RankingConfidence(truth, truth, np.ones(8))
    said = [confidence.probability(d, scale_a=1, scale_b=1) for d in (-9, -1, 0, 1, 9)]
    assert said == sorted(said)
    assert said[-1] == pytest.approx(0.9)  # 1 - 1 / (8 + 2)


def test_a_difference_counts_less_where_a_point_is_worth_more() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=200)
    confidence = RankingConfidence(truth, truth + rng.normal(size=200), np.ones(200))
    small = confidence.probability(1.0, scale_a=1, scale_b=1)
    large = confidence.probability(1.0, scale_a=3, scale_b=3)
    assert 0.5 < large < small


def test_many_clips_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aqa_pipeline.scoring.compare._MOST_CLIPS", 10)
    truth = np.arange(25.0)
    assert RankingConfidence(truth, truth, np.ones(25)).probability(5, scale_a=1, scale_b=1) > 0.9

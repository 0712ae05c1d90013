from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, Protocol
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.runs.calibration import (
    Calibration,
    Intervals,
    held_out_clips,
    interval_sentence,
    measure_intervals,
    merged,
    read_calibration,
    write_calibration,
)
from aqa_pipeline.runs.conformal import coverage_spread
from aqa_pipeline.runs.evaluate import predict_clips
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.training.train import train_heads
from tests.support.planted import planted_clips

NAN = math.nan


def calibration(residuals: list[float], difficulty: list[float] | None = None) -> Calibration:
    """One head that predicts 0 for clips whose labels are the residuals."""
    count = len(residuals)
    scale = np.array(difficulty or [1.0] * count)
    return Calibration(
        clip_id=tuple(f"c{i}" for i in range(count)),
        score=np.array(residuals) * scale,
        scale=scale,
        difficulty=scale,
        per_head=np.zeros((1, count)),
    )


def test_a_clip_is_predicted_by_the_heads_that_held_it_out() -> None:
    train = planted_clips(5)
    found = held_out_clips(train, [[0, 2], [2, 4]], [[10.0, 20.0], [30.0, NAN]])
    assert found.clip_id == ("clip0", "clip2")
    np.testing.assert_array_equal(found.per_head, [[10, 20], [NAN, 30]])
    assert found.prediction.tolist() == [10, 25]
    expected = (train.score[[0, 2]] - [10, 25]) / train.scale[[0, 2]]
    np.testing.assert_array_equal(found.residual, expected)


def test_a_clip_that_three_heads_held_out_is_predicted_by_their_mean() -> None:
    found = held_out_clips(planted_clips(2), [[0], [0], [0]], [[1.0], [2.0], [9.0]])
    assert found.prediction.tolist() == [4.0]


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    train = planted_clips(7)
    clips = ("", "NA", "a,b", "c\nd", "e", "f", "g")
    written = held_out_clips(
        dataclasses.replace(train, clip_id=clips), [[0, 1, 2], [2, 3, 1]], np.random.rand(2, 3)
    )
    written = dataclasses.replace(written, difficulty=np.array([2.5, NAN, 3.0, 0.1 + 0.2]))
    write_calibration(tmp_path, written)
    read = read_calibration(tmp_path)
    assert read is not None
    assert read.clip_id == ("", "NA", "a,b", "c\nd")
    for name in ("score", "scale", "difficulty", "per_head"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


def test_nothing_held_out_leaves_no_file(tmp_path: Path) -> None:
    write_calibration(tmp_path, calibration([1.0]))
    write_calibration(tmp_path, None)
    assert read_calibration(tmp_path) is None


@pytest.mark.parametrize("text", ["clip_id\na\n", "", "clip_id,score,scale,difficulty\na,1,1,1\n"])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "calibration.csv").write_text(text)
    with pytest.raises(DataError, match=r"calibration.csv: .*train the head again"):
        read_calibration(tmp_path)


def test_over_folds_all_heads_that_did_not_know_a_clip_predict_it() -> None:
    a, b = calibration([1.0, 2.0]), calibration([2.0, 5.0])
    b = dataclasses.replace(b, clip_id=("c1", "c2"), per_head=np.array([[4.0, 7.0]]))
    both = merged([a, b])
    assert both.clip_id == ("c0", "c1", "c2")
    assert both.prediction.tolist() == [0, 2, 7]
    assert both.score.tolist() == [1, 2, 5]


def test_half_widths_grow_with_the_scale_and_groups_need_fifty_clips() -> None:
    difficulty = [2.0] * 50 + [3.0] * 49
    residuals = [1.0] * 50 + [10.0] * 49
    intervals = Intervals(calibration(residuals, difficulty), 0.9)
    own = intervals.half_width(scale=2.0, difficulty=2.0)
    assert (own.points, own.num_clips, own.difficulty) == (2.0, 50, 2.0)
    other = intervals.half_width(scale=3.0, difficulty=3.0)
    assert (other.points, other.num_clips, other.difficulty) == (30.0, 99, None)
    assert intervals.half_width(scale=1.0, difficulty=NAN).points == 10.0


def test_too_few_clips_give_no_interval() -> None:
    assert Intervals(calibration([1.0] * 8), 0.9).half_width(scale=1, difficulty=NAN).points == (
        math.inf
    )
    with pytest.raises(UsageError):
        Intervals(calibration([1.0]), 1.5)


def test_coverage_is_counted_on_known_scores() -> None:
    clips = dataclasses.replace(planted_clips(4), score=np.array([0, 1.0, 2, 9]))
    clips = dataclasses.replace(clips, scale=np.ones(4), difficulty=np.full(4, NAN))
    found = measure_intervals(calibration([1.5] * 20), clips, np.array([0.0, 0, 0, 9]))
    assert found is not None
    assert (found["inside"], found["num_test"], found["reached"]) == (3, 4, 0.75)
    assert found["mean_width"] == 3.0
    assert measure_intervals(None, clips, np.zeros(4)) is None
    assert measure_intervals(calibration([1.5] * 3), clips, np.zeros(4)) is None


def test_a_score_on_the_bound_is_inside_and_the_expected_range_is_of_both_counts() -> None:
    clips = dataclasses.replace(planted_clips(4), score=np.array([1.5, -1.5, 1.5001, 0]))
    clips = dataclasses.replace(clips, scale=np.ones(4), difficulty=np.full(4, NAN))
    found = measure_intervals(calibration([1.5] * 20), clips, np.zeros(4))
    assert found is not None
    assert found["inside"] == 3
    _, low, high = coverage_spread(num_residuals=20, num_clips=4, coverage=0.9)
    assert found["expected_95"] == [low, high]
    assert (low, high) != coverage_spread(num_residuals=4, num_clips=4, coverage=0.9)[1:]


def test_coverage_in_words() -> None:
    found = {"asked": 0.9, "inside": 61, "num_test": 64, "reached": 61 / 64, "mean_width": 48.52}
    assert interval_sentence(found) == (
        "90 % intervals: 61 of 64 test scores inside (95 %), 48.5 points wide on average"
    )
    assert "(95 %, 53 to 63 expected)" in interval_sentence({**found, "expected_95": [0.83, 0.98]})


@pytest.mark.usefixtures("one_thread")
def test_heads_fitted_on_many_synthetic_clips_keep_the_promise_within_one_in_a_hundred() -> None:
    """The whole way: train one head, calibrate on its validation part, count on new clips.

    3000 clips calibrate and 6000 are new, so that chance moves the coverage by 0.7 in a hundred
    (one standard deviation).
    """
    clips = planted_clips(15_000, noise=1.5, seed=4)
    train, new = clips.take(np.arange(9000)), clips.take(np.arange(9000, 15_000))
    config = FitConfig(
        epochs=3, batch_size=64, learning_rate=5e-3, validation_fraction=1 / 3, num_exemplars=5
    )
    trained = train_heads(
        train,
        head_config=HeadConfig(kind="mlp", hidden=16, reduced_dim=4),
        config=config,
        score_range=30.0,
        epsilon=30.0,
        device=torch.device("cpu"),
    )
    calibrated = held_out_clips(train, trained.validation_rows, trained.held_out_scores)
    run = Run(
        folder=Path("r"),
        head=trained.head,
        exemplars=train,
        protocol=Protocol(name="planted"),
        labels=LabelScale("raw"),
        fit_config=config,
    )
    found = measure_intervals(calibrated, new, predict_clips(run, new).score)
    assert found is not None
    assert found["calibrating_clips"] == 3000
    assert abs(found["reached"] - 0.9) < 0.01
    # Both difficulties have clips enough for an interval of their own.
    assert found["clips_with_own_difficulty"] == 6000

"""``metrics.json``: what is written comes back, and what is not there is not defined."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import DataError
from aqa_pipeline.runs.metrics import (
    Accuracy,
    AverageMetrics,
    Metrics,
    OverSeeds,
    read_metrics,
    write_metrics,
)


def metrics(rho: float) -> Metrics:
    spread = OverSeeds.of([rho, rho + 0.1], (rho - 0.2, rho + 0.2))
    return Metrics(
        method="CoRe + GART", selection="chosen so", relative_l2_range="evaluated set",
        seeds=(0, 1), num_train=9, num_test=3,
        heads={"rho": spread, "relative_l2": OverSeeds.of([0.1, 0.2]), "l2": OverSeeds.of([4.0])},
        ensemble=Accuracy(rho, 0.1), exemplars={"asked": None, "key": ["difficulty"]},
        best_relative_l2_of_any_epoch=(0.1, 0.2), difficulty_alone=Accuracy(0.2, 0.3),
    )  # fmt: skip


def test_metrics_come_back_from_their_file(tmp_path: Path) -> None:
    write_metrics(tmp_path, metrics(0.5))
    assert read_metrics(tmp_path) == metrics(0.5)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["heads"]["relative_l2_best_of_any_epoch"] == [0.1, 0.2]
    assert stored["heads"]["l2"]["std"] is None
    assert "intervals" not in stored


def test_metrics_as_one_line_and_as_a_table() -> None:
    own = metrics(0.5)
    assert (
        repr(own)
        == "Metrics(CoRe + GART: rho 0.5500 ± 0.0707, R-l2 x100 15.0000 ± 7.0711, 3 test clips)"
    )
    table = own.to_frame()
    assert list(table.index) == ["rho", "relative_l2", "l2"]
    assert table.loc["rho"].round(4).to_dict() == {
        "mean": 0.55, "std": 0.0707, "low_95": 0.3, "high_95": 0.7, "ensemble": 0.5,
        "difficulty_alone": 0.2, "seed0": 0.5, "seed1": 0.6,
    }  # fmt: skip
    assert table.loc["l2"].isna().to_dict() == {
        "mean": False, "std": True, "low_95": True, "high_95": True, "ensemble": True,
        "difficulty_alone": True, "seed0": False, "seed1": True,
    }  # fmt: skip


def test_averages_as_one_line_and_as_a_table() -> None:
    averages = AverageMetrics.of(
        [(Part("a"), metrics(0.2)), (Part("b"), metrics(0.4))], rho_average="mean"
    )
    assert repr(averages) == "AverageMetrics(CoRe + GART: rho 0.3500, R-l2 x100 15.0000, 2 parts)"
    assert averages.to_frame()[["category", "num_test"]].to_numpy().tolist() == [["a", 3], ["b", 3]]


def test_averages_come_back_from_their_file(tmp_path: Path) -> None:
    measured = [(Part("a", 1), metrics(0.2)), (Part("a", 2), metrics(0.4)), (Part("b"), metrics(0))]
    averages = AverageMetrics.of(measured, rho_average="mean")
    assert averages.categories["a"].rho == pytest.approx(0.35), "folds are averaged plainly"
    assert averages.average.rho == pytest.approx((0.35 + 0.05) / 2)
    write_metrics(tmp_path, averages)
    assert read_metrics(tmp_path) == averages


def part_of(*, relative_l2: float, rho: float = 0.5, intervals: Any = None) -> Metrics:
    return dataclasses.replace(
        metrics(0.5),
        heads={"rho": OverSeeds.of([rho]), "relative_l2": OverSeeds.of([relative_l2])},
        intervals=intervals,
    )


def test_categories_of_unequal_numbers_of_folds_weigh_the_same() -> None:
    folds = {"a": [0.2, 0.4], "b": [0.6, 0.6, 0.9]}
    measured = [
        (Part(name, fold), part_of(relative_l2=error))
        for name, errors in folds.items()
        for fold, error in enumerate(errors, start=1)
    ]
    averages = AverageMetrics.of(measured, rho_average="fisher")
    assert averages.categories["b"].relative_l2 == pytest.approx(0.7)
    # 0.5 of the two categories; 0.54 of the five parts.
    assert averages.average.relative_l2 == pytest.approx(0.5)


@pytest.mark.parametrize("rho_average", ["fisher", "mean"])
def test_a_part_that_is_not_defined_is_left_out_of_its_average(rho_average: Any) -> None:
    nan = math.nan
    measured = [
        (Part("a", 1), part_of(rho=0.4, relative_l2=0.2)),
        (Part("a", 2), part_of(rho=nan, relative_l2=nan)),
        (Part("b"), part_of(rho=nan, relative_l2=nan)),
    ]
    averages = AverageMetrics.of(measured, rho_average=rho_average)
    assert averages.categories["a"] == Accuracy(0.4, 0.2)
    assert math.isnan(averages.categories["b"].rho)
    assert averages.average.rho == pytest.approx(0.4)
    assert averages.average.relative_l2 == pytest.approx(0.2)


def test_intervals_of_parts_weigh_by_their_clips_and_are_of_all_parts_or_none() -> None:
    small = {"asked": 0.9, "inside": 8, "num_test": 10, "mean_width": 2.0}
    large = {"asked": 0.9, "inside": 28, "num_test": 30, "mean_width": 6.0}
    parts = [part_of(relative_l2=0.2, intervals=own) for own in (small, large, None)]
    measured = list(zip([Part("a"), Part("b"), Part("c")], parts, strict=True))
    # (10 x 2 + 30 x 6) / 40.
    assert AverageMetrics.of(measured[:2], rho_average="fisher").intervals == {
        "asked": 0.9, "reached": 0.9, "inside": 36, "num_test": 40, "mean_width": 5.0,
    }  # fmt: skip
    assert AverageMetrics.of(measured, rho_average="fisher").intervals is None


def test_what_is_not_defined_is_null_in_the_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) is None
    write_metrics(tmp_path, metrics(math.nan))
    assert json.loads((tmp_path / "metrics.json").read_text())["ensemble"]["rho"] is None
    found = read_metrics(tmp_path)
    assert isinstance(found, Metrics)
    assert math.isnan(found.ensemble.rho)
    (tmp_path / "metrics.json").write_text('{"heads": {}}')
    with pytest.raises(DataError, match=r"metrics\.json: damaged \(KeyError"):
        read_metrics(tmp_path)

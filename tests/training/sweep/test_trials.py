from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.errors import DataError
from aqa_pipeline.training.sweep.space import Point, parse_space
from aqa_pipeline.training.sweep.trials import (
    Journal,
    TrialResult,
    best_of,
    importance,
    results_table,
)

SPACE = parse_space(["lr=1e-4..1e-2:log", "m=5,all"])


def result(number: int, score: float, state: str = "done", rate: float = 1e-3) -> TrialResult:
    return TrialResult(
        number,
        {"learning_rate": rate, "num_exemplars": None},
        state,  # type: ignore[arg-type]
        score,
        per_part=(score,),
        best_epoch=(3, 4),
        epochs=5,
        rungs={"0:0.25": score},
    )


def test_the_best_is_the_highest_of_those_that_were_not_stopped() -> None:
    results = [result(0, 0.9, "stopped"), result(1, math.nan), result(2, 0.7), result(3, 0.7)]
    best = best_of(results)
    assert best is not None
    assert best.number == 2
    assert best_of(results[:2]) is None


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "trials.jsonl")
    assert journal.read() == []
    journal.append([result(1, 0.5)])
    journal.append([result(0, 0.25, "stopped"), result(2, math.nan)])
    first, second, third = journal.read()
    assert (first, second) == (result(0, 0.25, "stopped"), result(1, 0.5))
    assert math.isnan(third.score)
    assert math.isnan(third.per_part[0])


def test_a_line_that_a_kill_cut_off_costs_that_line_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    journal.append([result(0, 0.5), result(1, 0.6)])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-10])
    assert [r.number for r in journal.read()] == [0]
    journal.append([result(1, 0.7)])
    assert [(r.number, r.score) for r in journal.read()] == [(0, 0.5), (1, 0.7)]
    journal.path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DataError, match=r"trials\.jsonl, line 1: damaged"):
        journal.read()


def test_the_table_has_the_best_first_and_the_stopped_last() -> None:
    table = results_table([result(0, 0.9, "stopped"), result(1, 0.2), result(2, 0.3)], SPACE)
    assert table["number"].tolist() == [2, 1, 0]
    assert table["num_exemplars"].tolist() == ["all"] * 3
    assert table["best_epoch"].tolist() == [3.5] * 3


def test_importance_is_the_variance_explained() -> None:
    random = np.random.default_rng(0)
    rates = np.geomspace(1e-4, 1e-2, 40)
    points: list[Point] = [
        {"learning_rate": float(rate), "num_exemplars": (5, None)[random.integers(2)]}
        for rate in rates
    ]
    results = [
        TrialResult(i, point, "done", float(i // 10), (0.0,), (1,), 1)
        for i, point in enumerate(points)
    ]
    shares = importance(results_table(results, SPACE), ["num_exemplars", "learning_rate"])
    assert list(shares) == ["learning_rate", "num_exemplars"], "the largest first"
    assert shares["learning_rate"] == pytest.approx(1.0), "four bins explain four steps"
    assert shares["num_exemplars"] < 0.2
    few = importance(results_table(results[:7], SPACE), ["learning_rate"])
    assert math.isnan(few["learning_rate"])

from __future__ import annotations

import math

from aqa_pipeline.training.sweep.space import parse_space
from aqa_pipeline.training.sweep.trials import TrialResult, best_of, results_table

SPACE = parse_space(["lr=1e-4..1e-2:log", "m=5,all"])


def result(number: int, score: float, state: str = "done", rate: float = 1e-3) -> TrialResult:
    return TrialResult(
        number,
        {"learning_rate": rate, "num_exemplars": None},
        state,  # type: ignore[arg-type]
        score,
        per_part=[score],
        best_epoch=[3, 4],
        epochs=5,
        rungs={"0:0.25": score},
    )


def test_the_best_is_the_highest_of_those_that_were_not_stopped() -> None:
    results = [result(0, 0.9, "stopped"), result(1, math.nan), result(2, 0.7), result(3, 0.7)]
    best = best_of(results)
    assert best is not None
    assert best.number == 2
    assert best_of(results[:2]) is None


def test_the_table_has_the_best_first_and_the_stopped_last() -> None:
    table = results_table([result(0, 0.9, "stopped"), result(1, 0.2), result(2, 0.3)], SPACE)
    assert table["number"].tolist() == [2, 1, 0]
    assert table["num_exemplars"].tolist() == ["all"] * 3
    assert table["best_epoch"].tolist() == [3.5] * 3
    assert table["parts"].tolist() == [1] * 3

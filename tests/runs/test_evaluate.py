"""Metrics of predictions by three heads, by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from aqa_pipeline.config import FitConfig, Protocol
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.heads.voting import Predictions, Votes
from aqa_pipeline.runs.evaluate import measure
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.runs.metrics import Metrics
from tests.heads.test_head import small_head
from tests.support.planted import planted_clips

#: Of five clips whose true scores are 1 to 5.
PER_HEAD = np.array([[1.0, 2, 3, 4, 5], [1, 2, 3, 5, 4], [30, 1, 3, 4, 5]])


def measured(*, votes: list[int], asked: int | None = 2) -> Metrics:
    """Metrics of :data:`PER_HEAD`, each clip with so many votes."""
    run = Run(
        folder=Path("r"),
        head=small_head(1, 2, 3),
        exemplars=planted_clips(9),
        protocol=Protocol(name="planted", exemplar_key=("difficulty",)),
        labels=LabelScale("raw"),
        fit_config=FitConfig(num_seeds=3, num_exemplars=asked),
    )
    exemplars = np.array([[0, 1][:count] + [-1] * (2 - count) for count in votes])
    predictions = Predictions(
        clips=dataclasses.replace(planted_clips(5), score=np.arange(1.0, 6.0)),
        per_head=PER_HEAD,
        exemplars=exemplars,
        fallback=np.array([False, True, False, False, False]),
        votes=Votes(np.zeros((3, 5, 2)), np.zeros((3, 5, 2), dtype=np.int64)),
    )
    return measure(run, predictions)


def test_the_spread_over_seeds_is_that_of_a_sample() -> None:
    rho = measured(votes=[2] * 5).heads["rho"]
    # One swap of neighbours: 1 - 6 x 2 / 120; the first clip last: 1 - 6 x 20 / 120.
    assert rho.per_seed == pytest.approx((1.0, 0.9, 0.0))
    assert rho.mean == pytest.approx(1.9 / 3)
    squares = sum((value - 1.9 / 3) ** 2 for value in (1.0, 0.9, 0.0))
    assert rho.std == pytest.approx(math.sqrt(squares / 2))
    assert rho.std == pytest.approx(np.std(rho.per_seed, ddof=1))


def test_the_ensemble_is_the_mean_of_the_heads() -> None:
    # 32/3, 5/3, 3, 13/3, 14/3: the first clip is last, which a median would not let happen.
    assert measured(votes=[2] * 5).ensemble.rho == pytest.approx(0.0)


def test_clips_with_exactly_as_many_exemplars_as_asked_for_have_no_fewer() -> None:
    assert measured(votes=[2] * 5).exemplars["clips_with_fewer"] == 0
    found = measured(votes=[2, 1, 2, 1, 2]).exemplars
    assert (found["clips_with_fewer"], found["clips_with_nearest_key"]) == (2, 1)
    assert measured(votes=[1] * 5, asked=None).exemplars["clips_with_fewer"] == 0

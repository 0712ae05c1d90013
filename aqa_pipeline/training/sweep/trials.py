"""Trials of a sweep, and their results.

Conventions
-----------
trial
    A point of the space with a number, from 0.
score
    Spearman's rho on the clips held out for validation, at the best epoch of each seed; mean
    over the seeds, folds plainly and categories as the protocol says.
rung
    A share of the epochs after which hopeless trials are given up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from aqa_pipeline.training.sweep.space import Point, Space

FOLDER = "sweep"  #: of a sweep's files, in the run folder


@dataclass(frozen=True)
class Trial:
    """A point to be tried."""

    number: int
    point: Point


@dataclass
class TrialResult:
    """A trial in training, and what it came to.

    Attributes
    ----------
    number : int
    point : dict
    state : {"done", "stopped"}
        ``stopped``: given up at a rung; its score is that of the epochs it had.
    score : float
        NaN where it is not defined in one of the parts.
    per_part : list of float
        The score in each category and fold.
    best_epoch : list of int
        Of each part and seed.
    epochs : int
        Run in the last part it was trained in.
    rungs : dict of str to float
        Score at each rung that was passed, by ``part:rung``.
    stack : int
        Models that were trained side by side with it.
    seconds : float
        Its share of the stack's time.
    """

    number: int
    point: Point
    state: Literal["done", "stopped"] = "done"
    score: float = math.nan
    per_part: list[float] = field(default_factory=list)
    best_epoch: list[int] = field(default_factory=list)
    epochs: int = 0
    rungs: dict[str, float] = field(default_factory=dict)
    stack: int = 1
    seconds: float = 0.0


def best_of(results: Iterable[TrialResult]) -> TrialResult | None:
    """The trial with the highest score of those that were trained to the end."""
    done = [r for r in results if r.state == "done" and math.isfinite(r.score)]
    return min(done, key=lambda r: (-r.score, r.number), default=None)


def results_table(results: Sequence[TrialResult], space: Space) -> pd.DataFrame:
    """``results.csv``: one row per trial, the best first; stopped ones below the others.

    ``parts`` is the number of categories and folds that the score is a mean over.
    """
    rows = [
        {
            "number": r.number,
            "state": r.state,
            "score": r.score,
            **{d.name: "all" if r.point[d.name] is None else r.point[d.name] for d in space.varied},
            "best_epoch": float(np.mean(r.best_epoch)) if r.best_epoch else math.nan,
            "epochs": r.epochs,
            "stack": r.stack,
            "seconds": round(r.seconds, 3),
            "parts": len(r.per_part),
        }
        for r in results
    ]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    order = ["state", "score", "number"]
    return table.sort_values(order, ascending=[True, False, True]).reset_index(drop=True)

"""Trials of a sweep and what became of them.

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

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from aqa_pipeline.errors import DataError
from aqa_pipeline.training.sweep.space import Point, Space


@dataclass(frozen=True)
class Trial:
    """A point to be tried."""

    number: int
    point: Point


@dataclass(frozen=True)
class TrialResult:
    """A trial that has been trained.

    Attributes
    ----------
    number : int
    point : dict
    state : {"done", "stopped"}
        ``stopped``: given up at a rung; its score is that of the epochs it had.
    score : float
        NaN where it is not defined.
    per_part : tuple of float
        The score in each category and fold.
    best_epoch : tuple of int
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
    state: Literal["done", "stopped"]
    score: float
    per_part: tuple[float, ...]
    best_epoch: tuple[int, ...]
    epochs: int
    rungs: dict[str, float] = field(default_factory=dict)
    stack: int = 1
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrialResult:
        """What :meth:`as_dict` gave."""
        given = dict(value)
        given["score"] = _number(given["score"])
        given["per_part"] = tuple(map(_number, given["per_part"]))
        given["best_epoch"] = tuple(given["best_epoch"])
        given["rungs"] = {name: _number(score) for name, score in given["rungs"].items()}
        return cls(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def best_of(results: Iterable[TrialResult]) -> TrialResult | None:
    """The trial with the highest score of those that were trained to the end."""
    done = [r for r in results if r.state == "done" and math.isfinite(r.score)]
    return min(done, key=lambda r: (-r.score, r.number), default=None)


class Journal:
    """Results in a file of JSON lines, each on the disk before the next begins.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[TrialResult]:
        """All results; a last line that a kill cut off is passed over.

        Raises
        ------
        DataError
            If another line cannot be read.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        results = {}
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                result = TrialResult.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise DataError(f"{self.path}, line {number}: damaged ({error})") from None
            results[result.number] = result
        return sorted(results.values(), key=lambda r: r.number)

    def append(self, results: Sequence[TrialResult]) -> None:
        """Write results down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(result.as_dict()) + "\n" for result in results)
        with self.path.open("a+b") as file:
            # What a kill left of a line must not swallow the next one.
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def results_table(results: Sequence[TrialResult], space: Space) -> pd.DataFrame:
    """``results.csv``: one row a trial, the best first; stopped ones below the others."""
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
        }
        for r in results
    ]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    order = ["state", "score", "number"]
    return table.sort_values(order, ascending=[True, False, True]).reset_index(drop=True)


def importance(table: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Share of the scores' variance that each dimension explains by itself (eta squared).

    Values are taken as they are where there are at most six, else in four bins of equal
    count. Dimensions may work together, and bins of few trials explain something by chance:
    the shares are a hint where to look, and need not add up to 1.

    Parameters
    ----------
    table : DataFrame
        See :func:`results_table`; stopped trials count with the score they had.
    names : sequence of str

    Returns
    -------
    dict of str to float
        NaN with fewer than 8 trials or equal scores. Largest first.
    """
    shares = {}
    known = table[np.isfinite(table["score"].astype(float))] if len(table) else table
    for name in names:
        if len(known) < 8 or not known["score"].std() > 0:
            shares[name] = math.nan
            continue
        values = known[name]
        if values.nunique() > 6 and pd.api.types.is_numeric_dtype(values):
            values = pd.qcut(values, 4, labels=False, duplicates="drop")
        groups = known["score"].groupby(values.astype(str))
        between = (groups.size() * (groups.mean() - known["score"].mean()) ** 2).sum()
        total = ((known["score"] - known["score"].mean()) ** 2).sum()
        shares[name] = float(between / total)
    return dict(sorted(shares.items(), key=lambda item: -np.nan_to_num(item[1], nan=-1)))

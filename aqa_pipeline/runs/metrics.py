"""Metrics of runs and their averages: ``metrics.json``, its writer and reader.

A value that is not defined is NaN here and null in JSON. Every number carries how its epoch was
chosen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from aqa_pipeline.atomic import write_json_atomically
from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import DataError

FILE_NAME = "metrics.json"
_BEST = "relative_l2_best_of_any_epoch"


@dataclass(frozen=True)
class Accuracy:
    """Spearman's rho and R-l2 (not times 100) of one set of predictions."""

    rho: float = math.nan
    relative_l2: float = math.nan

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Accuracy:
        return cls(_number(stored.get("rho")), _number(stored.get("relative_l2")))


@dataclass(frozen=True)
class OverSeeds:
    """A metric of single heads: mean and standard deviation over the seeds.

    Attributes
    ----------
    mean : float
    std : float or None
        None: there is one seed.
    per_seed : tuple of float
    interval_95 : (float, float) or None
        Bootstrap interval over the clips, of rho and R-l2.
    """

    mean: float
    std: float | None
    per_seed: tuple[float, ...]
    interval_95: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Sequence[float], interval: tuple[float, float] | None = None) -> OverSeeds:
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, tuple(values), interval)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> OverSeeds:
        interval = stored.get("interval_95")
        low_high = None if interval is None else (_number(interval[0]), _number(interval[1]))
        per_seed = tuple(map(_number, stored.get("per_seed", ())))
        return cls(_number(stored["mean"]), stored.get("std"), per_seed, low_high)

    def as_dict(self) -> dict[str, Any]:
        known = {"mean": self.mean, "std": self.std, "per_seed": list(self.per_seed)}
        return known if self.interval_95 is None else {**known, "interval_95": self.interval_95}


@dataclass(frozen=True)
class Metrics:
    """Metrics of one run on clips whose scores are known.

    Attributes
    ----------
    method, selection, relative_l2_range : str
    seeds : tuple of int
    num_train, num_test : int
    heads : dict of str to OverSeeds
        ``rho``, ``relative_l2``, ``l2``, ``kendall_tau``.
    best_relative_l2_of_any_epoch : tuple of float or None
        Of each seed, in test-set model selection.
    ensemble : Accuracy
        Of the mean of the heads.
    exemplars : mapping
        How many were ``asked`` for, their ``key``, and the counts ``clips_with_fewer`` and
        ``clips_with_nearest_key``.
    intervals : mapping or None
        See :func:`aqa_pipeline.runs.calibration.measure_intervals`.
    difficulty_alone : Accuracy or None
        Of the mean training score at the clip's difficulty.
    finetune : mapping or None
    """

    method: str
    selection: str
    relative_l2_range: str
    seeds: tuple[int, ...]
    num_train: int
    num_test: int
    heads: Mapping[str, OverSeeds]
    ensemble: Accuracy
    exemplars: Mapping[str, Any]
    best_relative_l2_of_any_epoch: tuple[float, ...] | None = None
    intervals: Mapping[str, Any] | None = None
    difficulty_alone: Accuracy | None = None
    finetune: Mapping[str, Any] | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Metrics:
        """The inverse of :meth:`as_dict`."""
        heads = dict(stored["heads"])
        best = heads.pop(_BEST, None)
        alone = stored.get("difficulty_alone")
        return cls(
            method=stored["method"],
            selection=stored["selection"],
            relative_l2_range=stored["relative_l2_range"],
            seeds=tuple(stored["seeds"]),
            num_train=stored["num_train"],
            num_test=stored["num_test"],
            heads={name: OverSeeds.from_dict(values) for name, values in heads.items()},
            ensemble=Accuracy.from_dict(stored["ensemble"]),
            exemplars=stored["exemplars"],
            best_relative_l2_of_any_epoch=None if best is None else tuple(map(_number, best)),
            intervals=stored.get("intervals"),
            difficulty_alone=None if alone is None else Accuracy.from_dict(alone),
            finetune=stored.get("finetune"),
        )

    def __repr__(self) -> str:
        said = []
        for name, shown, factor in (("rho", "rho", 1), ("relative_l2", "R-l2 x100", 100)):
            if own := self.heads.get(name):
                spread = "" if own.std is None else f" ± {factor * own.std:.4f}"
                said.append(f"{shown} {factor * own.mean:.4f}{spread}")
        return f"Metrics({self.method}: {', '.join(said)}, {self.num_test} test clips)"

    def to_frame(self) -> pd.DataFrame:
        """One row per metric of :attr:`heads`; R-l2 not times 100.

        Columns ``mean``, ``std``, ``low_95`` and ``high_95`` of single heads, ``ensemble`` of their
        mean prediction, ``difficulty_alone``, and ``seed0`` and so on of each head; NaN where a
        value is not known.
        """
        rows = {}
        for name, own in self.heads.items():
            low, high = own.interval_95 or (math.nan, math.nan)
            alone = self.difficulty_alone or Accuracy()
            rows[name] = {
                "mean": own.mean,
                "std": math.nan if own.std is None else own.std,
                "low_95": low,
                "high_95": high,
                "ensemble": getattr(self.ensemble, name, math.nan),
                "difficulty_alone": getattr(alone, name, math.nan),
                **{f"seed{n}": value for n, value in zip(self.seeds, own.per_seed, strict=False)},
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``metrics.json`` holds them."""
        heads: dict[str, Any] = {name: own.as_dict() for name, own in self.heads.items()}
        if self.best_relative_l2_of_any_epoch is not None:
            heads[_BEST] = list(self.best_relative_l2_of_any_epoch)
        alone = self.difficulty_alone
        optional = {
            "intervals": self.intervals,
            "difficulty_alone": None if alone is None else vars(alone),
            "finetune": self.finetune,
        }
        return {
            "method": self.method,
            "selection": self.selection,
            "relative_l2_range": self.relative_l2_range,
            "seeds": list(self.seeds),
            "num_train": self.num_train,
            "num_test": self.num_test,
            "heads": heads,
            "ensemble": vars(self.ensemble),
            "exemplars": self.exemplars,
            **{name: value for name, value in optional.items() if value is not None},
        }


@dataclass(frozen=True)
class AverageMetrics:
    """Metrics of a data set with categories or folds, averaged over them.

    Folds are averaged plainly; categories by Fisher's z (or plainly, if the protocol says so)
    for rho, and plainly for R-l2. Source: Sec. 4.1. A value that is not defined is left out.

    Attributes
    ----------
    method, selection, relative_l2_range : str
    seeds : tuple of int
    parts : tuple of mapping
        Of each part ``category``, ``fold``, ``num_train``, ``num_test``, ``rho``, ``relative_l2``.
    categories : mapping of str or None to Accuracy
        Folds averaged.
    average : Accuracy
    rho_average : {"Fisher z", "plain mean"}
    intervals : mapping or None
        Coverage over the test clips of all parts.
    """

    method: str
    selection: str
    relative_l2_range: str
    seeds: tuple[int, ...]
    parts: tuple[Mapping[str, Any], ...]
    categories: Mapping[str | None, Accuracy]
    average: Accuracy
    rho_average: str
    intervals: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, measured: Sequence[tuple[Part, Metrics]], *, rho_average: Literal["fisher", "mean"]
    ) -> AverageMetrics:
        """Average the metrics of parts."""
        parts: list[dict[str, Any]] = [
            {
                "category": part.category,
                "fold": part.fold,
                "num_train": own.num_train,
                "num_test": own.num_test,
                "rho": own.heads["rho"].mean,
                "relative_l2": own.heads["relative_l2"].mean,
            }
            for part, own in measured
        ]
        categories = {}
        for name in dict.fromkeys(part.category for part, _ in measured):
            rows = [row for row in parts if row["category"] == name]
            categories[name] = Accuracy(
                *(_mean([row[metric] for row in rows]) for metric in ("rho", "relative_l2"))
            )
        rhos = [own.rho for own in categories.values()]
        first = measured[0][1]
        return cls(
            method=first.method,
            selection=first.selection,
            relative_l2_range=first.relative_l2_range,
            seeds=first.seeds,
            parts=tuple(parts),
            categories=categories,
            average=Accuracy(
                fisher_mean(rhos) if rho_average == "fisher" else _mean(rhos),
                _mean([own.relative_l2 for own in categories.values()]),
            ),
            rho_average="Fisher z" if rho_average == "fisher" else "plain mean",
            intervals=_intervals([own.intervals for _, own in measured]),
        )

    def __repr__(self) -> str:
        return (
            f"AverageMetrics({self.method}: rho {self.average.rho:.4f}, "
            f"R-l2 x100 {100 * self.average.relative_l2:.4f}, {len(self.parts)} parts)"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per part: ``category``, ``fold``, ``num_train``, ``num_test``, ``rho``,
        ``relative_l2`` (not times 100)."""
        return pd.DataFrame([dict(part) for part in self.parts])

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> AverageMetrics:
        """The inverse of :meth:`as_dict`; of an interrupted or older run, what there is."""
        rows = stored.get("categories", ())
        return cls(
            method=stored.get("method", ""),
            selection=stored.get("selection", ""),
            relative_l2_range=stored.get("relative_l2_range", ""),
            seeds=tuple(stored.get("seeds", ())),
            parts=tuple(stored.get("parts", ())),
            categories={row["category"]: Accuracy.from_dict(row) for row in rows},
            average=Accuracy.from_dict(stored.get("average", {})),
            rho_average=stored.get("rho_average", ""),
            intervals=stored.get("intervals"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``metrics.json`` holds them."""
        return {
            **({} if self.intervals is None else {"intervals": self.intervals}),
            "method": self.method,
            "selection": self.selection,
            "relative_l2_range": self.relative_l2_range,
            "seeds": list(self.seeds),
            "parts": list(self.parts),
            "categories": [
                {"category": name, **vars(own)} for name, own in self.categories.items()
            ],
            "rho_average": self.rho_average,
            "average": vars(self.average),
        }


def write_metrics(folder: Path, metrics: Metrics | AverageMetrics) -> None:
    """Write ``metrics.json``."""
    write_json_atomically(folder / FILE_NAME, metrics.as_dict())


def read_metrics(folder: Path) -> Metrics | AverageMetrics | None:
    """``metrics.json`` of a run folder, or of a folder of runs; None where there is none.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    path = folder / FILE_NAME
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored == {}:
            return None
        kind = Metrics if "heads" in stored else AverageMetrics
        return kind.from_dict(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def _intervals(parts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Coverage over the test clips of all parts; None where a part gives no intervals."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    inside, count = (sum(part[name] for part in known) for name in ("inside", "num_test"))
    width = sum(part["mean_width"] * part["num_test"] for part in known) / count
    return {
        "asked": known[0]["asked"],
        "reached": inside / count,
        "inside": inside,
        "num_test": count,
        "mean_width": width,
    }


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _number(value: float | None) -> float:
    return math.nan if value is None else value

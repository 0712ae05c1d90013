"""Averages over the categories and folds of a data set.

Folds are averaged plainly; categories by Fisher's z (or plainly, if the protocol says so)
for rho, and plainly for R-l2. Source: Sec. 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.parts import Part


def average_parts(
    measured: Sequence[tuple[Part, dict[str, Any]]], *, rho_average: Literal["fisher", "mean"]
) -> dict[str, Any]:
    """What the parent folder's ``metrics.json`` holds.

    Parameters
    ----------
    measured : sequence of (Part, dict)
        Each part with its metrics, see :func:`aqa_pipeline.evaluate.measure`.
    rho_average : {"fisher", "mean"}

    Returns
    -------
    dict
        ``parts`` (one entry a part), ``categories`` (folds averaged) and ``average``.
        A value that is not defined is NaN and left out of averages.
    """
    rows = [
        {
            "category": part.category,
            "fold": part.fold,
            "num_train": metrics["num_train"],
            "num_test": metrics["num_test"],
            "rho": metrics["heads"]["rho"]["mean"],
            "relative_l2": metrics["heads"]["relative_l2"]["mean"],
        }
        for part, metrics in measured
    ]
    names = list(dict.fromkeys(row["category"] for row in rows))
    categories = []
    for name in names:
        own = [row for row in rows if row["category"] == name]
        categories.append(
            {
                "category": name,
                "rho": _mean([row["rho"] for row in own]),
                "relative_l2": _mean([row["relative_l2"] for row in own]),
            }
        )
    rhos = [row["rho"] for row in categories]
    first = measured[0][1]
    return {
        **_intervals([metrics.get("intervals") for _, metrics in measured]),
        "method": first["method"],
        "selection": first["selection"],
        "relative_l2_range": first["relative_l2_range"],
        "seeds": first["seeds"],
        "parts": rows,
        "categories": categories,
        "rho_average": "Fisher z" if rho_average == "fisher" else "plain mean",
        "average": {
            "rho": fisher_mean(rhos) if rho_average == "fisher" else _mean(rhos),
            "relative_l2": _mean([row["relative_l2"] for row in categories]),
        },
    }


def _intervals(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Coverage over the test clips of all parts; nothing where a part gives no intervals."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return {}
    inside, count = (sum(part[name] for part in known) for name in ("inside", "num_test"))
    width = sum(part["mean_width"] * part["num_test"] for part in known) / count
    return {
        "intervals": {
            "asked": known[0]["asked"],
            "reached": inside / count,
            "inside": inside,
            "num_test": count,
            "mean_width": width,
        }
    }


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")

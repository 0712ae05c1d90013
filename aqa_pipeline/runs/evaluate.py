"""Scoring clips with a fitted run, and how good the scores are.

Source: Eq. 8-11. Every number carries how its epoch was chosen.

Averages over the categories and folds of a data set.

Folds are averaged plainly; categories by Fisher's z (or plainly, if the protocol says so)
for rho, and plainly for R-l2. Source: Sec. 4.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from aqa_pipeline.cache.load import load_clips
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import RangeOf
from aqa_pipeline.core import metrics
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.voting import Predictions
from aqa_pipeline.runs.calibration import measure_intervals
from aqa_pipeline.runs.config import selection_sentence
from aqa_pipeline.runs.folder import Run, read_run, run_folders

FloatArray = npt.NDArray[np.float64]


RANGE_NAMES: dict[RangeOf, str] = {"evaluated": "evaluated set", "class": "class, train and test"}


def predict_clips(run: Run, clips: FeatureSet) -> Predictions:
    """Score clips by comparing them with the run's exemplars, each clip on its own.

    Raises
    ------
    CacheError
        If the features have another shape than those the head was trained on.
    """
    return run.voter().predict_clips(clips)


def measure(
    run: Run, predictions: Predictions, *, range_of: RangeOf | None = None
) -> dict[str, Any]:
    """Everything ``metrics.json`` holds, of clips whose scores are known.

    Parameters
    ----------
    run : Run
    predictions : Predictions
    range_of : {"evaluated", "class"}, optional
        What R-l2 divides by; default: as the run was fitted.

    Returns
    -------
    dict
        Plain values. ``heads`` describes single heads (mean and standard deviation over
        the seeds, a bootstrap interval over the clips), ``ensemble`` the mean of the heads.
    """
    scores, per_head = predictions.clips.score, predictions.per_head
    range_of = range_of or run.fit_config.relative_l2_range
    span = _class_ranges(run.exemplars, predictions.clips) if range_of == "class" else None
    measured = {
        "rho": [metrics.spearman(scores, p) for p in per_head],
        "relative_l2": [metrics.relative_l2(scores, p, score_range=span) for p in per_head],
        "l2": [metrics.l2(scores, p) for p in per_head],
        "kendall_tau": [metrics.kendall_tau(scores, p) for p in per_head],
    }
    heads: dict[str, Any] = {}
    for name, values in measured.items():
        heads[name] = {
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "per_seed": values,
        }
    for name in ("rho", "relative_l2"):
        heads[name]["interval_95"] = metrics.bootstrap_interval(
            scores,
            per_head,
            metric=name,  # type: ignore[arg-type]
            score_range=span,
        )
    ensemble = predictions.score
    result = {
        "method": run.head.config.name,
        "selection": selection_sentence(run.fit_config, run.head.config),
        "relative_l2_range": RANGE_NAMES[range_of],
        "seeds": run.seeds,
        "num_train": len(run.exemplars),
        "num_test": len(predictions.clips),
        "heads": heads,
        "ensemble": {
            "rho": metrics.spearman(scores, ensemble),
            "relative_l2": metrics.relative_l2(scores, ensemble, score_range=span),
        },
        "exemplars": {
            "asked": run.fit_config.num_exemplars,
            "key": list(run.protocol.exemplar_key),
            "clips_with_fewer": int(np.sum(_num_votes(predictions) < _asked(run, predictions))),
            "clips_with_nearest_key": int(predictions.fallback.sum()),
        },
    }
    if run.config.best_relative_l2_of_any_epoch is not None:
        # Published programs report the best rho and the best R-l2, each of its own epoch.
        heads["relative_l2_best_of_any_epoch"] = list(run.config.best_relative_l2_of_any_epoch)
    intervals = measure_intervals(run.calibration, predictions.clips, ensemble)
    if intervals is not None:
        result["intervals"] = intervals
    by_difficulty = difficulty_alone(run.exemplars, predictions.clips)
    if by_difficulty is not None:
        result["difficulty_alone"] = {
            "rho": metrics.spearman(scores, by_difficulty),
            "relative_l2": metrics.relative_l2(scores, by_difficulty, score_range=span),
        }
    return result


def _class_ranges(train: FeatureSet, test: FeatureSet) -> FloatArray:
    return metrics.class_ranges(
        test.category,
        all_scores=np.concatenate([train.score, test.score]),
        all_categories=train.category + test.category,
    )


def evaluate_run(
    run: Run, manifest: Manifest, *, cache_root: Path, range_of: RangeOf | None = None
) -> dict[str, Any]:
    """Metrics of a run on the test split of a manifest, from the features it was fitted on.

    Parameters as :func:`evaluate_folder` and :func:`measure`.

    Raises
    ------
    DataError
        If the manifest has no test clip.
    CacheError
        If the features are not in the cache, or were made with another backbone.
    """
    rows = run.config.part.rows(manifest, "test")
    if rows.empty:
        raise DataError(f"{manifest.path}: no test clip for the run {run.folder}")
    cache = FeatureCache.open(cache_root / manifest.name / run.config.cache.folder)
    # The protocol the head was fitted with, whatever the file says by now.
    fitted = dataclasses.replace(manifest, protocol=run.protocol)
    predictions = predict_clips(run, load_clips(fitted, cache, rows, run.labels))
    return measure(run, predictions, range_of=range_of)


def evaluate_folder(
    folder: Path,
    manifest_of: Callable[[str], Manifest],
    *,
    cache_root: Path,
    device: torch.device,
    range_of: RangeOf | None = None,
) -> dict[str, Any]:
    """Metrics of a run folder, whether it is one run or the parent of parts.

    Parameters
    ----------
    folder : Path
    manifest_of : callable
        Gives the manifest for the name of the data set the run was fitted on.
    cache_root : Path
    device : torch.device
    range_of : {"evaluated", "class"}, optional
        See :func:`measure`.

    Returns
    -------
    dict
        What ``metrics.json`` of the folder holds.

    Raises
    ------
    DataError
        If it is not a run folder or the manifest does not fit it.
    CacheError
        If features are missing.
    """
    folders = run_folders(folder)
    measured = []
    for own in folders:
        run = read_run(own, device=device)
        manifest = manifest_of(run.config.dataset)
        metrics_of_part = evaluate_run(run, manifest, cache_root=cache_root, range_of=range_of)
        measured.append((run.config.part, metrics_of_part))
    if folders == [folder]:
        return measured[0][1]
    return average_parts(measured, rho_average=run.protocol.rho_average)


def _num_votes(predictions: Predictions) -> npt.NDArray[np.int64]:
    count: npt.NDArray[np.int64] = (predictions.exemplars >= 0).sum(axis=1)
    return count


def _asked(run: Run, predictions: Predictions) -> int:
    return run.fit_config.num_exemplars or 0


def difficulty_alone(train: FeatureSet, test: FeatureSet) -> FloatArray | None:
    """A yardstick: the mean training score at the clip's difficulty, without a look at it.

    Returns
    -------
    ndarray of float64, shape=(len(test),), or None
        At the nearest training difficulty where the clip's own does not occur; None where
        difficulties are not given or all the same.
    """
    known = np.unique(train.difficulty)
    if np.isnan(known).any() or np.isnan(test.difficulty).any() or len(known) < 2:
        return None
    means = np.array([train.score[train.difficulty == d].mean() for d in known])
    nearest = np.abs(test.difficulty[:, None] - known[None, :]).argmin(axis=1)
    result: FloatArray = means[nearest]
    return result


def predictions_table(run: Run, predictions: Predictions) -> pd.DataFrame:
    """``predictions.csv``: one row a clip, the run's prediction and each head's."""
    clips = predictions.clips
    table = pd.DataFrame(
        {
            "clip_id": clips.clip_id,
            "category": clips.category,
            "difficulty": clips.difficulty,
            "score": clips.score,
            "prediction": predictions.score,
            "num_exemplars": _num_votes(predictions),
            "nearest_key": predictions.fallback,
        }
    )
    for seed, values in zip(run.seeds, predictions.per_head, strict=True):
        table[f"prediction_seed{seed}"] = values
    return table


def average_parts(
    measured: Sequence[tuple[Part, dict[str, Any]]], *, rho_average: Literal["fisher", "mean"]
) -> dict[str, Any]:
    """What the parent folder's ``metrics.json`` holds.

    Parameters
    ----------
    measured : sequence of (Part, dict)
        Each part with its metrics, see :func:`aqa_pipeline.runs.evaluate.measure`.
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

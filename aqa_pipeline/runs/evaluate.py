"""Evaluation of a fitted run on the test split.

Source: Eq. 8-11.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.cache.load import load_clips
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import DEVICE, RangeOf
from aqa_pipeline.core import metrics
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.datasets.manifest import Manifest, as_manifest
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.voting import Predictions
from aqa_pipeline.project import Project
from aqa_pipeline.runs.calibration import measure_intervals
from aqa_pipeline.runs.config import selection_sentence
from aqa_pipeline.runs.folder import Run, read_run, run_folders
from aqa_pipeline.runs.metrics import Accuracy, AverageMetrics, Metrics, OverSeeds

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


def measure(run: Run, predictions: Predictions, *, range_of: RangeOf | None = None) -> Metrics:
    """Metrics of clips whose scores are known.

    Parameters
    ----------
    run : Run
    predictions : Predictions
    range_of : {"evaluated", "class"}, optional
        What R-l2 divides by; default: as the run was fitted.
    """
    scores, per_head = predictions.clips.score, predictions.per_head
    range_of = range_of or run.fit_config.relative_l2_range
    span = _class_ranges(run.exemplars, predictions.clips) if range_of == "class" else None

    def accuracy(predicted: FloatArray) -> Accuracy:
        error = metrics.relative_l2(scores, predicted, score_range=span)
        return Accuracy(metrics.spearman(scores, predicted), error)

    def interval(metric: Literal["rho", "relative_l2"]) -> tuple[float, float]:
        return metrics.bootstrap_interval(scores, per_head, metric=metric, score_range=span)

    own = [accuracy(predicted) for predicted in per_head]
    asked = run.fit_config.num_exemplars
    by_difficulty = difficulty_alone(run.exemplars, predictions.clips)
    return Metrics(
        method=run.head.config.name,
        selection=selection_sentence(run.fit_config, run.head.config),
        relative_l2_range=RANGE_NAMES[range_of],
        seeds=tuple(run.seeds),
        num_train=len(run.exemplars),
        num_test=len(predictions.clips),
        heads={
            "rho": OverSeeds.of([one.rho for one in own], interval("rho")),
            "relative_l2": OverSeeds.of([one.relative_l2 for one in own], interval("relative_l2")),
            "l2": OverSeeds.of([metrics.l2(scores, p) for p in per_head]),
            "kendall_tau": OverSeeds.of([metrics.kendall_tau(scores, p) for p in per_head]),
        },
        # Published programs report the best rho and the best R-l2, each of its own epoch.
        best_relative_l2_of_any_epoch=run.config.best_relative_l2_of_any_epoch,
        ensemble=accuracy(predictions.score),
        exemplars={
            "asked": asked,
            "key": list(run.protocol.exemplar_key),
            "clips_with_fewer": int(np.sum(predictions.num_votes < (asked or 0))),
            "clips_with_nearest_key": int(predictions.fallback.sum()),
        },
        intervals=measure_intervals(run.calibration, predictions.clips, predictions.score),
        difficulty_alone=None if by_difficulty is None else accuracy(by_difficulty),
    )


def _class_ranges(train: FeatureSet, test: FeatureSet) -> FloatArray:
    return metrics.class_ranges(
        test.category,
        all_scores=np.concatenate([train.score, test.score]),
        all_categories=train.category + test.category,
    )


@overload
def evaluate_run(
    run: Run,
    manifest: Manifest | str | Path | None = ...,
    *,
    cache_root: str | Path | None = ...,
    device: torch.device | str = ...,
    range_of: RangeOf | None = ...,
) -> Metrics: ...


@overload
def evaluate_run(
    run: str | Path,
    manifest: Manifest | str | Path | None = ...,
    *,
    cache_root: str | Path | None = ...,
    device: torch.device | str = ...,
    range_of: RangeOf | None = ...,
) -> Metrics | AverageMetrics: ...


def evaluate_run(
    run: Run | str | Path,
    manifest: Manifest | str | Path | None = None,
    *,
    cache_root: str | Path | None = None,
    device: torch.device | str = DEVICE,
    range_of: RangeOf | None = None,
) -> Metrics | AverageMetrics:
    """Metrics on the test split of a manifest, from the features that a run was fitted on.

    Parameters
    ----------
    run : Run, str or Path
        Read, or its folder; that of a data set with categories or folds gives the average of its
        parts.
    manifest : Manifest, str, Path or None
        None: that of the run's data set in the project.
    cache_root : str, Path or None
        Where caches lie; None: ``cache/`` of the project.
    device : torch.device or str
        Of a run that is still to be read, see :func:`aqa_pipeline.device.find_device`.
    range_of : {"evaluated", "class"} or None
        What R-l2 divides by; None: as the run was fitted.

    Returns
    -------
    Metrics or AverageMetrics
        On the data set it was fitted on, what the folder's ``metrics.json`` holds.

    Raises
    ------
    DataError
        If it is no run folder, or the manifest cannot be used or has no test clip.
    CacheError
        If the features are not in the cache, or were made with another backbone.
    """
    root = Project.find().cache if cache_root is None else Path(cache_root)
    if isinstance(run, Run):
        return _evaluate(run, manifest, cache_root=root, range_of=range_of)
    folder = Path(run)
    folders = run_folders(folder)
    measured = []
    for own in folders:
        part_run = read_run(own, device=device)
        of_part = _evaluate(part_run, manifest, cache_root=root, range_of=range_of)
        measured.append((part_run.config.part, of_part))
    if folders == [folder]:
        return measured[0][1]
    return AverageMetrics.of(measured, rho_average=part_run.protocol.rho_average)


def _evaluate(
    run: Run,
    manifest: Manifest | str | Path | None,
    *,
    cache_root: Path,
    range_of: RangeOf | None,
) -> Metrics:
    manifest = as_manifest(
        Project.find().manifest_path(run.config.dataset) if manifest is None else manifest
    )
    rows = run.config.part.rows(manifest, "test")
    if rows.empty:
        raise DataError(f"{manifest.path}: no test clip for the run {run.folder}")
    cache = FeatureCache.open(cache_root / manifest.name / run.config.cache.folder)
    # The protocol the head was fitted with, whatever the file says by now.
    fitted = dataclasses.replace(manifest, protocol=run.protocol)
    predictions = predict_clips(run, load_clips(fitted, cache, rows, run.labels))
    return measure(run, predictions, range_of=range_of)


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
    """One row per clip, in points: the score, the run's prediction and each head's."""
    clips = predictions.clips
    table = pd.DataFrame(
        {
            "clip_id": clips.clip_id,
            "category": clips.category,
            "difficulty": clips.difficulty,
            "score": clips.score,
            "prediction": predictions.score,
            "num_exemplars": predictions.num_votes,
            "nearest_key": predictions.fallback,
        }
    )
    for seed, values in zip(run.seeds, predictions.per_head, strict=True):
        table[f"prediction_seed{seed}"] = values
    return table


def write_predictions(run: Run, predictions: Predictions) -> None:
    """Write ``predictions.csv``, see :func:`predictions_table`."""
    with atomic_path(run.folder / "predictions.csv") as temporary:
        predictions_table(run, predictions).to_csv(temporary, index=False)

"""Stage two: from cached features to run folders with their test metrics.

A data set is one part, or one for each category, fold, or both; each part gets heads and a
complete run folder of its own, and a parent folder holds their averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.cache.load import SplitClips, as_cache, load_split, load_views
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import DEVICE, FitConfig, HeadConfig, Protocol, SvrGrid
from aqa_pipeline.datasets.manifest import Manifest, as_manifest
from aqa_pipeline.datasets.parts import Part, parts_of
from aqa_pipeline.datasets.protocol import without_difficulty
from aqa_pipeline.device import find_device, naming_shortage, smaller_heads
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.voting import Predictions
from aqa_pipeline.runs.calibration import held_out_clips
from aqa_pipeline.runs.config import FeatureSource, Provenance, RunConfig
from aqa_pipeline.runs.evaluate import (
    measure,
    predict_clips,
    write_predictions,
)
from aqa_pipeline.runs.folder import Run, history_table, write_run
from aqa_pipeline.runs.metrics import AverageMetrics, Metrics, write_metrics
from aqa_pipeline.training.svr import train_svrs
from aqa_pipeline.training.train import TrainedHeads, train_heads
from aqa_pipeline.training.validation import validation_unit

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """One part's new run and how it did on its test clips.

    Attributes
    ----------
    run : Run
    predictions : Predictions
    metrics : Metrics
    """

    run: Run
    predictions: Predictions
    metrics: Metrics


def num_steps(head_config: HeadConfig, fit_config: FitConfig) -> int:
    """Steps of fitting one part: epochs, or for support vector machines grid points."""
    return fit_config.num_seeds * len(SvrGrid()) if head_config.is_svr else fit_config.epochs


def fit_dataset(
    manifest: Manifest | str | Path,
    cache: FeatureCache | str | Path,
    folder: str | Path,
    *,
    head_config: HeadConfig = HeadConfig(),  # noqa: B008 - frozen
    fit_config: FitConfig = FitConfig(),  # noqa: B008 - frozen
    device: torch.device | str = DEVICE,
    progress: Progress = lambda done, total: None,
) -> Metrics | AverageMetrics:
    """Fit every part of a data set and write the run folder.

    Parameters
    ----------
    manifest : Manifest, str or Path
    cache : FeatureCache, str or Path
        Opened, or its folder.
    folder : str or Path
        The run folder; files of an earlier run in it are replaced.
    head_config, fit_config : HeadConfig, FitConfig
    device : torch.device or str
        See :func:`aqa_pipeline.device.find_device`.
    progress : callable
        Called as ``progress(done, total)``, in steps over all parts (:func:`num_steps`).

    Returns
    -------
    Metrics or AverageMetrics
        What ``metrics.json`` of ``folder`` holds: of the only part, or of all.

    Raises
    ------
    UsageError
        If a head that looks at one clip alone is asked to compare, or there is no such device.
    DataError
        If the manifest cannot be used, or there is no split or nothing to learn.
    CacheError
        If features are missing.
    SetupError
        If memory runs out.
    """
    manifest, cache = as_manifest(manifest), as_cache(cache)
    folder, device = Path(folder), find_device(device)
    parts = parts_of(manifest)
    steps = num_steps(head_config, fit_config)
    measured = []
    for number, part in enumerate(parts):

        def progress_of_all(done: int, _: int, number: int = number) -> None:
            progress(number * steps + done, len(parts) * steps)

        result = fit_head(
            manifest,
            cache,
            part.folder(folder),
            part=part,
            head_config=head_config,
            fit_config=fit_config,
            device=device,
            progress=progress_of_all,
        )
        measured.append((part, result.metrics))
    if len(parts) == 1 and part.folder(folder) == folder:
        return measured[0][1]
    averages = AverageMetrics.of(measured, rho_average=manifest.protocol.rho_average)
    (folder / "config.json").unlink(missing_ok=True)  # of an earlier run without parts
    write_metrics(folder, averages)
    return averages


def fit_head(
    manifest: Manifest,
    cache: FeatureCache,
    folder: Path,
    *,
    head_config: HeadConfig,
    fit_config: FitConfig,
    device: torch.device,
    part: Part = Part(),  # noqa: B008 - frozen
    progress: Progress = lambda done, total: None,
) -> FitResult:
    """Fit one part: train heads, score its test clips once, write its run folder.

    Parameters and errors as :func:`fit_dataset`; ``progress`` counts this part's steps.
    """
    _check_mode(head_config)
    on_test = fit_config.model_selection == "test"
    if not fit_config.use_difficulty:
        manifest = dataclasses.replace(manifest, protocol=without_difficulty(manifest.protocol))
    protocol = manifest.protocol
    clips = load_split(manifest, cache, part, published_ranges=on_test)
    views = None
    if fit_config.views:
        averaged = head_config.aggregation == "mean"
        views = load_views(manifest, cache, clips.train.clip_id, averaged=averaged)
    trained = _train(
        clips,
        protocol,
        head_config=head_config,
        config=fit_config,
        device=device,
        views=views,
        progress=progress,
    )
    fingerprint = cache.identity.fingerprint
    run = Run(
        folder=folder,
        head=trained.head,
        exemplars=clips.train,
        protocol=protocol,
        labels=clips.labels,
        fit_config=fit_config,
        calibration=(
            None
            if on_test
            else held_out_clips(clips.train, trained.validation_rows, trained.held_out_scores)
        ),
        config=RunConfig.of(
            fit_config,
            head_config,
            dataset=manifest.name,
            part=part,
            validation_of=None if on_test else validation_unit(clips.train, fit_config),
            best_epoch=trained.best_epoch,
            selection_rho=trained.selection_rho,
            validation_clips=tuple(
                tuple(clips.train.clip_id[row] for row in rows) for rows in trained.validation_rows
            ),
            best_relative_l2_of_any_epoch=trained.best_relative_l2 if on_test else None,
            cache=FeatureSource(cache.folder.name, fingerprint.sha256, fingerprint.weights_sha256),
            provenance=Provenance.now(device),
        ),
    )
    write_run(run, history=history_table(trained.history, trained.history_columns))
    with naming_shortage(f"device {device}", smaller_heads(device)):
        predictions = predict_clips(run, clips.test)
    measured = measure(run, predictions)
    write_predictions(run, predictions)
    write_metrics(folder, measured)
    return FitResult(run, predictions, measured)


def _check_mode(config: HeadConfig) -> None:
    if config.mode == "contrastive" and config.kind not in ("gart", "mlp"):
        raise UsageError(
            f"{config.kind} scores a clip alone and cannot compare it with exemplars; "
            "type --mode direct"
        )


def _train(
    clips: SplitClips,
    protocol: Protocol,
    *,
    head_config: HeadConfig,
    config: FitConfig,
    device: torch.device,
    views: npt.NDArray[np.float32] | None,
    progress: Progress,
) -> TrainedHeads[Any]:
    test = clips.test if config.model_selection == "test" else None
    if head_config.is_svr:
        if views is not None:
            raise UsageError(f"{head_config.kind} sees each clip once; leave out --views")
        return train_svrs(
            clips.train,
            head_config=head_config,
            config=config,
            device=device,
            test=test,
            progress=progress,
        )
    return train_heads(
        clips.train,
        head_config=head_config,
        config=config,
        score_range=protocol.score_range,
        epsilon=protocol.epsilon,
        device=device,
        test=test,
        views=views,
        progress=progress,
    )

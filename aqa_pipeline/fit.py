"""Stage two: from cached features to a run folder with its test metrics."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqa_pipeline import __version__
from aqa_pipeline.clips import load_split
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.evaluate import SELECTION, Predictions, measure, predict_clips, predictions_table
from aqa_pipeline.feature_cache import FeatureCache
from aqa_pipeline.files import write_json_atomically
from aqa_pipeline.manifest import Manifest
from aqa_pipeline.run_folder import Run, history_table, write_predictions, write_run
from aqa_pipeline.train import HISTORY_COLUMNS, train_heads


@dataclass(frozen=True, eq=False)
class FitResult:
    """A new run and how it did on the test split."""

    run: Run
    predictions: Predictions
    metrics: dict[str, Any]


def fit_head(
    manifest: Manifest,
    cache: FeatureCache,
    folder: Path,
    *,
    head_config: HeadConfig,
    fit_config: FitConfig,
    device: torch.device,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> FitResult:
    """Train heads on the training split, score the test split once, write the run folder.

    Parameters
    ----------
    manifest : Manifest
    cache : FeatureCache
    folder : Path
        The run folder; files of an earlier run in it are replaced.
    head_config, fit_config : HeadConfig, FitConfig
    device : torch.device
    advance : callable
        Told ``(epochs done, epochs in all)``.

    Raises
    ------
    DataError
        If there is no split or nothing to learn.
    CacheError
        If features are missing.
    """
    clips = load_split(manifest, cache)
    protocol = manifest.protocol
    trained = train_heads(
        clips.train,
        head_config=head_config,
        config=fit_config,
        score_range=protocol.score_range,
        epsilon=protocol.epsilon,
        device=device,
        advance=advance,
    )
    run = Run(
        folder=folder,
        head=trained.head,
        exemplars=clips.train,
        protocol=protocol,
        labels=clips.labels,
        fit_config=fit_config,
        config={
            "dataset": manifest.name,
            "selection": SELECTION,
            "exemplars_while_selecting": "fit part of the training split",
            "exemplars_at_test": "whole training split",
            "best_epoch": list(trained.best_epoch),
            "validation_rho": list(trained.validation_rho),
            "validation_clips": [
                [clips.train.clip_id[row] for row in rows] for rows in trained.validation_rows
            ],
            "cache": {
                "folder": cache.folder.name,
                "fingerprint_sha256": cache.identity.fingerprint.sha256,
                "weights_sha256": cache.identity.fingerprint.weights_sha256,
            },
            "versions": {
                "aqa-pipeline": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "device": str(device),
        },
    )
    write_run(run, history=history_table(trained.history, HISTORY_COLUMNS))
    predictions = predict_clips(run, clips.test)
    measured = measure(run, predictions)
    write_predictions(folder, predictions_table(run, predictions))
    write_json_atomically(folder / "metrics.json", measured)
    return FitResult(run, predictions, measured)

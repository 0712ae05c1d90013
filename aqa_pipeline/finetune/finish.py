"""Results of a fine-tuning: tuned weights, their features in the cache, a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from aqa_pipeline.backbone.precision import FLOAT32
from aqa_pipeline.backbone.weights import WeightsInfo, weights_sha256, write_weights
from aqa_pipeline.cache.load import load_clips
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FinetuneConfig, FinetuneMachine
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import DataError
from aqa_pipeline.extraction.extract import ExtractSummary, Progress, extract_dataset
from aqa_pipeline.finetune.loop import HISTORY_COLUMNS
from aqa_pipeline.finetune.part import TunedPart
from aqa_pipeline.finetune.plan import PartPlan
from aqa_pipeline.runs.calibration import Calibration, held_out_clips
from aqa_pipeline.runs.config import FeatureSource, Provenance, RunConfig
from aqa_pipeline.runs.evaluate import measure, predict_clips, write_predictions
from aqa_pipeline.runs.folder import Run, history_table, write_run
from aqa_pipeline.runs.metrics import Metrics, write_metrics
from aqa_pipeline.training.validation import cross_fitted

BACKBONE_FILE = "backbone.safetensors"


def write_backbone(plan: PartPlan, tuned: TunedPart, parent: WeightsInfo) -> Path:
    """Write the tuned backbone beside the head; returns its file."""
    path = plan.folder / BACKBONE_FILE
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in tuned.model.backbone.state_dict().items()
    }
    info = dataclasses.replace(
        parent,
        path=path,
        layout="aqa",
        sha256=weights_sha256(state),
        source=f"fine-tuned on {plan.manifest.name} by aqa finetune; before: {parent.source}",
        parent_sha256=parent.sha256,
    )
    write_weights(state, path, info)
    return path


def extract_part(
    plan: PartPlan,
    backbone: Path,
    *,
    cache_root: Path,
    device: torch.device,
    machine: FinetuneMachine,
    progress: Progress,
) -> FeatureCache:
    """The part's clips into the cache of the tuned backbone; what is there already stays.

    Raises
    ------
    DataError
        A clip failed; the message says what to do.
    """
    wanted = {item.clip.clip_id for item in plan.located}
    clips = plan.manifest.clips[plan.manifest.clips["clip_id"].isin(wanted)]
    summary = extract_clips(
        dataclasses.replace(plan.manifest, clips=clips),
        backbone,
        cache_root=cache_root,
        device=device,
        machine=machine,
        progress=progress,
    )
    if summary.failures:
        first = summary.failures[0]
        raise DataError(
            f"the backbone is trained, but {len(summary.failures)} clips cannot be scored with it "
            f"({first.clip_id}: {first.error}); repair their videos or take them out of the "
            "manifest, then type the same command again: only this last part is done anew"
        )
    return summary.open_cache()


def extract_clips(
    manifest: Manifest,
    backbone: Path,
    *,
    cache_root: Path,
    device: torch.device,
    machine: FinetuneMachine = FinetuneMachine(),  # noqa: B008 - frozen
    progress: Progress = lambda done, total: None,
) -> ExtractSummary:
    """Extract with the tuned backbone, in float32 as it was validated; failed clips again."""
    return extract_dataset(
        manifest,
        cache_root=cache_root,
        weights=backbone,
        device=str(device),
        precision=FLOAT32,
        workers=machine.workers,
        clip_timeout_seconds=machine.clip_timeout_seconds,
        retry_failed=True,
        progress=progress,
    )


def write_tuned_run(
    plan: PartPlan,
    tuned: TunedPart,
    backbone: Path,
    parent: WeightsInfo,
    cache: FeatureCache,
    config: FinetuneConfig,
    device: torch.device,
) -> Metrics:
    """Write the run folder and read the test split, once; returns its metrics."""
    manifest, fit_config, head = plan.manifest, plan.fit_config, tuned.model.head
    at = tuned.position
    on_test = fit_config.model_selection == "test"
    train, test = (load_clips(manifest, cache, rows, plan.labels) for rows in plan.sides)
    fingerprint = cache.identity.fingerprint
    passes = plan.material.validation.passes()
    run = Run(
        folder=plan.folder,
        head=head,
        exemplars=train,
        protocol=manifest.protocol,
        labels=plan.labels,
        fit_config=fit_config,
        calibration=None if on_test else _calibration(plan, tuned, train),
        config=RunConfig.of(
            fit_config,
            head.config,
            dataset=manifest.name,
            part=plan.part,
            validation_of=plan.validation_of,
            best_epoch=(at.best_epoch,),
            selection_rho=(at.best_rho,),
            validation_clips=(tuple(train.clip_id[row] for row in plan.held_out),),
            best_relative_l2_of_any_epoch=(at.best_relative_l2,) if on_test else None,
            cache=FeatureSource(
                cache.folder.name, fingerprint.sha256, fingerprint.weights_sha256, BACKBONE_FILE
            ),
            finetune={
                "settings": plan.settings,
                "from_run": str(plan.start.folder) if plan.start else None,
                "parent_weights_sha256": parent.sha256,
                "precision": tuned.model.precision,
                "micro_batch_pairs": tuned.micro_batch_pairs,
                "learned_layers": tuned.model.trained_layers,
            },
            provenance=Provenance.now(device),
        ),
    )
    write_run(run, history=history_table([tuple(r) for r in at.history], HISTORY_COLUMNS))
    predictions = predict_clips(run, test)
    measured = measure(run, predictions)
    measured = dataclasses.replace(
        measured,
        finetune={
            "unfreeze": config.unfreeze,
            "best_epoch": at.best_epoch,
            "backbone_passes_of_a_validation": passes,
            "backbone_passes_of_all_validations": at.num_passes,
        },
    )
    write_predictions(run, predictions)
    write_metrics(plan.folder, measured)
    return measured


def _calibration(plan: PartPlan, tuned: TunedPart, train: FeatureSet) -> Calibration:
    """What was predicted for the clips held out, each at an epoch it did not help to choose."""
    rows = plan.held_out
    chosen = cross_fitted(
        np.array(tuned.position.judged_scores)[:, None],  # (epochs, 1, clips)
        train.score[rows][None],
        seeds=[plan.fit_config.seed],
    )
    return held_out_clips(train, rows[None], chosen)

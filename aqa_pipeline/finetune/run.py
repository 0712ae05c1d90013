"""Fine-tuning of a data set: backbone and head trained together, end to end.

A data set is one part, or one for each category, fold, or both, as in stage two. Each part
gets a tuned backbone of its own, its features in the cache and a complete run folder:

    pairs of clips ─► frames ─► I3D ─► GART ─► loss        tuning.step, tuning.loop
    best epoch ─► backbone.safetensors ─► feature cache ─► run folder, test read once

Source: Sec. 4.1 (Adam, 1e-3 for the head and 1e-4 for the backbone).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aqa_pipeline.backbone.precision import FLOAT32, computing_in
from aqa_pipeline.backbone.weights import load_i3d, weights_identity
from aqa_pipeline.cache.fingerprint import cache_folder, fingerprint_of
from aqa_pipeline.config import FinetuneConfig, FinetuneMachine, FitConfig, HeadConfig
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.parts import Part, parts_of
from aqa_pipeline.device import naming_shortage
from aqa_pipeline.errors import UsageError
from aqa_pipeline.extraction.extract import Progress
from aqa_pipeline.finetune.checkpoint import STATE_FILE, check_settings, read_state
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.draws import num_steps
from aqa_pipeline.finetune.finish import (
    BACKBONE_FILE,
    extract_clips,
    extract_part,
    write_backbone,
    write_tuned_run,
)
from aqa_pipeline.finetune.loop import ProgressCallback
from aqa_pipeline.finetune.part import require_tensorboard, train_part
from aqa_pipeline.finetune.plan import PartPlan, plan_part
from aqa_pipeline.finetune.start import read_start
from aqa_pipeline.runs.metrics import AverageMetrics, Metrics, read_metrics, write_metrics

_LOWER = "lower --pairs-at-once, or type --checkpointing, and go on with the same command"


def plan_finetune(
    manifest: Manifest,
    folder: Path,
    *,
    cache_root: Path,
    weights: Path,
    head_config: HeadConfig,
    fit_config: FitConfig,
    config: FinetuneConfig,
    start: Path | None = None,
) -> list[PartPlan]:
    """What would be trained, one entry a part; nothing is decoded.

    Parameters
    ----------
    manifest : Manifest
    folder : Path
        The run folder.
    cache_root : Path
    weights : Path
        Of the backbone to begin with.
    head_config, fit_config, config : HeadConfig, FitConfig, FinetuneConfig
        The head's is that of ``start``, if there is one.
    start : Path, optional
        A run folder whose heads are trained on; a fresh head otherwise.

    Raises
    ------
    AqaError
        As :func:`aqa_pipeline.finetune.plan.plan_part`.
    """
    sha256 = weights_identity(weights)
    return [
        plan_part(
            manifest,
            part,
            part.folder(folder),
            cache_root=cache_root,
            weights_sha256=sha256,
            head_config=head_config,
            fit_config=fit_config,
            config=config,
            start=read_start(part.folder(start)) if start is not None else None,
        )
        for part in parts_of(manifest)
    ]


def finetune_dataset(
    plans: Sequence[PartPlan],
    folder: Path,
    *,
    cache_root: Path,
    weights: Path,
    config: FinetuneConfig,
    machine: FinetuneMachine,
    device: torch.device,
    ranks: DistributedContext = DistributedContext(),  # noqa: B008 - frozen
    again: bool = False,
    then_extract: bool = False,
    progress: ProgressCallback = lambda now: None,
    extract_progress: Progress = lambda done, total: None,
) -> Metrics | AverageMetrics | None:
    """Train every part, extract its clips with the tuned backbone, write its run folder.

    An unfinished one goes on where it stopped; finished parts are left as they are.

    Parameters
    ----------
    plans : sequence of PartPlan
        See :func:`plan_finetune`.
    folder, cache_root, weights : Path
    config, machine : FinetuneConfig, FinetuneMachine
    device : torch.device
    ranks : DistributedContext
        This process among all; only the first writes.
    again : bool
        Begin anew, whatever is in the folder.
    then_extract : bool
        Afterwards extract all clips of the manifest, those in no split too.
    progress : callable
        Called with a :class:`~aqa_pipeline.finetune.loop.Progress` after every step.
    extract_progress : callable
        Called as ``extract_progress(done, total)`` with the clips extracted.

    Returns
    -------
    Metrics, AverageMetrics or None
        What ``metrics.json`` of ``folder`` holds; None in all processes but the first.

    Raises
    ------
    UsageError
        The folder holds a finished run, or an unfinished one with other settings.
    DataError
        A clip cannot be decoded, or there is nothing to learn.
    SetupError
        The machine lacks memory, a GPU, disk space or an extra.
    """
    if machine.tensorboard:
        require_tensorboard()
    finished = [not again and _is_finished(plan) for plan in plans]
    if all(finished):
        raise UsageError(
            f"{folder}: this fine-tuning is finished; `aqa evaluate {folder.name}` shows it, "
            "--again starts anew"
        )
    measured: list[tuple[Part, Metrics]] = []
    for plan, is_finished in zip(plans, finished, strict=True):
        if is_finished:
            known = read_metrics(plan.folder)
            if isinstance(known, Metrics):
                measured.append((plan.part, known))
            continue
        state = plan.folder / STATE_FILE
        saved = None
        if again and ranks.is_first:
            state.unlink(missing_ok=True)
        elif state.exists():
            saved = read_state(state)
            check_settings(state, saved.settings, plan.settings)
        ranks.wait()
        parent = load_i3d(weights)[1]
        # The flags are the process's: each part begins with the same ones, and leaves none behind.
        with naming_shortage(device, _LOWER), computing_in(FLOAT32):
            tuned = train_part(
                plan, weights=weights, config=config, machine=machine, device=device, ranks=ranks,
                saved=saved, progress=progress, cache_root=cache_root,
            )  # fmt: skip
        backbone = plan.folder / BACKBONE_FILE
        if ranks.is_first:
            write_backbone(plan, tuned, parent)
        ranks.wait()
        with naming_shortage(device, "end what else uses it and type the same command again"):
            cache = extract_part(
                plan, backbone, cache_root=cache_root, device=device, machine=machine,
                progress=extract_progress,
            )  # fmt: skip
        if ranks.is_first:
            measured.append(
                (plan.part, write_tuned_run(plan, tuned, backbone, parent, cache, config, device))
            )
            state.unlink(missing_ok=True)
    if not ranks.is_first:
        return None
    metrics: Metrics | AverageMetrics = measured[0][1]
    if len(plans) > 1 or plans[0].folder != folder:
        metrics = AverageMetrics.of(measured, rho_average=plans[0].manifest.protocol.rho_average)
        (folder / "config.json").unlink(missing_ok=True)  # of an earlier run without parts
        write_metrics(folder, metrics)
    if then_extract:
        for plan in plans:
            extract_clips(
                plan.clips_of_category,
                plan.folder / BACKBONE_FILE,
                cache_root=cache_root,
                device=device,
                progress=extract_progress,
            )
    return metrics


def summary(plan: PartPlan) -> dict[str, Any]:
    """Size of a part's training, and how far an unfinished one has come; plain values."""
    state = plan.folder / STATE_FILE
    at = read_state(state).position if state.exists() else None
    num_fit = len(plan.material.fit)
    steps = num_steps(num_fit, plan.fit_config.batch_size)
    return {
        "train_clips": plan.num_train,
        "to_learn_from": num_fit,
        "chosen_by": len(plan.material.validation.judged),
        "test_clips": len(plan.sides.test),
        "epochs": plan.fit_config.epochs,
        "steps_an_epoch": steps,
        "steps_done": (at.epoch - 1) * steps + at.step if at else 0,
        "passes_of_a_validation": plan.material.validation.passes(),
    }


def tuned_cache(plan: PartPlan, *, cache_root: Path) -> Path:
    """Folder of the features by the part's tuned backbone."""
    sha256 = weights_identity(plan.folder / BACKBONE_FILE)
    fingerprint = fingerprint_of(plan.manifest.protocol, weights_sha256=sha256)
    return cache_folder(cache_root, plan.manifest.name, fingerprint)


def _is_finished(plan: PartPlan) -> bool:
    """Whether the folder holds this very fine-tuning, done.

    Raises
    ------
    UsageError
        It holds another run.
    """
    path = plan.folder / "config.json"
    if not path.exists() or (plan.folder / STATE_FILE).exists():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    settings = config.get("finetune", {}).get("settings")
    if settings is None:
        raise UsageError(
            f"{plan.folder}: holds a run that is no fine-tuning; type --again to replace it, or "
            "give this one another name with --run"
        )
    check_settings(path, settings, plan.settings)
    return (plan.folder / "metrics.json").exists()

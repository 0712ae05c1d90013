"""Fine-tuning of one part: from its plan to backbone and head at their best epoch.

Curves go to TensorBoard, an extra, where it is asked for; history.csv has the same numbers
without it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.config import PIXEL_PRESETS, FinetuneConfig, FinetuneMachine
from aqa_pipeline.datasets.locate import video_index_folder
from aqa_pipeline.errors import SetupError
from aqa_pipeline.extraction.extract import default_workers
from aqa_pipeline.finetune.checkpoint import STATE_FILE, SavedState, TrainerState
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.folded import lay_out_channels_last
from aqa_pipeline.finetune.frames import FrameStore, decode_tasks, used_frames
from aqa_pipeline.finetune.loop import Progress, ProgressCallback, TuningLoop
from aqa_pipeline.finetune.model import (
    PairModel,
    find_pairs_at_once,
    free_cpu_bytes,
    resolve_precision,
    unfreeze,
)
from aqa_pipeline.finetune.plan import PartPlan
from aqa_pipeline.finetune.start import fresh_head
from aqa_pipeline.finetune.step import TrainStep
from aqa_pipeline.finetune.validation import ClipFeatures
from aqa_pipeline.media.decode_pool import DecodePool

_STEPS_ON_GPU = 3  #: whose frames are there at once: computed, ready, and just let go


@dataclass(frozen=True, eq=False)
class TunedPart:
    """One part after training.

    Attributes
    ----------
    model : PairModel
        At its best epoch.
    position : TrainerState
        At the end: the best epoch, history, what was predicted meanwhile.
    micro_batch_pairs : int
    """

    model: PairModel
    position: TrainerState
    micro_batch_pairs: int


def train_part(
    plan: PartPlan,
    *,
    weights: Path,
    config: FinetuneConfig,
    machine: FinetuneMachine,
    device: torch.device,
    ranks: DistributedContext,
    saved: SavedState | None,
    progress: ProgressCallback,
    cache_root: Path,
) -> TunedPart:
    """Train a part from the beginning, or from a saved state, to its end.

    Parameters
    ----------
    plan : PartPlan
    weights : Path
        Of the backbone to begin with.
    config, machine : FinetuneConfig, FinetuneMachine
    device : torch.device
    ranks : DistributedContext
    saved : SavedState or None
    progress : callable
        Called with a :class:`~aqa_pipeline.finetune.loop.Progress` after every step.
    cache_root : Path

    Raises
    ------
    DataError
        A clip cannot be decoded, or there is nothing to learn.
    """
    protocol, material = plan.manifest.protocol, plan.material
    pixels, (used, snippets) = PIXEL_PRESETS[protocol.pixels], used_frames(protocol)
    backbone = load_i3d(weights)[0].to(device)
    if device.type != "cpu":
        lay_out_channels_last(backbone)
    unfreeze(backbone, config.unfreeze)
    memory = machine.frame_memory_gib
    memory_bytes = free_cpu_bytes() / 4 if memory is None else memory * 2**30
    tasks = decode_tasks(
        plan.located,
        protocol,
        shift_frames=plan.augmentation.shift_frames,
        jitter=plan.augmentation.jitter,
        index_folder=video_index_folder(cache_root),
    )
    with ExitStack() as stack:
        pool = stack.enter_context(
            DecodePool(
                workers=machine.workers
                or max(1, default_workers(device.type) // ranks.local_world),
                clip_timeout_seconds=machine.clip_timeout_seconds,
            )
        )
        frames = FrameStore(tasks, pool=pool, memory_bytes=int(memory_bytes / ranks.local_world))
        encoder = ClipFeatures(
            frames, snippets=snippets, pixels=pixels, jitter=plan.augmentation.jitter,
            device=device, ranks=ranks,
        )  # fmt: skip
        if plan.start is not None:
            head = plan.start.head
        else:
            rows = material.fit.tolist()
            head = fresh_head(
                plan.head_config,
                plan.train,
                material.fit,
                # Of a state to be restored everything is replaced but shapes and groups.
                np.ones((len(rows), len(snippets), backbone.classifier.in_channels), np.float32)
                if saved
                else encoder.encode(backbone, rows, progress=_before(progress, plan)),
                score_range=protocol.score_range,
                epsilon=protocol.epsilon,
                seed=plan.fit_config.seed,
            )
        model = PairModel(
            backbone,
            head.to(device),
            snippets=snippets,
            pixels=pixels,
            precision=resolve_precision(config.precision, device),
            checkpointing=machine.checkpointing,
        ).to(device)
        box_bytes = 3 * (pixels.crop + 2 * plan.augmentation.jitter) ** 2
        own = -(-plan.fit_config.batch_size // ranks.world)  # pairs of a step in this process
        micro_batch_pairs = machine.micro_batch_pairs or (
            saved.micro_batch_pairs
            if saved
            else find_pairs_at_once(
                model,
                crop=pixels.crop,
                num_frames=len(used),
                most=own,
                reserved_bytes=_STEPS_ON_GPU * 2 * own * len(used) * box_bytes,
            )
        )
        stepper = TrainStep(
            model,
            label=torch.from_numpy(material.clips.label).to(device),
            fit_config=plan.fit_config,
            config=config,
            ranks=ranks,
            micro_batch_pairs=micro_batch_pairs,
        )
        callbacks = [progress]
        if machine.tensorboard and ranks.is_first:
            steps = -(-len(material.fit) // plan.fit_config.batch_size)
            at = saved.position if saved else None
            done = (at.epoch - 1) * steps + at.step if at else 0
            callbacks.append(stack.enter_context(tensorboard_log(plan.folder, done=done)))

        def call_all(now: Progress) -> None:
            for callback in callbacks:
                callback(now)

        loop = TuningLoop(
            stepper,
            encoder,
            frames,
            material,
            augmentation=plan.augmentation,
            fit_config=plan.fit_config,
            config=config,
            machine=dataclasses.replace(machine, micro_batch_pairs=micro_batch_pairs),
            state_path=plan.folder / STATE_FILE,
            settings=plan.settings,
            ranks=ranks,
            progress=call_all,
        )
        if saved is not None:
            loop.resume(saved)
        loop.run()
    return TunedPart(model, loop.position, micro_batch_pairs)


def _before(progress: ProgressCallback, plan: PartPlan) -> Callable[[int, int], None]:
    """Progress of the features that a fresh head needs before the first step."""
    steps = -(-len(plan.material.fit) // plan.fit_config.batch_size)
    nothing = Progress(
        done=0,
        total=plan.fit_config.epochs * steps,
        epoch=0,
        epochs=plan.fit_config.epochs,
        classification=float("nan"),
        regression=float("nan"),
        head_learning_rate=0.0,
        backbone_learning_rate=0.0,
    )
    return lambda done, total: progress(dataclasses.replace(nothing, validating=(done, total)))


def require_tensorboard() -> None:
    """Say so before the work begins, not after.

    Raises
    ------
    SetupError
        If the extra is not installed.
    """
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise SetupError(
            "--tensorboard needs an extra: type `pip install 'aqa-pipeline[tensorboard]'`"
        ) from None


@contextmanager
def tensorboard_log(folder: Path, *, done: int) -> Iterator[Callable[[Progress], None]]:
    """Yields what takes each :class:`Progress`; curves go to ``folder/tensorboard``.

    Parameters
    ----------
    folder : Path
        The run folder.
    done : int
        Steps done before; what an interrupted run wrote of later ones is hidden.
    """
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def note(progress: Progress) -> None:
        values = {
            "loss/classification": progress.classification,
            "loss/regression": progress.regression,
            "learning_rate/head": progress.head_learning_rate,
            "learning_rate/backbone": progress.backbone_learning_rate,
            "clips_per_second": progress.clips_per_second,
            "selection_rho": progress.selection_rho,
        }
        if progress.validating is None:
            for name, value in values.items():
                if value == value:
                    writer.add_scalar(name, value, progress.done)

    try:
        yield note
    finally:
        writer.close()

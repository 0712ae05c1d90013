"""Epochs of a fine-tuning: steps, validation, saving and resuming.

Test-set model selection evaluates on the test split (:mod:`aqa_pipeline.training.selection`).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.config import FinetuneConfig, FinetuneMachine, FitConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import relative_l2, spearman
from aqa_pipeline.finetune.checkpoint import (
    HeldSignals,
    SavedState,
    TrainerState,
    held_signals,
    learned,
    put_learned,
    restore,
    write_state,
)
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.draws import Augmentation, StepDraw, draw_epoch, num_steps
from aqa_pipeline.finetune.frames import FrameStore, cut
from aqa_pipeline.finetune.step import FramesOf, StepOutcome, TrainStep, learning_rate_factor
from aqa_pipeline.finetune.upload import Uploads
from aqa_pipeline.finetune.validation import ClipFeatures, ValidationPlan
from aqa_pipeline.runs.folder import history_table

IntArray = npt.NDArray[np.int64]

#: Columns of history.csv, one row an epoch; the first six as stage two writes them.
HISTORY_COLUMNS = (
    "seed", "epoch", "loss", "classification", "regression", "selection_rho",
    "head_learning_rate", "backbone_learning_rate",
)  # fmt: skip

_RATE_SECONDS = 60.0  #: clips a second are taken over about this time


@dataclass(frozen=True)
class Progress:
    """State of a training after a step, and now and then during a validation.

    Attributes
    ----------
    done, total : int
        Steps, over all epochs.
    epoch, epochs : int
    classification, regression : float
        Means over the epoch so far; NaN before its first step.
    head_learning_rate, backbone_learning_rate : float
    clips_per_second : float
        Through the network; 0 when not known yet.
    validating : tuple of (int, int) or None
        Clips encoded and to be encoded for the validation under way.
    selection_rho : float
        Of the last validation; NaN before the first.
    """

    done: int
    total: int
    epoch: int
    epochs: int
    classification: float
    regression: float
    head_learning_rate: float
    backbone_learning_rate: float
    clips_per_second: float = 0.0
    validating: tuple[int, int] | None = None
    selection_rho: float = math.nan


ProgressCallback = Callable[[Progress], None]


class StoppedError(BaseException):
    """A signal was noted: unwinds to where the state was saved."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The clips of a fine-tuning.

    Attributes
    ----------
    clips : FeatureSet
        Those of the training split, then the test clips; features are not looked at.
    fit : ndarray of int64, shape=(n,)
        Rows to learn from.
    groups : ndarray of int64, shape=(N,)
        Exemplar group of each row of the training split.
    validation : ValidationPlan
    """

    clips: FeatureSet
    fit: IntArray
    groups: IntArray
    validation: ValidationPlan


class TuningLoop:
    """Trains to the end, or until a signal comes.

    Parameters
    ----------
    stepper : TrainStep
    encoder : ClipFeatures
    frames : FrameStore
    material : TrainingData
    augmentation : Augmentation
    fit_config, config, machine : FitConfig, FinetuneConfig, FinetuneMachine
        ``machine.micro_batch_pairs`` is resolved.
    state_path : Path
    settings : dict
        See :class:`~aqa_pipeline.finetune.checkpoint.SavedState`.
    ranks : DistributedContext
    progress : callable
        Called with a :class:`Progress` after every step.

    Attributes
    ----------
    position : TrainerState
    best : dict of str to Tensor
        What was learned at the best epoch so far.
    """

    def __init__(
        self,
        stepper: TrainStep,
        encoder: ClipFeatures,
        frames: FrameStore,
        material: TrainingData,
        *,
        augmentation: Augmentation,
        fit_config: FitConfig,
        config: FinetuneConfig,
        machine: FinetuneMachine,
        state_path: Path,
        settings: Mapping[str, Any],
        ranks: DistributedContext,
        progress: ProgressCallback = lambda now: None,
    ) -> None:
        self._stepper, self._encoder, self._frames = stepper, encoder, frames
        self._material, self._augmentation = material, augmentation
        self._fit_config, self._config, self._machine = fit_config, config, machine
        self._state_path, self._settings, self._ranks = state_path, settings, ranks
        self._progress = progress
        # On a CPU there is nothing to copy, and no time beside the network's.
        self._uploads = (
            Uploads(frames.tasks, jitter=augmentation.jitter, device=encoder.device)
            if encoder.device.type == "cuda"
            else None
        )
        self._steps = num_steps(len(material.fit), fit_config.batch_size)
        self.position = TrainerState()
        self.best: dict[str, Tensor] = {}
        self._pace = _Pace()

    def resume(self, saved: SavedState) -> None:
        """Go back to a saved state."""
        self.best = restore(
            saved,
            model=self._stepper.model,
            optimiser=self._stepper.optimiser,
            scaler=self._stepper.scaler,
        )
        self.position = replace(saved.position)
        if self._done():  # what the last step had; a validation may come before the next one
            self._stepper.set_rates(self._factor(self._done() - 1))

    def run(self) -> None:
        """Train to the end and put the best epoch's weights back.

        SIGINT and SIGTERM end it after the step under way, with the state saved; their own
        exception is raised then.
        """
        with held_signals() as held:
            try:
                self._epochs(held)
            except StoppedError:
                return  # the signal takes effect as the block ends
        put_learned(self._stepper.model, self.best)

    def _epochs(self, held: HeldSignals) -> None:
        position = self.position
        while position.epoch <= self._fit_config.epochs:
            self._train_epoch(held)
            self._validate(held)
            self._write_history()
            position.epoch, position.step = position.epoch + 1, 0
            position.classification = position.regression = 0.0
            self.save()
            self._stop_if_asked(held, saved=True)

    def _train_epoch(self, held: HeldSignals) -> None:
        position = self.position
        draws = draw_epoch(
            self._material.fit,
            self._material.groups,
            batch_size=self._fit_config.batch_size,
            augmentation=self._augmentation,
            seed=self._fit_config.seed,
            epoch=position.epoch,
        )[position.step :]
        with closing(self._frames_of_steps(draws)) as steps:
            for draw, frames in zip(draws, steps, strict=True):
                self._train_step(draw, frames)
                if position.step % self._machine.save_every == 0:
                    self.save()
                self._stop_if_asked(held)

    def _frames_of_steps(self, draws: Sequence[StepDraw]) -> Generator[FramesOf, None, None]:
        needs = [self._stepper.own_rows(draw) for draw in draws]
        with closing(self._frames.follow(needs)) as following:
            if self._uploads is None:
                for draw, boxes in zip(draws, following, strict=True):
                    yield partial(self._cut, draw, boxes)
                return
            with closing(self._uploads.ahead(draws, following)) as uploaded:
                yield from uploaded

    def _cut(
        self, draw: StepDraw, boxes: Mapping[int, npt.NDArray[np.uint8]], rows: Sequence[int]
    ) -> Tensor:
        tasks, jitter = self._frames.tasks, self._augmentation.jitter
        views = [cut(boxes[row], tasks[row], draw.views[row], jitter=jitter) for row in rows]
        return torch.from_numpy(np.stack(views))

    def _train_step(self, draw: StepDraw, frames: FramesOf) -> None:
        position = self.position
        self._stepper.set_rates(self._factor(self._done()))
        outcome = self._stepper.step(draw, frames)
        position.step += 1
        position.classification += outcome.classification * len(draw.pairs)
        position.regression += outcome.regression * len(draw.pairs)
        self._pace.add(outcome)
        self._report()

    def _factor(self, step: int) -> float:
        total = self._fit_config.epochs * self._steps
        return learning_rate_factor(self._config, step=step, total=total)

    def _validate(self, held: HeldSignals) -> None:
        position, plan = self.position, self._material.validation

        def after_clips(done: int, total: int) -> None:
            if self._ranks.world == 1:  # several stop together, at a step
                self._stop_if_asked(held)
            self._report(validating=(done, total))

        features = self._encoder.encode(
            self._stepper.model.backbone, plan.needed, progress=after_clips
        )
        position.num_passes += len(plan.needed)
        scores = plan.predict(self._stepper.model.head, features, self._material.clips)
        position.judged_scores.append(scores.tolist())
        true = self._material.clips.score[plan.judged]
        rho, error = spearman(true, scores), relative_l2(true, scores)
        if position.best_relative_l2 is None or error < position.best_relative_l2:
            position.best_relative_l2 = None if math.isnan(error) else error
        # Where rho is not defined (all predictions equal) any later epoch is preferred.
        if position.best_rho is None or rho > position.best_rho:
            position.best_rho = None if math.isnan(rho) else rho
            position.best_epoch = position.epoch
            self.best = {
                name: value.detach().clone() for name, value in learned(self._stepper.model).items()
            }
        count = len(self._material.fit)
        losses = position.classification / count, position.regression / count
        position.history.append(
            [self._fit_config.seed, position.epoch, sum(losses), *losses, rho,
             *self._stepper.learning_rates]
        )  # fmt: skip
        self._report()

    def _stop_if_asked(self, held: HeldSignals, *, saved: bool = False) -> None:
        """Save and unwind if a signal came to any process."""
        if self._ranks.any(held.number is not None, self._encoder.device):
            if not saved:
                self.save()
            if held.number is None:  # it came to another process: this one ends alike
                held.number = signal.SIGTERM
            raise StoppedError

    def save(self) -> None:
        """Write the state file; only the first process does."""
        if not self._ranks.is_first:
            return
        write_state(
            self._state_path,
            settings=self._settings,
            position=self.position,
            micro_batch_pairs=self._machine.micro_batch_pairs or 1,
            model=self._stepper.model,
            best=self.best,
            optimiser=self._stepper.optimiser,
            scaler=self._stepper.scaler,
        )

    def _write_history(self) -> None:
        """``history.csv`` as far as it goes, for who watches; the finished run has it too."""
        if self._ranks.is_first:
            rows = [tuple(row) for row in self.position.history]
            with atomic_path(self._state_path.with_name("history.csv")) as temporary:
                history_table(rows, HISTORY_COLUMNS).to_csv(temporary, index=False)

    def _done(self) -> int:
        return (self.position.epoch - 1) * self._steps + self.position.step

    def _report(self, validating: tuple[int, int] | None = None) -> None:
        position = self.position
        seen = min(position.step * self._fit_config.batch_size, len(self._material.fit))
        head, backbone = self._stepper.learning_rates
        last_rho = position.history[-1][5] if position.history else math.nan
        self._progress(
            Progress(
                done=self._done(),
                total=self._fit_config.epochs * self._steps,
                epoch=position.epoch,
                epochs=self._fit_config.epochs,
                classification=position.classification / seen if seen else math.nan,
                regression=position.regression / seen if seen else math.nan,
                head_learning_rate=head,
                backbone_learning_rate=backbone,
                clips_per_second=self._pace.clips_per_second,
                validating=validating,
                selection_rho=math.nan if last_rho is None else last_rho,
            )
        )


class _Pace:
    """Clips a second through the network over the last minute or so."""

    def __init__(self) -> None:
        self._since, self._clips = time.monotonic(), 0
        self.clips_per_second = 0.0

    def add(self, outcome: StepOutcome) -> None:
        self._clips += outcome.num_clips
        seconds = time.monotonic() - self._since
        if seconds > 0:
            self.clips_per_second = self._clips / seconds
        if seconds > _RATE_SECONDS:
            self._since, self._clips = time.monotonic(), 0

"""One step of the optimiser over a batch of pairs, in micro-batches and processes.

Conventions
-----------
step
    The pairs of one update of the weights, over all processes.
chunk
    Those of a process that go through the network together.

Whatever the cut, the gradient is that of the mean loss over the step's pairs in both
orders: each chunk counts with its share of all the step's pairs. A clip is encoded once a
step in each process; one that several chunks use is encoded first, collects the gradients
of its features from all of them, and goes back through the backbone with the last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aqa_pipeline.config import FinetuneConfig, FitConfig
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.draws import StepDraw, chunks, in_several, rows_of, share
from aqa_pipeline.finetune.model import PairModel

IntArray = npt.NDArray[np.int64]

#: Frames of rows in their views, uint8 (len(rows), m, crop, crop, 3), on the model's device.
FramesOf = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class StepOutcome:
    """What one step did, over all processes.

    Attributes
    ----------
    classification, regression : float
        A mean over the step's ordered pairs.
    num_clips : int
        Clips that went through the backbone.
    """

    classification: float
    regression: float
    num_clips: int


def learning_rate_factor(config: FinetuneConfig, *, step: int, total: int) -> float:
    """What the learning rates are multiplied with in a step.

    Parameters
    ----------
    config : FinetuneConfig
    step : int
        From 0, over all epochs.
    total : int
        Steps in all.

    Returns
    -------
    float
        Rises from ``1 / warmup_steps`` to 1 over the warm-up; then stays, or falls along a
        cosine to nearly 0 at the last step.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    rest = max(total - config.warmup_steps, 1)
    return 0.5 * (1 + float(np.cos(np.pi * (step - config.warmup_steps) / rest)))


class TrainStep:
    """The weights, and how a step changes them.

    Parameters
    ----------
    model : PairModel
        On its device.
    label : Tensor of float64, shape=(N,)
        Of every row, in label points.
    fit_config, config : FitConfig, FinetuneConfig
    ranks : DistributedContext
    micro_batch_pairs : int
        Largest chunk.

    Attributes
    ----------
    optimiser : torch.optim.Adam
        Its groups are the head's parameters and the backbone's.
    scaler : torch.amp.GradScaler
        Does nothing unless the backbone computes in float16.
    """

    def __init__(
        self,
        model: PairModel,
        *,
        label: Tensor,
        fit_config: FitConfig,
        config: FinetuneConfig,
        ranks: DistributedContext = DistributedContext(),  # noqa: B008 - frozen
        micro_batch_pairs: int,
    ) -> None:
        self.model, self._config, self._ranks = model, config, ranks
        self._label, self._pairs_at_once = label, micro_batch_pairs
        self._device = label.device
        self._base_rates = (fit_config.learning_rate, config.backbone_learning_rate)
        trained = [p for p in model.backbone.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(
            [
                {"params": list(model.head.parameters()), "lr": fit_config.learning_rate},
                {"params": trained, "lr": config.backbone_learning_rate},
            ],
            weight_decay=fit_config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=model.precision == "float16")
        self._wrapped: nn.Module = model
        if ranks.world > 1:
            # The buffers are constants and equal everywhere.
            self._wrapped = nn.parallel.DistributedDataParallel(
                model,
                device_ids=[self._device] if self._device.type == "cuda" else None,
                broadcast_buffers=False,
            )

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Of the head and of the backbone, as in the last step."""
        head, backbone = self.optimiser.param_groups
        return float(head["lr"]), float(backbone["lr"])

    def set_rates(self, factor: float) -> None:
        """Set the learning rates to this part of what the configuration says."""
        for group, rate in zip(self.optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def step(self, draw: StepDraw, frames: FramesOf) -> StepOutcome:
        """Change the weights once.

        Parameters
        ----------
        draw : StepDraw
            The pairs of the step, over all processes.
        frames : callable
            Gives the frames of some rows; asked for those of :meth:`own_rows`, once each.
        """
        self.optimiser.zero_grad(set_to_none=True)
        outcome = self.backward(draw, frames)
        if self._config.clip_norm is not None:
            self.scaler.unscale_(self.optimiser)
            parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return outcome

    def own_pairs(self, draw: StepDraw) -> tuple[IntArray, float]:
        """This process's pairs and how much each counts.

        A process without any pair takes the first one for nothing, since all have to take
        part in the sum of the gradients.
        """
        own = share(draw.pairs, rank=self._ranks.rank, world=self._ranks.world)
        return (own, 1.0) if len(own) else (draw.pairs[:1], 0.0)

    def own_rows(self, draw: StepDraw) -> list[int]:
        """Clips whose frames this process needs."""
        return rows_of(self.own_pairs(draw)[0])

    def backward(self, draw: StepDraw, frames: FramesOf) -> StepOutcome:
        """Gradients of a step's mean loss, added to what the parameters hold."""
        pairs, counts = self.own_pairs(draw)
        parts = chunks(pairs, self._pairs_at_once)
        shared = in_several(parts)
        # DistributedDataParallel takes the mean over processes; we want the sum.
        scale = counts * self._ranks.world / len(draw.pairs)
        outputs = self.model.encode(frames(shared)) if shared else None
        leaves = outputs.detach().requires_grad_() if outputs is not None else None
        total = torch.zeros(3, dtype=torch.float64, device=self._device)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            source = outputs if is_last else leaves
            new = [row for row in rows_of(part) if row not in shared]
            known = [row for row in rows_of(part) if row in shared]
            encoded = None
            if source is not None and known:
                index = self._on_device([shared.index(row) for row in known])
                encoded = source.index_select(0, index)
            with self._gradients_summed(is_last):
                losses = self._wrapped(
                    frames(new) if new else None,
                    encoded,
                    self._positions(part, [*new, *known]),
                    self._label.index_select(0, self._on_device([*new, *known])),
                )
                loss = self.scaler.scale(losses.sum() * (scale * len(part)))
                if is_last and outputs is not None and leaves is not None:
                    # Its derivative by what was learned is what the earlier chunks ask for.
                    asked = torch.zeros_like(leaves) if leaves.grad is None else leaves.grad
                    loss = loss + (outputs * asked).sum()
                loss.backward()
            weight = counts * len(part) / len(draw.pairs)
            total[:2] += losses.detach().double() * weight
        total[2] = len(rows_of(pairs))
        classification, regression, clips = self._ranks.sum(total).tolist()
        return StepOutcome(classification, regression, int(clips))

    def _gradients_summed(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """The processes exchange gradients once a step, with the last chunk."""
        wrapped = self._wrapped
        if is_last or not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()

    def _positions(self, pairs: IntArray, rows: Sequence[int]) -> Tensor:
        position: Mapping[int, int] = {row: i for i, row in enumerate(rows)}
        return self._on_device([[position[a], position[b]] for a, b in pairs.tolist()])

    def _on_device(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Numbers as int64 on the device; a GPU does not wait for what it has to do before."""
        values = torch.tensor(numbers, dtype=torch.int64)
        if self._device.type == "cuda":
            return values.pin_memory().to(self._device, non_blocking=True)
        return values.to(self._device)

"""Training a stack of heads on features in memory.

Conventions
-----------
K
    Models trained side by side, one for each seed: each has its own initial weights, its
    own validation part, its own pair draws.
fit part, validation part
    The training split cut in two (:mod:`aqa_pipeline.training.validation`). The epoch with the
    highest Spearman's rho on the validation part is kept; exemplars come from the fit part
    throughout.

Source: Sec. 3.1-3.2 and 4.1.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.device import is_shortage, release_memory, too_large
from aqa_pipeline.heads.head import Head, Regressor
from aqa_pipeline.training.stack import Stack
from aqa_pipeline.training.validation import cross_fitted

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Columns of history.csv, one row a model and epoch. The last is the rho of the clips that
#: choose the epoch: of the validation part, or of the test split in test-set model selection.
HISTORY_COLUMNS = ("seed", "epoch", "loss", "classification", "regression", "selection_rho")

_log = logging.getLogger(__name__)

HeadT = TypeVar("HeadT", bound=Regressor)


@dataclass(frozen=True, eq=False)
class TrainedHeads(Generic[HeadT]):
    """The outcome of training.

    Attributes
    ----------
    head : Regressor
        Each model at its best epoch.
    best_epoch : tuple of int
        1-based, one a model.
    selection_rho : tuple of float
        Spearman's rho of each model at that epoch, on the clips that chose it.
    best_relative_l2 : tuple of float
        Lowest R-l2 of each model on those clips, at any epoch.
    validation_rows : ndarray of int64, shape=(K, n)
        Positions of each model's validation part in the training split; n = 0 in test-set
        model selection.
    held_out_scores : ndarray of float64, shape=(K, n)
        What each model predicts for these clips, in points, at an epoch that they had no
        part in choosing (:mod:`aqa_pipeline.training.validation`).
    history : list of tuple
        Rows of ``history_columns``.
    """

    head: HeadT
    best_epoch: tuple[int, ...]
    selection_rho: tuple[float, ...]
    best_relative_l2: tuple[float, ...]
    validation_rows: IntArray
    held_out_scores: FloatArray
    history: list[tuple[float, ...]]
    history_columns: tuple[str, ...] = HISTORY_COLUMNS


def train_heads(
    train: FeatureSet,
    *,
    head_config: HeadConfig,
    config: FitConfig,
    score_range: float | None,
    epsilon: float | None,
    device: torch.device,
    test: FeatureSet | None = None,
    views: npt.NDArray[np.float32] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainedHeads[Head]:
    """Train one head a seed and keep each at its best epoch.

    The heads train side by side; if memory runs out, half of them at a time.

    Parameters
    ----------
    train : FeatureSet
        The whole training split; a validation part is held out of it.
    head_config, config : HeadConfig, FitConfig
    score_range, epsilon : float or None
        See :class:`~aqa_pipeline.config.Protocol`.
    device : torch.device
    test : FeatureSet, optional
        Only for test-set model selection: nothing is held out, and these clips choose the
        epoch.
    views : ndarray of float32, shape=(N, V, S or 1, D), optional
        See :class:`~aqa_pipeline.training.stack.Stack`.
    progress : callable
        Called as ``progress(done, total)``, in epochs.

    Raises
    ------
    DataError
        If the labels cannot be learned from: one is not finite, all are equal, or no two
        clips share an exemplar group.
    SetupError
        If memory runs out with a single head.
    """
    count = config.num_seeds
    while True:
        starts = range(0, config.num_seeds, count)
        parts: list[TrainedHeads[Head]] = []
        try:
            for number, start in enumerate(starts):
                own = dataclasses.replace(
                    config, seed=config.seed + start, num_seeds=min(count, config.num_seeds - start)
                )

                def progress_of_all(
                    done: int, total: int, number: int = number, of: int = len(starts)
                ) -> None:
                    progress((number * total + done) // of, total)

                parts.append(
                    _train_stack(
                        train,
                        head_config=head_config,
                        config=own,
                        score_range=score_range,
                        epsilon=epsilon,
                        device=device,
                        test=test,
                        views=views,
                        vote_seed=config.seed,
                        progress=progress_of_all,
                    )
                )
            return _side_by_side(parts)
        except RuntimeError as error:
            if not is_shortage(error):
                raise
        parts.clear()
        release_memory(device)
        if count == 1:
            raise too_large(device)
        count = -(-count // 2)
        _log.warning("memory ran out: training again, %d heads side by side", count)


def _side_by_side(parts: Sequence[TrainedHeads[Head]]) -> TrainedHeads[Head]:
    """Heads of several stacks as if they had trained in one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for modules in zip(*(part.head.modules() for part in parts), strict=True):
        for name, parameter in modules[0].named_parameters(recurse=False):
            parameter.data = torch.cat([getattr(m, name).detach() for m in modules])
        for name, _ in list(modules[0].named_buffers(recurse=False)):
            modules[0].register_buffer(name, torch.cat([getattr(m, name) for m in modules]))
    first.head.num_models = sum(part.head.num_models for part in parts)

    def together(name: str) -> Any:
        return tuple(value for part in parts for value in getattr(part, name))

    return TrainedHeads(
        head=first.head,
        best_epoch=together("best_epoch"),
        selection_rho=together("selection_rho"),
        best_relative_l2=together("best_relative_l2"),
        validation_rows=np.concatenate([part.validation_rows for part in parts]),
        held_out_scores=np.concatenate([part.held_out_scores for part in parts]),
        history=sorted(together("history"), key=lambda row: row[1]),  # by epoch
    )


def _train_stack(
    train: FeatureSet,
    *,
    head_config: HeadConfig,
    config: FitConfig,
    vote_seed: int,
    progress: Callable[[int, int], None],
    **data: Any,
) -> TrainedHeads[Head]:
    stack = Stack(
        train,
        [ModelSettings.of(config, head_config)],
        head_config=head_config,
        config=config,
        vote_seed=vote_seed,
        **data,
    )
    history: list[tuple[float, ...]] = []
    for epoch in range(1, config.epochs + 1):
        losses, rho = stack.run_epoch()
        for k, seed in enumerate(stack.seeds):
            classification, regression = losses[:, k].tolist()
            history.append(
                (seed, epoch, classification + regression, classification, regression, rho[k])
            )
        progress(epoch, config.epochs)
    selection, held_out = stack.selection, stack.held_out
    selection.restore()
    return TrainedHeads(
        head=stack.head,
        best_epoch=tuple(selection.best_epoch),
        selection_rho=tuple(selection.best_rho),
        best_relative_l2=tuple(selection.best_relative_l2),
        validation_rows=held_out,
        held_out_scores=cross_fitted(
            np.stack(selection.validation_scores), train.score[held_out], seeds=stack.seeds
        ),
        history=history,
    )

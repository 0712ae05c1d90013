"""Training a stack of heads on features in memory.

Conventions
-----------
K
    Models trained side by side, one for each seed: each has its own initial weights, its
    own validation part, its own pair draws.
fit part, validation part
    The training split cut in two (:mod:`aqa_pipeline.division`). The epoch with the highest
    Spearman's rho on the validation part is kept; exemplars come from the fit part
    throughout.

Source: Sec. 3.1-3.2 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.cross_selection import cross_selected
from aqa_pipeline.division import divide
from aqa_pipeline.errors import DataError
from aqa_pipeline.featureset import FeatureSet
from aqa_pipeline.heads import Head, Regressor
from aqa_pipeline.pairs import ExemplarKeys, pair_deltas
from aqa_pipeline.selection import Selection
from aqa_pipeline.training_loop import TrainingLoop
from aqa_pipeline.trunks import fit_trunk

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Columns of history.csv, one row a model and epoch. The last is the rho of the clips that
#: choose the epoch: of the validation part, or of the test split under the literature's way.
HISTORY_COLUMNS = ("seed", "epoch", "loss", "classification", "regression", "selection_rho")

HeadT = TypeVar("HeadT", bound=Regressor)

_BATCH_WORTH_THREADS = 32  #: pairs


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
        Positions of each model's validation part in the training split; n = 0 under the
        literature's way.
    held_out_scores : ndarray of float64, shape=(K, n)
        What each model predicts for these clips, in points, at an epoch that they had no
        part in choosing (:mod:`aqa_pipeline.cross_selection`).
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


@contextmanager
def _threads_for(batch_size: int, device: torch.device) -> Iterator[None]:
    """One thread for small batches on a CPU, where more only wait for each other.

    At batch 4 an epoch of five heads took a third of the time, and less where other
    programs run; from 32 pairs on the matrices are worth sharing.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu" and batch_size < _BATCH_WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_heads(
    train: FeatureSet,
    *,
    head_config: HeadConfig,
    config: FitConfig,
    score_range: float | None,
    epsilon: float | None,
    device: torch.device,
    test: FeatureSet | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TrainedHeads[Head]:
    """Train one head a seed and keep each at its best epoch.

    Parameters
    ----------
    train : FeatureSet
        The whole training split; a validation part is held out of it.
    head_config, config : HeadConfig, FitConfig
    score_range, epsilon : float or None
        See :class:`~aqa_pipeline.config.Protocol`.
    device : torch.device
    test : FeatureSet, optional
        Only for the literature's way: nothing is held out, and these clips choose the
        epoch.
    advance : callable
        Told ``(epochs done, epochs in all)``.

    Raises
    ------
    DataError
        If the labels cannot be learned from: one is not finite, all are equal, or no two
        clips share an exemplar group.
    """
    labels = checked_labels(train)
    seeds = [config.seed + k for k in range(config.num_seeds)]
    fit, held_out, judged = divide(train, config, test)
    groups, _ = ExemplarKeys.of(train.key).match(train.key)
    # The global generators stay untouched; each model has its own.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    head = Head(
        head_config,
        num_snippets=train.features.shape[1],
        feature_dim=train.features.shape[2],
        trunk=fit_trunk(
            head_config,
            [_targets(labels[rows], groups[rows], head_config) for rows in fit],
            score_range=score_range or float(np.ptp(labels)),
            train=train,
            generators=generators,
        ),
        epsilon=epsilon or float(np.abs(labels).max()),
        generators=generators,
    ).to(device)
    features = torch.from_numpy(train.features).to(device)
    head.fit_standardisation(features, torch.from_numpy(fit).to(device))
    loop = TrainingLoop(head, features, train, groups, fit, config, generators)
    selection = Selection(
        head,
        judged=judged,
        train=train,
        pools=list(fit),
        num_exemplars=config.num_exemplars,
        # The literature's way votes as the finished run will: one draw for all heads.
        seeds=seeds if test is None else [config.seed] * len(seeds),
        device=device,
    )
    history: list[tuple[float, ...]] = []
    for epoch in range(1, config.epochs + 1):
        with _threads_for(config.batch_size, device):
            losses = loop.epoch()
            rho = selection.keep_best(epoch)
        for k, seed in enumerate(seeds):
            classification, regression = losses[:, k].tolist()
            history.append(
                (seed, epoch, classification + regression, classification, regression, rho[k])
            )
        advance(epoch, config.epochs)
    selection.restore()
    return TrainedHeads(
        head=head,
        best_epoch=tuple(selection.best_epoch),
        selection_rho=tuple(selection.best_rho),
        best_relative_l2=tuple(selection.best_relative_l2),
        validation_rows=held_out,
        held_out_scores=cross_selected(
            np.stack(selection.judged_scores), train.score[held_out], seeds=seeds
        ),
        history=history,
    )


def checked_labels(train: FeatureSet) -> FloatArray:
    """Labels of the training split, shape=(N,).

    Raises
    ------
    DataError
        If one is not finite or all are equal.
    """
    labels = train.label
    unusable = int(np.count_nonzero(~np.isfinite(labels)))
    if unusable:
        raise DataError(
            f"{unusable} of {len(train)} training clips have no finite label; each needs a score "
            "and, for raw scores, a difficulty"
        )
    if not len(train) or not np.ptp(labels) > 0:
        raise DataError(f"all {len(train)} training clips have the same label; nothing to learn")
    return labels


def _targets(labels: FloatArray, groups: IntArray, config: HeadConfig) -> FloatArray:
    """What the trunk is to predict: differences of all unordered pairs, or the labels."""
    if config.mode == "direct":
        return labels
    deltas = pair_deltas(labels, groups)
    if not deltas.size:
        raise DataError(
            "no two training clips share an exemplar group, so there is no pair to learn from; "
            "compare more widely with another exemplar_key in the protocol"
        )
    return deltas

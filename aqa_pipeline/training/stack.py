"""Models of one shape that train side by side, epoch by epoch.

Conventions
-----------
member
    What may differ inside a stack: learning rate, weight decay, dropout.
S
    Seeds of each member: ``FitConfig.num_seeds``. The stack has a model for each member and
    seed, K = members x S: those of the first member come first.
fit part, validation part
    See :mod:`aqa_pipeline.training.validation`. Both depend on the seed alone, so that every
    member is evaluated on the same clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.groups import PairLabels
from aqa_pipeline.core.pairs import ExemplarKeys
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import fit_output_layer
from aqa_pipeline.training.loop import TrainingLoop
from aqa_pipeline.training.selection import EpochSelection
from aqa_pipeline.training.validation import hold_out

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_BATCH_WORTH_THREADS = 32  #: pairs
_WEIGHTS_WORTH_THREADS = 2**20  #: numbers, of all models


class Stack:
    """A stack of heads in training.

    Parameters
    ----------
    train : FeatureSet
        The whole training split; validation parts are held out of it.
    members : sequence of ModelSettings
    head_config, config : HeadConfig, FitConfig
        What the models share; what a member says counts for more.
    score_range, epsilon : float or None
        See :class:`~aqa_pipeline.config.Protocol`.
    device : torch.device
    test : FeatureSet, optional
        Only for test-set model selection: nothing is held out, and these clips choose the
        epoch.
    views : ndarray of float32, shape=(N, V, S or 1, D), optional
        Training clips in the views that are drawn from; default: the plain one alone.
    num_exemplars : sequence of sequences of int or None, optional
        For each member, several M to evaluate it with; default: that of ``config``.
    vote_seed : int, optional
        Of the exemplars drawn in test-set model selection; default: that of ``config``.
    keep_states : bool
        Whether models are kept at their best epoch, or only numbers.

    Attributes
    ----------
    head : Head
    selection : EpochSelection
    held_out : ndarray of int64, shape=(K, n)
        Positions of each model's validation part in the training split.
    seeds : list of int, length K
    epoch : int
        Epochs done.

    Raises
    ------
    DataError
        If the labels cannot be learned from: one is not finite, all are equal, or no two
        clips share an exemplar group.
    """

    def __init__(
        self,
        train: FeatureSet,
        members: Sequence[ModelSettings],
        *,
        head_config: HeadConfig,
        config: FitConfig,
        score_range: float | None,
        epsilon: float | None,
        device: torch.device,
        test: FeatureSet | None = None,
        views: npt.NDArray[np.float32] | None = None,
        num_exemplars: Sequence[Sequence[int | None]] | None = None,
        vote_seed: int | None = None,
        keep_states: bool = True,
    ) -> None:
        labels = checked_labels(train)
        times = len(members)
        own_seeds = [config.seed + s for s in range(config.num_seeds)]
        fit, held_out, validation = hold_out(train, config, test)
        groups, _ = ExemplarKeys.of(train.key).match(train.key)
        self.seeds = own_seeds * times
        # The global generators stay untouched; each model has its own.
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        targets = [_targets(labels[rows], groups[rows], head_config) for rows in fit]
        self.head = Head(
            head_config,
            num_snippets=train.features.shape[1],
            feature_dim=train.features.shape[2],
            output=fit_output_layer(
                head_config,
                targets * times,
                score_range=score_range or float(np.ptp(labels)),
                train=train,
                generators=generators,
            ),
            epsilon=epsilon or float(np.abs(labels).max()),
            generators=generators,
        ).to(device)
        features = torch.from_numpy(train.features).to(device)
        self.head.fit_standardisation(features, torch.from_numpy(fit).to(device))
        fit, self.held_out = np.tile(fit, (times, 1)), np.tile(held_out, (times, 1))
        self._loop = TrainingLoop(
            self.head,
            features if views is None else torch.from_numpy(views).to(device),
            train,
            groups,
            fit,
            config,
            generators,
            [member for member in members for _ in own_seeds],
        )
        self.selection = EpochSelection(
            self.head,
            validation=validation * times,
            train=train,
            pools=list(fit),
            num_exemplars=(
                config.num_exemplars
                if num_exemplars is None
                else [counts for counts in num_exemplars for _ in own_seeds]
            ),
            # Test-set model selection votes as the finished run will: one draw for all heads.
            seeds=(
                self.seeds
                if test is None
                else [config.seed if vote_seed is None else vote_seed] * len(self.seeds)
            ),
            device=device,
            keep_states=keep_states,
        )
        self._batch_size = config.batch_size
        self.epoch = 0

    def run_epoch(self) -> tuple[FloatArray, list[float]]:
        """Train every model for an epoch and evaluate it.

        Returns
        -------
        losses : ndarray of float64, shape=(2, K)
            Classification and regression.
        rho : list of float
            On the clips that choose, one a model and M.
        """
        self.epoch += 1
        with _threads_for(self._batch_size, self.head):
            losses = self._loop.epoch()
            rho = self.selection.update(self.epoch)
        return losses.double().cpu().numpy(), rho

    def keep(self, rows: Sequence[int]) -> None:
        """Give up all models but these."""
        self._loop.keep(rows)
        self.selection.keep(rows)
        self.head.keep_models(rows)
        self.held_out = self.held_out[list(rows)]
        self.seeds = [self.seeds[row] for row in rows]


@contextmanager
def _threads_for(batch_size: int, head: Head) -> Iterator[None]:
    """One thread for small batches of small stacks on a CPU, where more only wait for each other.

    Large weights are worth sharing even for two pairs: moving them is most of the work.
    """
    threads = torch.get_num_threads()
    weights = sum(parameter.numel() for parameter in head.parameters())
    is_small = batch_size < _BATCH_WORTH_THREADS and weights < _WEIGHTS_WORTH_THREADS
    if head.device.type == "cpu" and is_small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def _targets(labels: FloatArray, groups: IntArray, config: HeadConfig) -> FloatArray | PairLabels:
    """Targets of the output layer: differences of all unordered pairs, or the labels."""
    if config.mode == "direct":
        return labels
    pairs = PairLabels(labels, groups)
    if not len(pairs):
        raise DataError(
            "no two training clips share an exemplar group, so there is no pair to learn from; "
            "compare more widely with another exemplar_key in the protocol"
        )
    return pairs

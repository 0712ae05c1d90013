"""Training a stack of heads on features in memory.

Everything an epoch needs lies on the device before it starts: features, labels, the
order of the queries and their exemplars. There is no loop over samples or leaves and no
transfer inside an epoch.

Conventions
-----------
K
    Models trained side by side, one for each seed: each has its own initial weights, its
    own validation part, its own pair draws.
fit part, validation part
    The training split cut in two, stratified by score. The epoch with the highest
    Spearman's rho on the validation part is kept; exemplars come from the fit part
    throughout.

Source: Sec. 3.1-3.2 and 4.1; official code: every pair is trained in both orders.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.errors import DataError
from aqa_pipeline.featureset import FeatureSet
from aqa_pipeline.gart import pair_loss
from aqa_pipeline.groups import Groups, symmetric_edges
from aqa_pipeline.heads import Head
from aqa_pipeline.metrics import spearman
from aqa_pipeline.pairs import ExemplarKeys, GroupTable, pair_deltas, vote_exemplars
from aqa_pipeline.vote import vote

IntArray = npt.NDArray[np.int64]

#: One row of history.csv a model and epoch.
HISTORY_COLUMNS = ("seed", "epoch", "loss", "classification", "regression", "validation_rho")


@dataclass(frozen=True, eq=False)
class TrainedHeads:
    """The outcome of training.

    Attributes
    ----------
    head : Head
        Each model at its best epoch.
    best_epoch : tuple of int
        1-based, one a model.
    validation_rho : tuple of float
        Spearman's rho of each model on its validation part, at that epoch.
    validation_rows : ndarray of int64, shape=(K, n)
        Positions of each model's validation part in the training split.
    history : list of tuple
        Rows of :data:`HISTORY_COLUMNS`.
    """

    head: Head
    best_epoch: tuple[int, ...]
    validation_rho: tuple[float, ...]
    validation_rows: IntArray
    history: list[tuple[float, ...]]


def validation_rows(scores: npt.ArrayLike, *, fraction: float, seed: int) -> IntArray:
    """A seeded validation part, stratified by score.

    The clips are ranked by score and cut into as many runs as clips are wanted; one is
    drawn from each run, so that the part spans the scores as the whole does.

    Returns
    -------
    ndarray of int64, shape=(round(fraction * N),), ascending

    Raises
    ------
    DataError
        If fewer than 2 clips would be left on either side.
    """
    scores = np.asarray(scores, dtype=np.float64)
    count = round(fraction * len(scores))
    if count < 2 or len(scores) - count < 2:
        raise DataError(
            f"{len(scores)} training clips are too few to hold out {fraction:g} of them for "
            "validation: at least 2 are needed on each side"
        )
    rng = np.random.default_rng([seed, 0])
    # Ties are shuffled, else equal scores would be held out in file order.
    order = np.lexsort((rng.random(len(scores)), scores))
    return np.sort([run[rng.integers(len(run))] for run in np.array_split(order, count)])


def train_heads(
    train: FeatureSet,
    *,
    head_config: HeadConfig,
    config: FitConfig,
    score_range: float | None,
    epsilon: float | None,
    device: torch.device,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TrainedHeads:
    """Train one head a seed and keep each at its best validation epoch.

    Parameters
    ----------
    train : FeatureSet
        The whole training split; a validation part is held out of it.
    head_config, config : HeadConfig, FitConfig
    score_range, epsilon : float or None
        See :class:`~aqa_pipeline.config.Protocol`.
    device : torch.device
    advance : callable
        Told ``(epochs done, epochs in all)``.

    Raises
    ------
    DataError
        If the labels cannot be learned from: one is not finite, all are equal, or no two
        clips share an exemplar group.
    """
    labels = train.label
    unusable = int(np.count_nonzero(~np.isfinite(labels)))
    if unusable:
        raise DataError(
            f"{unusable} of {len(train)} training clips have no finite label; each needs a score "
            "and, for raw scores, a difficulty"
        )
    label_span = float(np.ptp(labels)) if len(train) else 0.0
    if not label_span > 0:
        raise DataError(f"all {len(train)} training clips have the same label; nothing to learn")
    seeds = [config.seed + k for k in range(config.num_seeds)]
    held_out = np.stack(
        [
            validation_rows(train.score, fraction=config.validation_fraction, seed=seed)
            for seed in seeds
        ]
    )
    fit = np.stack([np.setdiff1d(np.arange(len(train)), rows) for rows in held_out])
    keys = ExemplarKeys.of(train.key)
    groups, _ = keys.match(train.key)
    # The global generators stay untouched; each model has its own.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    head = Head(
        head_config,
        num_snippets=train.features.shape[1],
        feature_dim=train.features.shape[2],
        groups=[
            _score_groups(labels[rows], groups[rows], head_config, score_range or label_span)
            for rows in fit
        ],
        epsilon=epsilon or float(np.abs(labels).max()),
        generators=generators,
    ).to(device)
    features = torch.from_numpy(train.features).to(device)
    head.fit_standardisation(features, torch.from_numpy(fit).to(device))
    loop = _Loop(head, features, train, groups, fit, config, generators)
    selection = _Selection(head, features, train, fit, held_out, config)
    history: list[tuple[float, ...]] = []
    for epoch in range(1, config.epochs + 1):
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
        validation_rho=tuple(selection.best_rho),
        validation_rows=held_out,
        history=history,
    )


def _score_groups(
    labels: npt.NDArray[np.float64], groups: IntArray, config: HeadConfig, score_range: float
) -> Groups:
    deltas = pair_deltas(labels, groups)
    if not deltas.size:
        raise DataError(
            "no two training clips share an exemplar group, so there is no pair to learn from; "
            "compare more widely with another exemplar_key in the protocol"
        )
    return Groups(symmetric_edges(deltas, num_groups=config.num_groups, score_range=score_range))


class _Loop:
    """One epoch after another over pairs drawn on the device."""

    def __init__(
        self,
        head: Head,
        features: Tensor,
        train: FeatureSet,
        groups: IntArray,
        fit: IntArray,
        config: FitConfig,
        generators: Sequence[torch.Generator],
    ) -> None:
        device = features.device
        self._head, self._features, self._config = head, features, config
        self._generators = generators
        self._label = torch.from_numpy(train.label).to(device)
        self._fit = torch.from_numpy(fit).to(device)  # (K, n)
        tables = [
            GroupTable.from_groups(groups[rows], num_groups=int(groups.max()) + 1) for rows in fit
        ]
        width = max(table.members.shape[1] for table in tables)
        members = np.stack(
            [np.pad(t.members, ((0, 0), (0, width - t.members.shape[1])), "edge") for t in tables]
        )
        self._members = torch.from_numpy(members).to(device)  # (K, G, width), rows of fit
        own_groups = groups[fit]  # (K, n)
        size = np.stack([t.size[g] for t, g in zip(tables, own_groups, strict=True)])
        place = np.stack([_place_in_group(g) for g in own_groups])
        self._group = torch.from_numpy(own_groups).to(device)
        self._size = torch.from_numpy(size).to(device)
        self._place = torch.from_numpy(place).to(device)
        self._optimiser = torch.optim.Adam(
            head.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def _draw_epoch(self) -> tuple[Tensor, Tensor]:
        """Queries in random order and an exemplar for each, as rows of the fit part; (K, n)."""
        num_models, count = self._fit.shape
        order = torch.stack([torch.randperm(count, generator=g) for g in self._generators])
        chance = torch.stack([torch.rand(count, generator=g) for g in self._generators])
        order, chance = order.to(self._fit.device), chance.to(self._fit.device)
        size = self._size.gather(1, order)
        place = self._place.gather(1, order)
        # One of the size - 1 others: skip the query's own place. Alone in its group, a
        # clip is paired with itself, as in the published program.
        choice = (chance * (size - 1)).long().clamp(max=(size - 2).clamp(min=0))
        choice = torch.where((choice >= place) & (size > 1), choice + 1, choice)
        group = self._group.gather(1, order)
        model = torch.arange(num_models, device=order.device).unsqueeze(1)
        return order, self._members[model, group, choice]

    def epoch(self) -> Tensor:
        """Train on every query once; mean losses, shape=(2, K): classification, regression."""
        head = self._head
        order, partner = self._draw_epoch()
        query, exemplar = self._fit.gather(1, order), self._fit.gather(1, partner)
        total = self._features.new_zeros(2, head.num_models)
        for start in range(0, query.shape[1], self._config.batch_size):
            part = slice(start, start + self._config.batch_size)
            a, b = query[:, part], exemplar[:, part]
            # Both orders: (a against b), then (b against a).
            queries, exemplars = torch.cat([a, b], dim=1), torch.cat([b, a], dim=1)
            query_half, exemplar_half = head.halves(self._features[queries])
            half = a.shape[1]
            root = head.root(
                query_half,
                torch.cat([exemplar_half[:, :, half:], exemplar_half[:, :, :half]], dim=2),
                self._label[exemplars],
            )
            leaf, place = head.groups.leaf_and_place(self._label[queries] - self._label[exemplars])
            losses = torch.stack(pair_loss(head.tree(root), leaf, place))  # (2, K)
            self._optimiser.zero_grad(set_to_none=False)
            # The models share no parameter, so the gradient of the sum is each one's own.
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            total += losses.detach() * half  # the last batch may be smaller
        return total / query.shape[1]


def _place_in_group(groups: IntArray) -> IntArray:
    """Position of each clip among the clips of its group, in order; shape=(n,)."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups, side="left")
    place = np.empty(len(groups), dtype=np.int64)
    place[order] = np.arange(len(groups)) - first
    return place


class _Selection:
    """Keeps each model at the epoch with the best rho on its own validation part."""

    def __init__(
        self,
        head: Head,
        features: Tensor,
        train: FeatureSet,
        fit: IntArray,
        held_out: IntArray,
        config: FitConfig,
    ) -> None:
        self._head, self._features = head, features
        self._rows = torch.from_numpy(held_out).to(features.device)  # (K, q)
        self._held_out = [train.take(rows) for rows in held_out]
        chosen = []
        for k, (fit_rows, rows) in enumerate(zip(fit, held_out, strict=True)):
            # A validation clip may be the only one of its group: then the nearest votes.
            known = ExemplarKeys.of([train.key[i] for i in fit_rows])
            pool_groups, _ = known.match([train.key[i] for i in fit_rows])
            query_groups, _ = known.match([train.key[i] for i in rows])
            local = vote_exemplars(
                query_groups,
                pool_groups,
                num_exemplars=config.num_exemplars,
                seed=config.seed + k,
            )
            chosen.append(np.where(local >= 0, fit_rows[local], -1))
        width = max(c.shape[1] for c in chosen)
        padded = [np.pad(c, ((0, 0), (0, width - c.shape[1])), constant_values=-1) for c in chosen]
        self._exemplars = torch.from_numpy(np.stack(padded)).to(features.device)
        self._label = torch.from_numpy(train.label).to(features.device)
        self.best_rho = [float("nan")] * head.num_models
        self.best_epoch = [0] * head.num_models
        self._best = copy.deepcopy(head.state_dict())

    def keep_best(self, epoch: int) -> list[float]:
        """Measure every model; copy those that improved. Returns rho, one a model."""
        votes = vote(
            self._head,
            queries=self._features[self._rows],
            pool=self._features,
            pool_label=self._label,
            exemplars=self._exemplars,
        )
        predicted = votes.mean()
        state = self._head.state_dict()
        rhos = []
        for k, held_out in enumerate(self._held_out):
            rho = spearman(held_out.score, held_out.to_score(predicted[k]))
            rhos.append(rho)
            # Where rho is not defined (all predictions equal) any later epoch is preferred.
            if rho > self.best_rho[k] or np.isnan(self.best_rho[k]):
                self.best_rho[k], self.best_epoch[k] = rho, epoch
                for name, value in state.items():
                    self._best[name][k] = value[k]
        return rhos

    def restore(self) -> None:
        """Put every model back to its best epoch."""
        self._head.load_state_dict(self._best)

"""One epoch of training: pairs drawn on the device, both orders, one step a batch.

Everything an epoch needs lies on the device before it starts: features, labels, the
order of the queries and their exemplars. There is no loop over samples or leaves and no
transfer inside an epoch.

Source: Sec. 3.1-3.2 and 4.1; official code: every pair is trained in both orders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.config import FitConfig
from aqa_pipeline.featureset import FeatureSet
from aqa_pipeline.heads import Head
from aqa_pipeline.pairs import GroupTable

IntArray = npt.NDArray[np.int64]


class TrainingLoop:
    """One epoch after another over pairs drawn on the device.

    Parameters
    ----------
    head : Head
    features : Tensor, shape=(N, S, D)
        Of the training split, on the device.
    train : FeatureSet
        The training split.
    groups : ndarray of int64, shape=(N,)
        Exemplar group of each clip.
    fit : ndarray of int64, shape=(K, n)
        Clips each model learns from.
    config : FitConfig
    generators : sequence of torch.Generator
        One for each model; all draws come from them.
    """

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
        self._direct_target = torch.from_numpy(head.trunk.direct_target(train)).to(device)
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
            if head.is_contrastive:
                root, target = self._pairs(query[:, part], exemplar[:, part])
            else:
                root = head.direct_root(self._features[query[:, part]])
                target = self._direct_target[query[:, part]]
            losses = head.trunk.losses(root, target)  # (2, K)
            self._optimiser.zero_grad(set_to_none=True)
            # The models share no parameter, so the gradient of the sum is each one's own.
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            # The last batch may be smaller.
            total += losses.detach() * query[:, part].shape[1]
        return total / query.shape[1]

    def _pairs(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Root features and targets of both orders: a against b, then b against a.

        ``a`` and ``b`` are clips, shape=(K, B); the results have 2 B columns.
        """
        queries, exemplars = torch.cat([a, b], dim=1), torch.cat([b, a], dim=1)
        query_half, exemplar_half = self._head.halves(self._features[queries])
        of_a, of_b = exemplar_half.chunk(2, dim=1)
        root = self._head.root(query_half, torch.cat([of_b, of_a], dim=1), self._label[exemplars])
        return root, self._label[queries] - self._label[exemplars]


def _place_in_group(groups: IntArray) -> IntArray:
    """Position of each clip among the clips of its group, in order; shape=(n,)."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups, side="left")
    place = np.empty(len(groups), dtype=np.int64)
    place[order] = np.arange(len(groups)) - first
    return place

"""One epoch of training: pairs drawn on the device, both orders, one step a batch.

Everything an epoch needs lies on the device before it starts: features of every view, labels,
the order of the queries and their exemplars. There is no loop over samples or leaves and no
transfer inside an epoch. What a step needs but no parameter changes (features in their units,
labels, ways down the tree) is made for many steps at once: a step of two pairs is so short
that every operation counts.

Source: Sec. 3.1-3.2 and 4.1; official code: every pair is trained in both orders, and every
clip is seen shifted and flipped by chance (here: in one of its cached views).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.config import FitConfig, ModelSettings
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.pairs import GroupTable
from aqa_pipeline.device import numbers_at_once
from aqa_pipeline.heads.head import Head
from aqa_pipeline.training.adam import StackedAdam
from aqa_pipeline.training.step import StepRunner

IntArray = npt.NDArray[np.int64]


#: Numbers of standardised features that are prepared at once, of all models: 8 MiB, which a
#: CPU's cache holds; on a GPU every operation beside the captured step counts.
_NUMBERS_AHEAD = 2**21
_NUMBERS_AHEAD_ON_GPU = 2**27


class Batch(NamedTuple):
    """What one step is made of, in C columns: B pairs in both orders, or B clips.

    Attributes
    ----------
    features : Tensor, shape=(K, C, S, D)
        Standardised; of pairs, the queries and then their exemplars.
    exemplar_label : Tensor of float64, shape=(K, C) or empty
        Of the exemplars and then, for the other order, of the queries; empty for clips.
    keep : Tensor of bool, shape=(K, C, H) or empty
        What dropout leaves of the root feature; empty without dropout.
    labels
        Of the output layer.
    """

    features: Tensor
    exemplar_label: Tensor
    keep: Tensor
    labels: Any


class _Draw(NamedTuple):
    """What is drawn for an epoch.

    Attributes
    ----------
    query, exemplar : Tensor of int64, shape=(K, n)
        Clips of the training split; of direct heads, ``exemplar`` is not looked at.
    query_view, exemplar_view : Tensor of int64, shape=(K, n)
        The view in which each clip is seen.
    keep : Tensor of bool, shape=(K, n, 2, H) or empty
        What dropout leaves of the root feature, in both orders.
    """

    query: Tensor
    exemplar: Tensor
    query_view: Tensor
    exemplar_view: Tensor
    keep: Tensor

    def steps(self, start: int, count: int, batch_size: int) -> _Draw:
        """Some of the steps, shape=(T, K, B, ...)."""
        part = slice(start, start + count * batch_size)
        shape = len(self.query), count, batch_size
        return _Draw(*(t[:, part].reshape(*shape, *t.shape[2:]).transpose(0, 1) for t in self))


class TrainingLoop:
    """One epoch after another over pairs drawn on the device.

    Parameters
    ----------
    head : Head
    features : Tensor, shape=(N, S, D) or (N, V, S, D)
        Of the training split, on the device; in V views.
    train : FeatureSet
        The training split.
    groups : ndarray of int64, shape=(N,)
        Exemplar group of each clip.
    fit : ndarray of int64, shape=(K, n)
        Clips each model learns from.
    config : FitConfig
    generators : sequence of torch.Generator
        One for each model; all draws come from them.
    members : sequence of ModelSettings, length K, optional
        Learning rate, weight decay and dropout of each model; default: those of ``config``.
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
        members: Sequence[ModelSettings] | None = None,
    ) -> None:
        device = features.device
        members = members or [ModelSettings.of(config, head.config)] * len(fit)
        self._head, self._config = head, config
        self._num_views = features.shape[1] if features.ndim == 4 else 1
        flat = features.flatten(0, 1) if features.ndim == 4 else features
        self._features = head.condensed(flat)  # (N * V, S, D)
        self._generators = list(generators)
        self._mask_generators = mask_generators(generators, device)
        self._numbers_ahead = numbers_at_once(
            device, on_cpu=_NUMBERS_AHEAD, on_gpu=_NUMBERS_AHEAD_ON_GPU
        )
        self._label = torch.from_numpy(train.label).to(device)
        self._direct_target = torch.from_numpy(head.output.direct_target(train)).to(device)
        self._fit = torch.from_numpy(fit).to(device)  # (K, n)
        tables = [
            GroupTable.from_groups(groups[rows], num_groups=int(groups.max()) + 1) for rows in fit
        ]
        width = max(table.members.shape[1] for table in tables)
        table = np.stack(
            [np.pad(t.members, ((0, 0), (0, width - t.members.shape[1])), "edge") for t in tables]
        )
        self._members = torch.from_numpy(table).to(device)  # (K, G, width), rows of fit
        own_groups = groups[fit]  # (K, n)
        size = np.stack([t.size[g] for t, g in zip(tables, own_groups, strict=True)])
        position = np.stack([_position_in_group(g) for g in own_groups])
        self._group = torch.from_numpy(own_groups).to(device)
        self._size = torch.from_numpy(size).to(device)
        self._position = torch.from_numpy(position).to(device)
        self._dropout = [member.dropout for member in members]
        stays = [1 - share for share in self._dropout]
        self._stays = self._features.new_tensor(stays).view(-1, 1, 1)  # (K, 1, 1)
        self._optimiser = StackedAdam(
            head.parameters(),
            learning_rates=[member.learning_rate for member in members],
            weight_decays=[member.weight_decay for member in members],
        )
        self._run_step = StepRunner(
            self._step,
            state=lambda: [*head.parameters(), *self._optimiser.state()],
            device=device,
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these models alone; the head is cut by the caller."""
        index = torch.tensor(rows, device=self._fit.device)
        for name in ("_fit", "_members", "_group", "_size", "_position", "_stays"):
            setattr(self, name, getattr(self, name)[index])
        self._generators = [self._generators[row] for row in rows]
        self._mask_generators = [self._mask_generators[row] for row in rows]
        self._dropout = [self._dropout[row] for row in rows]
        self._optimiser.keep(rows)
        self._run_step.forget()

    def _draw_epoch(self) -> tuple[Tensor, Tensor]:
        """Queries in random order and an exemplar for each, as rows of the fit part; (K, n)."""
        num_models, count = self._fit.shape
        order = torch.stack([torch.randperm(count, generator=g) for g in self._generators])
        chance = torch.stack([torch.rand(count, generator=g) for g in self._generators])
        order, chance = order.to(self._fit.device), chance.to(self._fit.device)
        size = self._size.gather(1, order)
        position = self._position.gather(1, order)
        # One of the size - 1 others: skip the query's own position. Alone in its group, a
        # clip is paired with itself, as in the published program.
        choice = (chance * (size - 1)).long().clamp(max=(size - 2).clamp(min=0))
        choice = torch.where((choice >= position) & (size > 1), choice + 1, choice)
        group = self._group.gather(1, order)
        model = torch.arange(num_models, device=order.device).unsqueeze(1)
        return order, self._members[model, group, choice]

    def _draw_views(self) -> Tensor:
        """A view for each query and each exemplar, shape=(2, K, n)."""
        num_models, count = self._fit.shape
        if self._num_views == 1:
            return torch.zeros(2, num_models, count, dtype=torch.int64, device=self._fit.device)
        views = [torch.randint(self._num_views, (2, count), generator=g) for g in self._generators]
        return torch.stack(views, dim=1).to(self._fit.device)

    def _draw_dropout(self) -> Tensor:
        """What stays of the root features, shape=(K, n, 2, H); empty where nothing is dropped.

        A model without dropout draws nothing, so that it trains in a stack as it does alone.
        """
        count, hidden = self._fit.shape[1], self._head.config.hidden
        there = self._mask_generators[0].device
        if not any(self._dropout):
            return torch.empty(len(self._fit), count, 2, 0, dtype=torch.bool, device=there)
        shape = (count, 2, hidden)
        keep = [
            torch.rand(shape, generator=g, device=there) >= share
            if share
            else torch.ones(shape, dtype=torch.bool, device=there)
            for share, g in zip(self._dropout, self._mask_generators, strict=True)
        ]
        return torch.stack(keep)

    def epoch(self) -> Tensor:
        """Train on every query once; mean losses, shape=(2, K): classification, regression."""
        order, partner = self._draw_epoch()
        query, exemplar = self._fit.gather(1, order), self._fit.gather(1, partner)
        query_view, exemplar_view = self._draw_views()
        keep = self._draw_dropout().to(order.device)
        draw = _Draw(query, exemplar, query_view, exemplar_view, keep)
        total = self._features.new_zeros(2, self._head.num_models)
        for start, count, size in self._runs_of_steps(order.shape[1]):
            for batch in self._batches(draw.steps(start, count, size)):
                total += self._run_step(batch) * size
        return total / order.shape[1]

    def _runs_of_steps(self, num_queries: int) -> Iterator[tuple[int, int, int]]:
        """First query, number of steps and their size; the last step of an epoch may be smaller."""
        size = min(self._config.batch_size, num_queries)
        whole, rest = divmod(num_queries, size)
        clips = size * (2 if self._head.is_contrastive else 1) * self._head.num_models
        ahead = max(1, self._numbers_ahead // (clips * self._features[0].numel()))
        for first in range(0, whole, ahead):
            yield first * size, min(ahead, whole - first), size
        if rest:
            yield whole * size, 1, rest

    def _batches(self, steps: _Draw) -> Iterable[Batch]:
        """Pairs in both orders, or clips, ready for the step."""
        clips, views, keep = steps.query, steps.query_view, steps.keep
        if self._head.is_contrastive:
            clips = torch.cat([clips, steps.exemplar], dim=2)  # (T, K, 2 B)
            views = torch.cat([views, steps.exemplar_view], dim=2)
            keep = keep.transpose(2, 3).flatten(2, 3)  # (T, K, 2 B, H)
            label = self._label[clips]
            exemplar_label = label.roll(steps.query.shape[2], 2)
            target = label - exemplar_label
        else:
            keep = keep[:, :, :, 0]
            target = self._direct_target[clips]
            exemplar_label = target.new_empty(len(target), 0)
        features = self._head.standardise(self._seen(clips, views))
        labels = self._head.output.labels(target)
        return map(Batch, features.unbind(), exemplar_label.unbind(), keep.unbind(), labels)

    def _seen(self, clips: Tensor, views: Tensor) -> Tensor:
        """Features of clips in the given views, shape=(..., S, D)."""
        return self._features[clips * self._num_views + views]

    def _dropped(self, root: Tensor, keep: Tensor) -> Tensor:
        return root * keep / self._stays if keep.shape[2] else root

    def _step(self, batch: Batch) -> Tensor:
        """One step of every model; its losses, shape=(2, K)."""
        head = self._head
        if head.is_contrastive:
            root = head.roots_of_pairs(batch.features, batch.exemplar_label)
        else:
            root = head.roots_of_clips(batch.features)
        losses = head.output.losses(self._dropped(root, batch.keep), batch.labels)  # (2, K)
        self._optimiser.zero_grad()
        # The models share no parameter, so the gradient of the sum is each one's own.
        losses.backward(torch.ones_like(losses))  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return losses.detach()


def mask_generators(
    generators: Sequence[torch.Generator], device: torch.device
) -> list[torch.Generator]:
    """Where dropout draws from: the models' own generators, or on a GPU some of its own.

    A GPU draws in a millisecond what takes a CPU half a second for 64 models. Each has the
    seed of its model, so that a model draws the same in any stack, but not what a CPU draws.
    """
    if device.type != "cuda":
        return list(generators)
    return [torch.Generator(device).manual_seed(own.initial_seed()) for own in generators]


def _position_in_group(groups: IntArray) -> IntArray:
    """Position of each clip among the clips of its group, in order; shape=(n,)."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups, side="left")
    position = np.empty(len(groups), dtype=np.int64)
    position[order] = np.arange(len(groups)) - first
    return position

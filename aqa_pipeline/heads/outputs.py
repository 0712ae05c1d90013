"""Output layers: from the root feature of a pair or clip to a number.

An output layer learns one *target* for each column of its batch: the score difference of a pair
(contrastive heads) or the label of a clip (direct heads), in label points. Heads differ in
their output layer alone.

Conventions
-----------
K, H, B, R
    As in :mod:`aqa_pipeline.heads.gart`.
target : Tensor of float64, shape=(K, B)
    In label points.
labels
    What the loss of a step wants to know of its targets: a tensor, or a NamedTuple of some.
    They are made for many steps at once, since a step of few pairs is short.
losses : Tensor, shape=(2, K)
    Classification and regression, a mean over the batch; their sum is minimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.groups import (
    Groups,
    PairLabels,
    eq5_edges,
    eq5_edges_of_pairs,
    symmetric_edges,
)
from aqa_pipeline.core.judges import Rule, counted, find_rule, half_points, marks_of
from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.gart import (
    Gart,
    GroupTensors,
    Value,
    leaf_losses,
    linear,
    uniform_parameter,
)
from aqa_pipeline.heads.leaf_paths import losses_on_paths, paths_to_leaves
from aqa_pipeline.heads.leaf_search import searched_value
from aqa_pipeline.heads.quick import quick_form

FloatArray = npt.NDArray[np.float64]


class OutputLayer(nn.Module):
    """Parent of the output layers."""

    def direct_target(self, clips: FeatureSet) -> FloatArray:
        """What a direct head learns of each clip, shape=(N,) or (N, J): its label."""
        return clips.label

    def labels(self, target: Tensor) -> Sequence[Any]:
        """Labels of T steps, from targets of shape (T, K, B) or (T, K, B, J)."""
        raise NotImplementedError

    def losses(self, root: Tensor, labels: Any) -> Tensor:
        """Losses of root features (K, B, H) against the labels of their step; shape=(2, K)."""
        raise NotImplementedError

    def value(self, root: Tensor) -> Value:
        """Predictions for root features, shape=(K, B, H)."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What :func:`output_from_settings` needs to build it again; plain values."""
        raise NotImplementedError


class LeafLabels(NamedTuple):
    """Labels of Eq. 6 for one step.

    Attributes
    ----------
    leaf : Tensor of int64, shape=(K, B)
    offset : Tensor of float32, shape=(K, B)
    """

    leaf: Tensor
    offset: Tensor


class TreeOutput(OutputLayer):
    """The group-aware regression tree (Sec. 3.2)."""

    def __init__(
        self, config: HeadConfig, groups: Sequence[Groups], generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.recipe = config.recipe
        self.tree = Gart(
            num_groups=config.num_groups,
            hidden=config.hidden,
            sigmoid=config.recipe == "paper",
            generators=generators,
        )
        self.groups = GroupTensors(groups)

    @quick_form(paths_to_leaves)
    def labels(self, target: Tensor) -> Sequence[Any]:
        leaf, offset = self.groups.leaf_and_offset(target)
        return [LeafLabels(*of_step) for of_step in zip(leaf, offset, strict=True)]

    @quick_form(losses_on_paths)
    def losses(self, root: Tensor, labels: Any) -> Tensor:
        return torch.stack(leaf_losses(self.tree(root), *labels, recipe=self.recipe))

    @quick_form(searched_value)
    def value(self, root: Tensor) -> Value:
        return self.groups.delta(self.tree(root))

    def settings(self) -> dict[str, Any]:
        return {"group_edges": self.groups.edges.tolist()}


class MlpOutput(OutputLayer):
    """The two layers that make a 3-layer MLP of the root; mean squared error (Sec. 4.1).

    It predicts the target with the training targets' mean and spread taken out, so that
    the learning rate means the same whatever the points are.
    """

    centre: Tensor  # (K,) float64
    spread: Tensor  # (K,) float64

    def __init__(
        self,
        config: HeadConfig,
        centre: Sequence[float],
        spread: Sequence[float],
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        hidden = config.hidden
        self.weight, self.bias, self.out_weight, self.out_bias = (
            uniform_parameter(shape, fan_in=hidden, generators=generators)
            for shape in ((hidden, hidden), (hidden, 1), (1, hidden), (1, 1))
        )
        self.register_buffer("centre", torch.tensor(centre, dtype=torch.float64))
        self.register_buffer("spread", torch.tensor(spread, dtype=torch.float64))

    def forward(self, root: Tensor) -> Tensor:
        """Normalised target, (K, B, H) -> (K, B)."""
        inner = linear(root, self.weight, self.bias).relu()  # (K, B, H)
        return linear(inner, self.out_weight, self.out_bias).squeeze(2)

    def labels(self, target: Tensor) -> Sequence[Tensor]:
        normalised = (target - self.centre[:, None]) / self.spread[:, None]
        return normalised.to(self.weight.dtype).unbind()

    def losses(self, root: Tensor, labels: Tensor) -> Tensor:
        regression = (self(root) - labels).square().mean(dim=1)
        return torch.stack([torch.zeros_like(regression), regression])

    def value(self, root: Tensor) -> Value:
        target = self.centre[:, None] + self.spread[:, None] * self(root).double()
        return Value(target, torch.full_like(target, -1, dtype=torch.int64))

    def settings(self) -> dict[str, Any]:
        return {"centre": self.centre.tolist(), "spread": self.spread.tolist()}


class DistributionOutput(OutputLayer):
    """Score distribution learning (Tang et al., CVPR 2020; the paper's reference 29).

    Two layers give a distribution over bins for each judge. A mark's target is a Gaussian
    around it, so that bins beside the right one are less wrong than those far away; the
    loss is the Kullback-Leibler divergence, a mean over judges and clips. ``usdl`` has one
    judge, whose mark is the label itself; ``musdl`` has the real ones, and the rule of the
    sport (:mod:`aqa_pipeline.core.judges`) makes the label of their marks.

    The prediction is the expected mark. The published program takes the most probable bin,
    which ties all clips of a bin.

    Parameters
    ----------
    bins : array_like, shape=(K, C)
        Centres of the bins, ascending, in the points of the marks.
    num_judges : int
        J.
    rule : {"middle three", "all"}
    """

    bins: Tensor  # (K, C) float64

    def __init__(
        self,
        config: HeadConfig,
        bins: npt.ArrayLike,
        *,
        num_judges: int,
        rule: Rule,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.register_buffer("bins", torch.from_numpy(np.array(bins, dtype=np.float64)))
        self.per_judge, self.sigma = config.kind == "musdl", config.sigma
        self.num_judges, self.rule = num_judges, rule
        hidden, out = config.hidden, num_judges * self.bins.shape[1]
        self.weight, self.bias, self.out_weight, self.out_bias = (
            uniform_parameter(shape, fan_in=hidden, generators=generators)
            for shape in ((hidden, hidden), (hidden, 1), (out, hidden), (out, 1))
        )

    def forward(self, root: Tensor) -> Tensor:
        """Log-probability of each bin, (K, B, H) -> (K, J, C, B)."""
        inner = linear(root, self.weight, self.bias).relu()  # (K, B, H)
        logits = linear(inner, self.out_weight, self.out_bias).mT  # (K, J * C, B)
        num_models, _, batch = logits.shape
        by_judge = logits.reshape(num_models, self.num_judges, -1, batch)
        return by_judge.log_softmax(dim=2)

    def target_log_prob(self, marks: Tensor) -> Tensor:
        """Log of the Gaussian around each mark over the bins, (K, J, B) -> (K, J, C, B)."""
        bins = self.bins[:, None, :, None]
        spread = self.sigma * (bins[:, :, -1:] - bins[:, :, :1])
        square = ((bins - marks.unsqueeze(2)) / spread).square()
        return (-0.5 * square).log_softmax(dim=2)

    def direct_target(self, clips: FeatureSet) -> FloatArray:
        return marks_of(clips) if self.per_judge else clips.label

    def labels(self, target: Tensor) -> Sequence[Tensor]:
        marks = target.transpose(2, 3) if self.per_judge else target.unsqueeze(2)  # (T, K, J, B)
        return marks.unbind()

    def losses(self, root: Tensor, labels: Tensor) -> Tensor:
        found, wanted = self(root), self.target_log_prob(labels).to(root.dtype)
        divergence = (wanted.exp() * (wanted - found)).sum(dim=2).mean(dim=(1, 2))  # (K,)
        return torch.stack([divergence, torch.zeros_like(divergence)])

    def value(self, root: Tensor) -> Value:
        prob = self(root).double().exp()
        marks = (prob * self.bins[:, None, :, None]).sum(dim=2)  # (K, J, B)
        ordered = marks.sort(dim=1).values
        target = ordered[:, counted(self.rule, self.num_judges)].sum(dim=1)
        return Value(target, torch.full_like(target, -1, dtype=torch.int64))

    def settings(self) -> dict[str, Any]:
        return {"bins": self.bins.tolist(), "num_judges": self.num_judges, "rule": self.rule}


def fit_output_layer(
    config: HeadConfig,
    targets: Sequence[FloatArray | PairLabels],
    *,
    score_range: float,
    train: FeatureSet | None = None,
    generators: Sequence[torch.Generator],
) -> OutputLayer:
    """A fresh output layer for the given training targets.

    Parameters
    ----------
    config : HeadConfig
    targets : sequence of ndarray of float64 or PairLabels, one for each model
        Differences of the unordered training pairs (contrastive), listed or not, or the
        training labels (direct).
    score_range : float
        Outer edge of symmetric groups, in label points.
    train : FeatureSet, optional
        The training split, for ``musdl``: its marks show their scale and rule.
    generators : sequence of torch.Generator

    Raises
    ------
    DataError
        If all targets of a model are equal, or ``musdl`` lacks marks that make the labels.
    """
    contrastive = config.mode == "contrastive"
    if config.kind == "gart":
        groups = [
            Groups(_edges(config, own, contrastive=contrastive, score_range=score_range))
            for own in targets
        ]
        return TreeOutput(config, groups, generators)
    listed = [own for own in targets if not isinstance(own, PairLabels)]
    if config.kind == "usdl":
        bins = [np.linspace(own.min(), own.max(), config.score_bins) for own in listed]
        return DistributionOutput(config, bins, num_judges=1, rule="all", generators=generators)
    if config.kind == "musdl":
        if train is None:
            raise UsageError("musdl needs the training clips, whose marks it learns")
        marks = marks_of(train)
        return DistributionOutput(
            config,
            [half_points(marks)] * len(targets),
            num_judges=marks.shape[1],
            rule=find_rule(marks, train.label),
            generators=generators,
        )
    # Both orders of a pair are trained, so the mean difference is 0.
    if contrastive:
        centre = [0.0] * len(targets)
        square = [
            own.mean_square() if isinstance(own, PairLabels) else float(np.mean(own**2))
            for own in targets
        ]
    else:
        centre = [float(own.mean()) for own in listed]
        square = [float(np.var(own)) for own in listed]
    return MlpOutput(config, centre, [s**0.5 or 1.0 for s in square], generators)


def _edges(
    config: HeadConfig,
    targets: FloatArray | PairLabels,
    *,
    contrastive: bool,
    score_range: float,
) -> FloatArray:
    if isinstance(targets, PairLabels):
        if config.recipe == "paper":
            return eq5_edges_of_pairs(targets, num_groups=config.num_groups)
        return symmetric_edges(targets, num_groups=config.num_groups, score_range=score_range)
    if not contrastive:
        return eq5_edges(targets, num_groups=config.num_groups)
    if config.recipe == "paper":
        return eq5_edges(np.concatenate([targets, -targets]), num_groups=config.num_groups)
    return symmetric_edges(targets, num_groups=config.num_groups, score_range=score_range)


def output_from_settings(
    config: HeadConfig, settings: dict[str, Any], generators: Sequence[torch.Generator]
) -> OutputLayer:
    """The output layer of a stored head, its parameters still to be loaded.

    Raises
    ------
    KeyError
        If the settings are those of another kind.
    """
    if config.kind == "gart":
        groups = [Groups(np.array(edges)) for edges in settings["group_edges"]]
        return TreeOutput(config, groups, generators)
    if config.kind in ("usdl", "musdl"):
        return DistributionOutput(config, **settings, generators=generators)
    return MlpOutput(config, settings["centre"], settings["spread"], generators)

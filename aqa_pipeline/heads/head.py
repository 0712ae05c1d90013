"""Heads: from snippet features of a query and an exemplar to their score difference.

Conventions
-----------
K, H
    Models in the stack, width of the root feature (see :mod:`aqa_pipeline.heads.gart`).
features : Tensor of float32, shape=(B, S, D) or (K, B, S, D)
    S snippet features of dimension D a clip; with a leading K each model has its own clips.
half
    The root layer is linear in concat([exemplar, query, label / epsilon]) (Eq. 4), so a
    clip goes through its half of the weights once, whatever it is compared with.

Source: Eq. 3-4, Sec. 4.1; official code: one linear layer and a ReLU before the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.heads.aggregations import MeanSnippets, aggregation
from aqa_pipeline.heads.gart import Value, linear, uniform_parameter
from aqa_pipeline.heads.linear import pair_roots
from aqa_pipeline.heads.outputs import OutputLayer
from aqa_pipeline.heads.quick import quick_form


class Halves(NamedTuple):
    """A clip's part of the root layer, as a query and as an exemplar; shape=(K, B, H) each."""

    query: Tensor
    exemplar: Tensor


class Standardise(nn.Module):
    """Features to zero mean and unit variance, by statistics of the training part.

    Parameters
    ----------
    mean, std : Tensor, shape=(K, D)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, features: Tensor) -> Tensor:
        """(..., K, B, S, D) or (B, S, D) -> (..., K, B, S, D)."""
        return (features - self.mean[:, None, None]) / self.std[:, None, None]


class Regressor(nn.Module):
    """Parent of everything that is fitted: K models that score clips.

    Attributes
    ----------
    config : HeadConfig
    num_models : int
        K.
    is_contrastive : bool
        Whether clips are scored by comparison; then it is a :class:`Head`.
    """

    config: HeadConfig
    num_models: int
    is_contrastive: bool

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def direct_value(self, features: Tensor) -> Value:
        """Labels of clips on their own; (B, S, D) or (K, B, S, D) -> (K, B)."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What is needed to build it again, beside its tensors; plain values."""
        raise NotImplementedError


class Head(Regressor):
    """A stack of K heads: aggregation, root layer, output layer.

    Parameters
    ----------
    config : HeadConfig
    num_snippets, feature_dim : int
        S and D of the cached features.
    output : OutputLayer
        Turns the root feature into a score difference (``contrastive``) or a label
        (``direct``).
    epsilon : float
        Divides the exemplar's label (Eq. 4).
    generators : sequence of torch.Generator
        One for each model; parameters are drawn from them.
    """

    def __init__(
        self,
        config: HeadConfig,
        *,
        num_snippets: int,
        feature_dim: int,
        output: OutputLayer,
        epsilon: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.config, self.epsilon = config, epsilon
        self.num_models = len(generators)
        self.standardise = Standardise(
            torch.zeros(self.num_models, feature_dim), torch.ones(self.num_models, feature_dim)
        )
        self.aggregate = aggregation(
            config, num_snippets=num_snippets, feature_dim=feature_dim, generators=generators
        )
        hidden, inputs = config.hidden, self.aggregate.out_dim
        self.is_contrastive = config.mode == "contrastive"
        fan_in = 2 * inputs + 1 if self.is_contrastive else inputs
        self.query_weight, self.bias = (
            uniform_parameter((hidden, columns), fan_in=fan_in, generators=generators)
            for columns in (inputs, 1)
        )
        if self.is_contrastive:
            self.exemplar_weight, self.label_weight = (
                uniform_parameter((hidden, columns), fan_in=fan_in, generators=generators)
                for columns in (inputs, 1)
            )
        self.output = output

    def fit_standardisation(self, features: Tensor, rows: Tensor) -> None:
        """Take mean and variance from each model's training clips.

        Parameters
        ----------
        features : Tensor, shape=(N, S, D)
        rows : Tensor of int64, shape=(K, n) or (s, n)
            Training clips of each model; with s below K, models 0, s, 2 s, ... share theirs.
        """
        if not self.config.standardise:
            return
        for s, own in enumerate(rows):
            std, mean = torch.std_mean(features[own], dim=(0, 1), correction=0)
            self.standardise.mean[s :: len(rows)] = mean
            # A constant feature carries nothing; it must not become 0 / 0.
            self.standardise.std[s :: len(rows)] = torch.where(std > 1e-6, std, 1.0)

    def condensed(self, features: Tensor) -> Tensor:
        """As much of features as this head looks at, (..., S, D) -> (..., S or 1, D).

        For ``mean`` that is their mean: standardisation is linear and can follow.
        """
        if isinstance(self.aggregate, MeanSnippets):
            return features.mean(dim=-2, keepdim=True)
        return features

    @torch.no_grad()
    def keep_models(self, rows: Sequence[int]) -> None:
        """Cut the stack down to some of its models."""
        index = torch.tensor(rows, device=self.device)
        for parameter in self.parameters():
            parameter.grad = None
            parameter.data = parameter.data[index]
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer[index])
        self.num_models = len(rows)

    def embed(self, features: Tensor) -> Tensor:
        """Aggregated features: (K, B, S, D) or (B, S, D) -> (K, B, E)."""
        vector: Tensor = self.aggregate(self.standardise(features))
        return vector

    def halves(self, features: Tensor) -> Halves:
        """Each clip through both halves of the root layer (contrastive heads)."""
        vector = self.embed(features)  # (K, B, E)
        return Halves(
            query=linear(vector, self.query_weight),
            exemplar=linear(vector, self.exemplar_weight),
        )

    def root(self, query: Tensor, exemplar: Tensor, exemplar_label: Tensor) -> Tensor:
        """Root feature of pairs (Eq. 4 through the first layer).

        Parameters
        ----------
        query, exemplar : Tensor, shape=(K, B, H)
            The query half of the queries, the exemplar half of the exemplars.
        exemplar_label : Tensor, shape=(K, B)
            In label points.

        Returns
        -------
        Tensor, shape=(K, B, H)
        """
        label = (exemplar_label / self.epsilon).to(query.dtype).unsqueeze(2)  # (K, B, 1)
        return (query + exemplar + label * self.label_weight.mT + self.bias.mT).relu()

    @quick_form(pair_roots)
    def roots_of_pairs(self, standardised: Tensor, exemplar_label: Tensor) -> Tensor:
        """:meth:`root` of pairs a against b and, after them, b against a.

        Parameters
        ----------
        standardised : Tensor, shape=(K, 2 B, S, D)
            The clips a, then the clips b.
        exemplar_label : Tensor, shape=(K, 2 B)
            Of the clips b, then of the clips a.

        Returns
        -------
        Tensor, shape=(K, 2 B, H)
        """
        vector = self.aggregate(standardised)
        query, exemplar = linear(vector, self.query_weight), linear(vector, self.exemplar_weight)
        return self.root(query, exemplar.roll(vector.shape[1] // 2, 1), exemplar_label)

    def roots_of_clips(self, standardised: Tensor) -> Tensor:
        """Root feature of clips on their own (direct heads); (K, B, S, D) -> (K, B, H)."""
        return linear(self.aggregate(standardised), self.query_weight, self.bias).relu()

    def direct_root(self, features: Tensor) -> Tensor:
        """The same of features as they come, (B, S, D) or (K, B, S, D) -> (K, B, H)."""
        return self.roots_of_clips(self.standardise(features))

    def direct_value(self, features: Tensor) -> Value:
        return self.output.value(self.direct_root(features))

    def settings(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "output": self.output.settings()}

"""Aggregations: from the snippets of a clip to one vector.

Conventions
-----------
K, B, S, D
    Models in the stack, clips, snippets of a clip, dimension of a snippet feature. Every
    parameter has the leading dimension K.
features : Tensor of float32, shape=(K, B, S, D)
    Standardised; each module maps them to shape (K, B, ``out_dim``).

Source: the mean is the paper's (Sec. 4.1); the LSTM is the way of C3D-LSTM (the paper's
reference 21); the others are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.heads.gart import uniform_parameter


class Aggregation(nn.Module):
    """Parent of the aggregations.

    Attributes
    ----------
    out_dim : int
        Length of the vector.
    """

    out_dim: int


class MeanSnippets(Aggregation):
    """The paper's aggregation: the mean over the snippets."""

    def __init__(self, *, feature_dim: int) -> None:
        super().__init__()
        self.out_dim = feature_dim

    def forward(self, features: Tensor) -> Tensor:
        """(K, B, S, D) -> (K, B, D)."""
        return features.squeeze(2) if features.shape[2] == 1 else features.mean(dim=2)


class OrderedSnippets(Aggregation):
    """An aggregation that keeps the order: every snippet reduced alike, then all side by side.

    One linear layer D -> P with a ReLU is shared by the snippets; the S results are
    concatenated in order, so that the root layer can weigh take-off and entry apart.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        num_snippets: int,
        reduced_dim: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.weight = uniform_parameter(
            (feature_dim, reduced_dim), fan_in=feature_dim, generators=generators
        )
        self.bias = uniform_parameter((1, reduced_dim), fan_in=feature_dim, generators=generators)
        self.out_dim = num_snippets * reduced_dim

    def forward(self, features: Tensor) -> Tensor:
        """(K, B, S, D) -> (K, B, S * P)."""
        num_models, batch, snippets, dim = features.shape
        rows = features.reshape(num_models, batch * snippets, dim)
        reduced = torch.baddbmm(self.bias, rows, self.weight).relu()  # (K, B * S, P)
        return reduced.view(num_models, batch, self.out_dim)


class AttentionSnippets(Aggregation):
    """A weighted mean of the snippets; weights and contents know the place in the clip.

    Every snippet goes through one linear layer D -> P, a learned embedding of its position
    is added, then a ReLU. A learned vector scores the result, and the softmax of the scores
    over the snippets weighs it.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        num_snippets: int,
        out_dim: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.weight, self.position = (
            uniform_parameter((rows, out_dim), fan_in=feature_dim, generators=generators)
            for rows in (feature_dim, num_snippets)
        )
        self.score_weight = uniform_parameter((out_dim, 1), fan_in=out_dim, generators=generators)
        self.out_dim = out_dim

    def forward(self, features: Tensor) -> Tensor:
        """(K, B, S, D) -> (K, B, P)."""
        num_models, _, snippets, _ = features.shape
        rows = torch.bmm(features.flatten(1, 2), self.weight)  # (K, B * S, P)
        values = rows.view(num_models, -1, snippets, self.out_dim) + self.position.unsqueeze(1)
        values = values.relu()  # (K, B, S, P)
        scores = torch.bmm(values.flatten(1, 2), self.score_weight)  # (K, B * S, 1)
        share = scores.view(num_models, -1, snippets, 1).softmax(dim=2)
        return (share * values).sum(dim=2)  # (K, B, P)


class LstmSnippets(Aggregation):
    """The last state of an LSTM that reads the snippets in order.

    The cell of :class:`torch.nn.LSTM` (gates input, forget, cell, output), with K cells
    side by side; both biases of torch's are one here, since only their sum is felt.
    """

    def __init__(
        self, *, feature_dim: int, out_dim: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.input_weight, self.state_weight, self.bias = (
            uniform_parameter((rows, 4 * out_dim), fan_in=out_dim, generators=generators)
            for rows in (feature_dim, out_dim, 1)
        )
        self.out_dim = out_dim

    def forward(self, features: Tensor) -> Tensor:
        """(K, B, S, D) -> (K, B, P)."""
        num_models, batch, snippets, _ = features.shape
        # The input's share of all gates in one product; only the state's goes step by step.
        gates = torch.baddbmm(self.bias, features.flatten(1, 2), self.input_weight)
        gates = gates.view(num_models, batch, snippets, -1)  # (K, B, S, 4 P)
        state = cell = features.new_zeros(num_models, batch, self.out_dim)
        for step in gates.unbind(dim=2):
            step = torch.baddbmm(step, state, self.state_weight)
            enter, keep, new, leave = step.chunk(4, dim=2)  # (K, B, P) each
            cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * cell.tanh()
        return state


def aggregation(
    config: HeadConfig,
    *,
    num_snippets: int,
    feature_dim: int,
    generators: Sequence[torch.Generator],
) -> Aggregation:
    """The aggregation a head's configuration names, freshly drawn."""
    if config.aggregation == "mean":
        return MeanSnippets(feature_dim=feature_dim)
    if config.aggregation == "lstm":
        return LstmSnippets(feature_dim=feature_dim, out_dim=config.hidden, generators=generators)
    if config.aggregation == "attention":
        return AttentionSnippets(
            feature_dim=feature_dim,
            num_snippets=num_snippets,
            out_dim=config.hidden,
            generators=generators,
        )
    return OrderedSnippets(
        feature_dim=feature_dim,
        num_snippets=num_snippets,
        reduced_dim=config.reduced_dim,
        generators=generators,
    )

"""Support vector regression of a whole clip: prediction, without scikit-learn.

Conventions
-----------
K, V, E
    Models in the stack, support vectors (of the model with most; the others are filled up
    with vectors of coefficient 0), length of a clip's vector.
vector
    ``svr``: the mean of the snippets. ``dct-svr``: the lowest frequencies of the discrete
    cosine transform of each feature over time, side by side. Standardised either way.

    ``label = centre + spread * (intercept + sum_v dual_v exp(-gamma |x - support_v|^2))``

Source: C3D-SVR (the paper's reference 21) and Pose+DCT (reference 24).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.config import HeadConfig
from aqa_pipeline.heads.gart import Value
from aqa_pipeline.heads.head import Regressor

FloatArray = npt.NDArray[np.float64]


def low_frequencies(num_positions: int, *, count: int) -> FloatArray:
    """The first rows of the orthonormal DCT-II, shape=(min(count, S), S).

    ``rows @ x`` are the coefficients of a sequence ``x`` of S positions, lowest first.
    """
    frequency = np.arange(min(count, num_positions))[:, None]
    position = np.arange(num_positions)[None, :]
    rows = np.cos(np.pi * frequency * (position + 0.5) / num_positions)
    rows *= np.sqrt(2 / num_positions)
    rows[0] /= np.sqrt(2)
    return rows


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between all rows, (..., N, E) and (..., V, E) -> (..., N, V)."""
    lengths = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * a @ b.transpose(-1, -2)).clamp(min=0)


class SvrHead(Regressor):
    """A stack of K fitted support vector machines with a Gaussian kernel.

    Everything is a buffer with a leading K, float64 but for the support vectors, so that a
    run folder holds plain tensors. :mod:`aqa_pipeline.training.svr` fills them.

    Parameters
    ----------
    config : HeadConfig
    num_snippets, feature_dim : int
        S and D of the cached features.
    num_models, num_support : int
        K and V.
    """

    basis: Tensor
    mean: Tensor
    std: Tensor
    support: Tensor
    dual: Tensor
    intercept: Tensor
    gamma: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        config: HeadConfig,
        *,
        num_snippets: int,
        feature_dim: int,
        num_models: int,
        num_support: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.num_models, self.is_contrastive = config, num_models, False
        if config.kind == "dct-svr":
            basis = low_frequencies(num_snippets, count=config.dct_coefficients)
        else:
            basis = np.full((1, num_snippets), 1 / num_snippets)
        # It follows from the configuration, so it is not stored.
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)
        length = len(basis) * feature_dim
        for name in ("intercept", "gamma", "centre", "spread"):
            self.register_buffer(name, torch.zeros(num_models, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_models, length, dtype=torch.float64))
        self.register_buffer("std", torch.ones(num_models, length, dtype=torch.float64))
        self.register_buffer("support", torch.zeros(num_models, num_support, length))
        self.register_buffer("dual", torch.zeros(num_models, num_support, dtype=torch.float64))

    def raw_vectors(self, features: Tensor) -> Tensor:
        """Vectors of clips before standardisation, (..., S, D) -> (..., E), float64."""
        return (self.basis @ features.double()).flatten(-2)

    def vectors(self, features: Tensor) -> Tensor:
        """Standardised vectors, (B, S, D) or (K, B, S, D) -> (K, B, E), float32."""
        return ((self.raw_vectors(features) - self.mean[:, None]) / self.std[:, None]).float()

    def direct_value(self, features: Tensor) -> Value:
        distance = squared_distances(self.vectors(features).double(), self.support.double())
        kernel = (-self.gamma[:, None, None] * distance).exp()  # (K, B, V)
        normalised = (kernel @ self.dual.unsqueeze(2)).squeeze(2) + self.intercept[:, None]
        label = self.centre[:, None] + self.spread[:, None] * normalised
        return Value(label, torch.full_like(label, -1, dtype=torch.int64))

    def settings(self) -> dict[str, Any]:
        return {"num_support": self.support.shape[1]}

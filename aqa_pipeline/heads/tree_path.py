"""Path of a pair through the tree, from the root to the chosen leaf (Fig. 8).

Conventions
-----------
L, R
    Layers of decisions and leaves of the tree, R = 2^L.
node
    Node n of layer l stands above the leaves ``n * R / 2^l`` to ``(n + 1) * R / 2^l``,
    the last one excluded; lower leaves are lower score differences.
chosen leaf
    The most probable one that is not empty (Eq. 7). Every number here follows from the
    leaf probabilities: a node's probability is the sum of those of the leaves under it.

Source: Sec. 3.2, Eq. 7, Fig. 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.errors import UsageError
from aqa_pipeline.heads.head import Head, Regressor
from aqa_pipeline.heads.outputs import TreeOutput

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TreePath:
    """One pass through one tree.

    Attributes
    ----------
    leaf_prob : ndarray of float64, shape=(R,)
        Sums to 1.
    edges : ndarray of float64, shape=(R + 1,)
        Bounds of the groups, in label points.
    leaf : int
        The chosen leaf, 0-based.
    offset : float
        Where in the leaf's interval; 0..1, unless the tree has no sigmoid and strays.
    """

    leaf_prob: FloatArray
    edges: FloatArray
    leaf: int
    offset: float

    @property
    def num_layers(self) -> int:
        return len(self.leaf_prob).bit_length() - 1

    def node_prob(self, layer: int) -> FloatArray:
        """Probability of every node of a layer, shape=(2^layer,); layer L are the leaves."""
        prob: FloatArray = self.leaf_prob.reshape(2**layer, -1).sum(axis=1)
        return prob

    def node(self, layer: int) -> int:
        """The path's node in a layer, 0-based."""
        return self.leaf >> (self.num_layers - layer)

    @property
    def path_prob(self) -> FloatArray:
        """Probability of having come this far, after each layer, shape=(L,)."""
        layers = range(1, self.num_layers + 1)
        return np.array([self.node_prob(layer)[self.node(layer)] for layer in layers])

    @property
    def step_prob(self) -> FloatArray:
        """Probability of each layer's own decision, given the ones before, shape=(L,)."""
        path = self.path_prob
        steps: FloatArray = path / np.concatenate([[1.0], path[:-1]])
        return steps

    @property
    def turns_up(self) -> tuple[bool, ...]:
        """For each layer, whether the path turns to the higher half."""
        return tuple(bool(self.node(layer) & 1) for layer in range(1, self.num_layers + 1))

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the chosen leaf's interval, in label points."""
        return float(self.edges[self.leaf]), float(self.edges[self.leaf + 1])

    @property
    def value(self) -> float:
        """What the tree answers (Eq. 7), in label points: ``left + offset * width``.

        The score difference, or the label itself for a direct head.
        """
        left, right = self.interval
        return left + self.offset * (right - left)


def read_path(leaf_prob: npt.ArrayLike, offset: npt.ArrayLike, edges: npt.ArrayLike) -> TreePath:
    """The path to the leaf that Eq. 7 chooses.

    Parameters
    ----------
    leaf_prob, offset : array_like, shape=(R,)
        Probability of each leaf, and the offset that each would answer.
    edges : array_like, shape=(R + 1,)
        In label points.

    Raises
    ------
    UsageError
        If the lengths do not fit, or R is not a power of two.
    """
    prob = np.asarray(leaf_prob, dtype=np.float64)
    offsets = np.asarray(offset, dtype=np.float64)
    bounds = np.asarray(edges, dtype=np.float64)
    count = len(prob)
    if offsets.shape != prob.shape or bounds.shape != (count + 1,) or count & (count - 1):
        raise UsageError(
            f"{count} leaf probabilities, {len(offsets)} offsets and {len(bounds)} edges do not "
            "make a tree: R, R and R + 1 are needed, R a power of two"
        )
    leaf = int(np.where(np.diff(bounds) > 0, prob, -1.0).argmax())
    return TreePath(leaf_prob=prob, edges=bounds, leaf=leaf, offset=float(offsets[leaf]))


@torch.no_grad()
def tree_path(
    head: Regressor,
    query: Tensor,
    *,
    exemplar: Tensor | None = None,
    exemplar_label: float | None = None,
    model: int = 0,
) -> TreePath:
    """The path of one pair through one of the stacked trees; of one clip, for a direct head.

    Parameters
    ----------
    head : Regressor
    query : Tensor of float32, shape=(S, D)
    exemplar : Tensor of float32, shape=(S, D), optional
        Needed by a contrastive head, as is its label.
    exemplar_label : float, optional
        In label points.
    model : int
        Which of the K models, 0-based.

    Raises
    ------
    UsageError
        If the head has no tree, or needs an exemplar and has none.
    """
    if not (isinstance(head, Head) and isinstance(head.output, TreeOutput)):
        raise UsageError(f"a head of kind {head.config.kind!r} has no tree; only gart has one")
    if not head.is_contrastive:
        root = head.direct_root(query.unsqueeze(0))
    elif exemplar is None or exemplar_label is None:
        raise UsageError("a contrastive head compares: give an exemplar and its label")
    else:
        label = torch.tensor([[exemplar_label]], dtype=torch.float64, device=query.device)
        root = head.root(
            head.halves(query.unsqueeze(0)).query,
            head.halves(exemplar.unsqueeze(0)).exemplar,
            label.expand(head.num_models, 1),
        )  # (K, 1, H)
    layer = head.output
    output = layer.tree(root)
    return read_path(
        output.log_prob[model, :, 0].double().exp().cpu().numpy(),
        output.offset[model, :, 0].double().cpu().numpy(),
        layer.groups.edges[model].cpu().numpy(),
    )

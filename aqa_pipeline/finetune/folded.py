"""Layers of the backbone for training on a GPU: BatchNorm folded into the weights.

The statistics of BatchNorm are constants here, so a convolution and its BatchNorm are one
convolution whose weight and bias follow from what learns; autograd goes through that::

    factor = scale / sqrt(variance + epsilon)
    weight' = weight * factor        bias' = shift - mean * factor

The map before BatchNorm, which is as large as the layer's output, is then neither read again
nor kept for the way back. SAME padding is left to convolution and pool where they can say it.
The numbers are those of :class:`aqa_pipeline.backbone.i3d.I3D` up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_pipeline.backbone.i3d import (
    I3D,
    LAYERS,
    NORM_EPSILON,
    Mixed,
    Unit,
    max_pool_same,
    pad_same,
    same_padding,
)

_POOL_BEFORE = dict(LAYERS)
Triple = tuple[int, int, int]


def lay_out_channels_last(backbone: I3D) -> None:
    """Lay the kernels out as the maps are, in place: else each call does it anew.

    A 1x1x1 kernel lies alike either way; its strides stay those that its gradient gets, for
    where the two differ the optimiser updates one parameter after the other.
    """
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv3d) and max(module.kernel_size) > 1:
            weight = module.weight
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def folded_layer(backbone: I3D, name: str, x: Tensor) -> Tensor:
    """What :meth:`aqa_pipeline.backbone.i3d.I3D.layer` computes."""
    pool = _POOL_BEFORE[name]
    if pool is not None:
        x = max_pool(x, kernel=pool[0], stride=pool[1])
    layer = backbone.get_submodule(name)
    return _mixed(layer, x) if isinstance(layer, Mixed) else _unit(layer, x)


def _mixed(block: Mixed, x: Tensor) -> Tensor:
    pooled = max_pool(x, kernel=(3, 3, 3), stride=(1, 1, 1))
    branches = (
        _unit(block.b0, x),
        _unit(block.b1b, _unit(block.b1a, x)),
        _unit(block.b2b, _unit(block.b2a, x)),
        _unit(block.b3, pooled),
    )
    return torch.cat(branches, dim=1)


def _unit(unit: torch.nn.Module, x: Tensor) -> Tensor:
    if not isinstance(unit, Unit):
        raise TypeError(f"{type(unit).__name__} is no unit of I3D")
    conv, norm = unit.conv, unit.norm
    factor = norm.scale * torch.rsqrt(norm.variance + NORM_EPSILON)
    weight = conv.weight * factor.view(-1, 1, 1, 1, 1)
    bias = norm.shift - norm.mean * factor
    kernel, stride = _triple(conv.kernel_size), _triple(conv.stride)
    padding = _both_sides(x, kernel=kernel, stride=stride)
    if padding is None:
        x = pad_same(x, kernel=kernel, stride=stride, value=0.0)
    out = F.conv3d(x, weight, bias, stride=stride, padding=padding or (0, 0, 0))
    return F.relu(out, inplace=True)  # the convolution does not ask for its output again


def max_pool(x: Tensor, *, kernel: Triple, stride: Triple) -> Tensor:
    """What :func:`aqa_pipeline.backbone.i3d.max_pool_same` computes, without a padded copy.

    Where SAME adds one position more behind than before, a last window that reaches past the
    end (``ceil_mode``) says the same.
    """
    paddings = _paddings(x, kernel=kernel, stride=stride)
    behind = [after - before for before, after in paddings]
    if any(more and (more > 1 or step == 1) for more, step in zip(behind, stride, strict=True)):
        return max_pool_same(x, kernel=kernel, stride=stride)  # not in I3D
    before = [before for before, _ in paddings]
    return F.max_pool3d(x, kernel, stride, padding=before, ceil_mode=True)


def _paddings(x: Tensor, *, kernel: Triple, stride: Triple) -> list[tuple[int, int]]:
    sizes = zip(x.shape[2:], kernel, stride, strict=True)
    return [same_padding(size, kernel=k, stride=s) for size, k, s in sizes]


def _both_sides(x: Tensor, *, kernel: Triple, stride: Triple) -> Triple | None:
    """SAME padding where it is as large before as after, else None."""
    found = _paddings(x, kernel=kernel, stride=stride)
    return _triple([a for a, _ in found]) if all(a == b for a, b in found) else None


def _triple(values: tuple[int, ...] | list[int]) -> Triple:
    t, h, w = values
    return t, h, w

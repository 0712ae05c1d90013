"""The kernels of :mod:`.triton_kernels` in plain torch, where there is no triton."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from aqa_pipeline.backbone.i3d import max_pool_same


def bias_relu(y: Tensor, bias: Tensor, out: Tensor) -> None:
    out.copy_((y.float() + bias.float()).relu())


def max_pool(
    x: Tensor,
    out: Tensor,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    before: tuple[int, int, int],
) -> None:
    pooled = max_pool_same(
        x.permute(0, 4, 1, 2, 3),
        kernel=(kernel[0], kernel[1], kernel[1]),
        stride=(stride[0], stride[1], stride[1]),
    )
    out.copy_(pooled.permute(0, 2, 3, 4, 1))


def cut(
    frames: Tensor,
    index: Tensor,
    scale: Tensor,
    shift: Tensor,
    out: Tensor,
    *,
    side: int,
    before: tuple[int, int, int],
) -> None:
    snippets = frames[index].float() * scale - shift
    out.zero_()
    for channel in range(out.shape[-1]):
        block, colour = divmod(channel, 3)
        steps = block // side**2, block // side % side, block % side
        to, of = [], []
        for places, size, first, step in zip(
            out.shape[1:4], snippets.shape[1:4], before, steps, strict=True
        ):
            positions = side * torch.arange(places) - first + step
            to.append(torch.nonzero((positions >= 0) & (positions < size))[:, 0])
            of.append(positions[to[-1]])
        cells = torch.meshgrid(*of, indexing="ij")
        values = snippets[:, cells[0], cells[1], cells[2], colour].to(out.dtype)
        cells = torch.meshgrid(*to, indexing="ij")
        out[:, cells[0], cells[1], cells[2], channel] = values


def on_device_of(x: Tensor) -> AbstractContextManager[None]:
    return nullcontext()

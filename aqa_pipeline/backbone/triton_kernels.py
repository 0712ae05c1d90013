# mypy: ignore-errors
"""Kernels of the backbone's GPU form, for what takes torch several passes over memory.

Importing needs triton, which torch brings on Linux with CUDA; whoever imports this module
has another way where there is none (:mod:`aqa_pipeline.backbone.gpu_form`).

Maps are channels last and dense: position ``((n * T + t) * H + h) * W + w``, then channel.
Offsets are 64-bit numbers: a batch of 360 snippets has more than 2^31 elements. Numbers that
are not finite stay so, for a precision is refused by them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _CHANNELS = 32, 64


@triton.jit
def _bias_relu(
    y, bias, out, rows, channels, y_stride, out_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    values = tl.load(y + row[:, None] * y_stride + channel[None, :], mask=inside, other=0.0)
    shift = tl.load(bias + channel, mask=channel < channels, other=0.0)
    total = values.to(tl.float32) + shift.to(tl.float32)[None, :]
    total = tl.where(total < 0, 0.0, total)
    place = out + row[:, None] * out_stride + channel[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        "rows", "frames", "height", "width", "out_frames", "out_height", "out_width",
        "before_t", "before_h", "before_w",
    ]
)  # fmt: skip
def _max_pool(
    x, out, channels, rows, frames, height, width, out_frames, out_height, out_width,
    before_t, before_h, before_w,
    KERNEL_T: tl.constexpr, KERNEL_S: tl.constexpr, STRIDE_T: tl.constexpr, STRIDE_S: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_channel = (channel < channels)[None, :]
    w = row % out_width * STRIDE_S - before_w
    h = row // out_width % out_height * STRIDE_S - before_h
    t = row // (out_width * out_height) % out_frames * STRIDE_T - before_t
    n = row // (out_width * out_height * out_frames)
    largest = tl.full((ROWS, WIDTH), float("-inf"), tl.float32)
    for a in range(KERNEL_T):  # unrolled wholly, it would take seconds to compile
        for b in range(KERNEL_S):
            for c in tl.static_range(KERNEL_S):
                inside = (row < rows) & (t + a >= 0) & (t + a < frames)
                inside = inside & (h + b >= 0) & (h + b < height) & (w + c >= 0) & (w + c < width)
                place = ((n * frames + t + a) * height + h + b) * width + w + c
                values = tl.load(
                    x + place[:, None] * channels + channel[None, :],
                    mask=inside[:, None] & is_channel,
                    other=float("-inf"),
                )
                largest = tl.maximum(
                    largest, values.to(tl.float32), propagate_nan=tl.PropagateNan.ALL
                )
    tl.store(
        out + row[:, None] * channels + channel[None, :],
        largest.to(out.dtype.element_ty),
        mask=(row < rows)[:, None] & is_channel,
    )


@triton.jit(
    do_not_specialize=[
        "rows", "frames_a_snippet", "height", "width", "out_frames", "out_height", "out_width",
        "before_t", "before_h", "before_w",
    ]
)  # fmt: skip
def _cut(
    frames, index, scale, shift, out, rows, frames_a_snippet, height, width,
    out_frames, out_height, out_width, before_t, before_h, before_w,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    written = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    colour = channel % 3
    w = (row % out_width * SIDE - before_w)[:, None] + (channel // 3 % SIDE)[None, :]
    h = row // out_width % out_height * SIDE - before_h
    h = h[:, None] + (channel // (3 * SIDE) % SIDE)[None, :]
    t = row // (out_width * out_height) % out_frames * SIDE - before_t
    t = t[:, None] + (channel // (3 * SIDE * SIDE))[None, :]
    n = (row // (out_width * out_height * out_frames))[:, None]
    inside = written & (t >= 0) & (t < frames_a_snippet)
    inside = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    frame = tl.load(index + n * frames_a_snippet + t, mask=inside, other=0)
    place = ((frame * height + h) * width + w) * 3 + colour[None, :]
    pixel = tl.load(frames + place, mask=inside, other=0).to(tl.float32)
    value = pixel * tl.load(scale + colour)[None, :] - tl.load(shift + colour)[None, :]
    value = tl.where(inside, value, 0.0)
    place = out + row[:, None] * CHANNELS + channel[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=written)


def bias_relu(y: Tensor, bias: Tensor, out: Tensor) -> None:
    """``out = relu(y + bias)``; both (rows, channels) with dense channels, any row stride."""
    rows, channels = y.shape
    grid = triton.cdiv(rows, _ROWS), triton.cdiv(channels, _CHANNELS)
    _bias_relu[grid](
        y, bias, out, rows, channels, y.stride(0), out.stride(0), ROWS=_ROWS, WIDTH=_CHANNELS
    )


def max_pool(
    x: Tensor,
    out: Tensor,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    before: tuple[int, int, int],
) -> None:
    """Max pool of (N, T, H, W, C) to (N, T', H', W', C); parameters as ``i3d_fast.max_pool``."""
    channels = x.shape[-1]
    rows = out.numel() // channels
    grid = triton.cdiv(rows, _ROWS), triton.cdiv(channels, _CHANNELS)
    _max_pool[grid](
        x, out, channels, rows, *x.shape[1:4], *out.shape[1:4], *before,
        KERNEL_T=kernel[0], KERNEL_S=kernel[1], STRIDE_T=stride[0], STRIDE_S=stride[1],
        ROWS=_ROWS, WIDTH=_CHANNELS,
    )  # fmt: skip


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
    """Frames (F, H, W, 3) by index (n, T) to padded snippets, (n, T', H', W', 3 side^3).

    Position p of the output holds the ``side`` positions from ``side * p - before`` on, along
    each dimension; what lies outside the snippet is 0.
    """
    channels = out.shape[-1]
    rows = out.numel() // channels
    width = triton.next_power_of_2(channels)
    _cut[(triton.cdiv(rows, 128),)](
        frames, index, scale, shift, out, rows, index.shape[1], *frames.shape[1:3],
        *out.shape[1:4], *before, SIDE=side, CHANNELS=channels, ROWS=128, WIDTH=width,
    )  # fmt: skip


def on_device_of(x: Tensor) -> torch.cuda.device:
    """Kernels start on the current device, wherever their tensors are."""
    return torch.cuda.device(x.device)

"""Winograd's F(4x4, 3x3) against the direct convolution, in sizes that fit and do not fit tiles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_pipeline.backbone import winograd
from aqa_pipeline.backbone.winograd import Scratch, WinogradConv


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def direct(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x.double(), kernel.double(), bias.double(), padding=1).relu()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(8, 8, 8), (2, 7, 7), (1, 4, 4), (3, 5, 9), (4, 14, 14), (2, 1, 1), (5, 3, 12)],
)
def test_equals_the_direct_convolution(frames: int, height: int, width: int) -> None:
    kernel, bias = drawn(16, 8, 3, 3, 3), drawn(16, seed=1)
    x = drawn(3, 8, frames, height, width, seed=2)
    found = WinogradConv(kernel, bias)(x)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative_error(found, direct(x, kernel, bias)) < 1e-5


def test_every_position_of_the_kernel_and_the_bias_come_through() -> None:
    """By hand: a kernel with a single one moves the picture by its place."""
    x = drawn(1, 1, 4, 6, 5).abs()
    for t, h, w in [(0, 0, 0), (1, 1, 1), (2, 0, 1), (0, 2, 2), (2, 2, 0)]:
        kernel = torch.zeros(1, 1, 3, 3, 3)
        kernel[0, 0, t, h, w] = 1
        moved = F.pad(x, (1, 1, 1, 1, 1, 1))[:, :, t : t + 4, h : h + 6, w : w + 5] + 0.5
        found = WinogradConv(kernel, torch.tensor([0.5]))(x)
        assert relative_error(found, moved) < 1e-5


def test_writes_into_some_channels_of_a_larger_map() -> None:
    kernel, bias = drawn(4, 8, 3, 3, 3), drawn(4, seed=1)
    for size in (8, 7):
        x = drawn(2, 8, 3, size, size, seed=2)
        whole = torch.full((2, 3, size, size, 10), -1.0)
        WinogradConv(kernel, bias)(x, whole[..., 5:9])
        written = whole[..., 5:9].permute(0, 4, 1, 2, 3)
        assert relative_error(written, direct(x, kernel, bias)) < 1e-5
        assert (whole[..., :5] == -1).all()
        assert (whole[..., 9:] == -1).all()


def test_chunks_of_snippets_give_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = WinogradConv(drawn(4, 8, 3, 3, 3), drawn(4, seed=1))
    x = drawn(5, 8, 3, 7, 9, seed=2)
    at_once = conv(x)
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", 2.5 * 36 * 3 * 2 * 3 * 4 * 4)
    assert relative_error(conv(x), at_once) < 1e-5


def test_shared_memory_leaves_no_trace_of_another_convolution() -> None:
    scratch = Scratch()
    large = WinogradConv(drawn(16, 8, 3, 3, 3), drawn(16, seed=1), scratch)
    small = WinogradConv(drawn(4, 3, 3, 3, 3, seed=3), drawn(4, seed=4), scratch)
    x, y = drawn(2, 8, 4, 9, 9, seed=2), drawn(1, 3, 2, 5, 6, seed=5)
    alone = WinogradConv(drawn(4, 3, 3, 3, 3, seed=3), drawn(4, seed=4))(y)
    with torch.inference_mode():
        large(x.fill_(1e6))
    assert torch.equal(small(y), alone)


def test_scratch_is_used_again_and_grows() -> None:
    scratch = Scratch()
    first = scratch.take("a", 2, 3)
    assert scratch.take("a", 6).data_ptr() == first.data_ptr()
    assert scratch.take("a", 3).data_ptr() == first.data_ptr()
    assert scratch.take("b", 6).data_ptr() != first.data_ptr()
    assert scratch.take("a", 5, 2).shape == (5, 2)

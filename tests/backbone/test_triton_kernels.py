"""The GPU's kernels in triton's interpreter, against torch; ``TRITON_INTERPRET=1`` runs them.

A GPU compares them itself before it uses them
(:func:`aqa_pipeline.backbone.gpu_network.usable_kernels`).
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch

from aqa_pipeline.backbone.fast import max_pool
from aqa_pipeline.backbone.gpu_form import channels_behind, pooled_by
from tests.support import plain_kernels


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without TRITON_INTERPRET=1 triton compiles for a GPU")
    from aqa_pipeline.backbone import triton_kernels

    monkeypatch.setattr(triton_kernels, "on_device_of", lambda x: nullcontext())
    return triton_kernels


@pytest.mark.parametrize("sizes", [(3, 4, 5), (4, 6, 3), (1, 8, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 3), (1, 1))]
)
def test_max_pool_to_the_bit(
    kernels: ModuleType,
    sizes: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    x = torch.randn(2, 72, *sizes).contiguous(memory_format=torch.channels_last_3d)
    x[0, 3, 0, 1, 1] = float("nan")
    found = pooled_by(kernels, x, kernel=kernel, stride=stride)
    expected = max_pool(x, kernel=kernel, stride=stride)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9))


def test_bias_and_relu_between_channels_of_larger_maps(kernels: ModuleType) -> None:
    y, bias = torch.randn(70, 100), torch.randn(100)
    y[0, 13] = float("nan")
    out, expected = torch.full((70, 130), -5.0), torch.full((70, 130), -5.0)
    kernels.bias_relu(y[:, 10:90], bias[10:90], out[:, 20:100])
    plain_kernels.bias_relu(y[:, 10:90], bias[10:90], expected[:, 20:100])
    assert torch.equal(out.nan_to_num(9), expected.nan_to_num(9))
    assert out.isnan().sum() == 1


@pytest.mark.parametrize(("side", "before"), [(1, (2, 3, 2)), (2, (3, 2, 2))])
def test_snippets_from_frames(kernels: ModuleType, side: int, before: tuple[int, int, int]) -> None:
    frames = torch.randint(0, 256, (7, 10, 11, 3), dtype=torch.uint8)
    index = torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])
    scale, shift = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([1.0, 0.0, -3.0])
    out = torch.full((2, 12 // side, 16 // side, 18 // side, 3 * side**3), -5.0)
    expected = out.clone()
    kernels.cut(frames, index, scale, shift, out, side=side, before=before)
    plain_kernels.cut(frames, index, scale, shift, expected, side=side, before=before)
    assert torch.equal(out, expected)
    assert channels_behind(out.permute(0, 4, 1, 2, 3)).is_contiguous()

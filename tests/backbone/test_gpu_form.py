"""The GPU's form of the network, its ways on a CPU: every one the readable form's features.

The kernels' stand-ins are :mod:`tests.support.plain_kernels`; the kernels themselves are compared
in
``test_triton_kernels.py``, and on every GPU before they are used.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_pipeline.backbone import gpu_form as i3d_gpu
from aqa_pipeline.backbone.fast import join
from aqa_pipeline.backbone.gpu_form import (
    Form,
    GpuI3D,
    block_kernel,
    gpu_form,
    in_blocks,
    stem_padding,
)
from aqa_pipeline.backbone.i3d import I3D, normalise, pad_same
from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.errors import UsageError
from tests.support import plain_kernels
from tests.support.random_i3d import thin_i3d

PIXELS = PIXEL_PRESETS["demo"]
FORMS = [
    Form("plain"),
    Form("plain", blocks=True),
    Form("plain", kernels=True),
    Form("epilogue", kernels=True),
    Form("epilogue", kernels=True, blocks=True),
]


@pytest.fixture(scope="module")
def model() -> I3D:
    return thin_i3d()


@pytest.fixture
def network(model: I3D, monkeypatch: pytest.MonkeyPatch) -> GpuI3D:
    monkeypatch.setattr(i3d_gpu, "triton_kernels", lambda: plain_kernels)
    return gpu_form(model, PIXELS)


def assert_same(found: Tensor, expected: Tensor, *, relative: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert expected.abs().max() > 0
    assert float((found - expected).abs().max() / expected.abs().max()) < relative


@pytest.mark.parametrize("sizes", [(9, 64, 66), (12, 65, 64)])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_gives_the_readable_features(
    model: I3D, network: GpuI3D, form: Form, sizes: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (14, *sizes[1:], 3), dtype=torch.uint8)
    index = torch.stack([torch.arange(first, first + sizes[0]) for first in (0, 2)])
    x = normalise(frames[index], PIXELS)
    network.form = form
    with torch.inference_mode():
        expected = model.features(x)
        prepared = network.prepare(frames, index)
        assert_same(network.features_of(prepared), expected)
        assert_same(network.features(x), expected)
        assert_same(network.feature_map(x), model.feature_map(x))
        again = torch.full_like(prepared, 7.0)
        assert network.prepare(frames, index, again) is again
        assert torch.equal(again, prepared)


@pytest.mark.parametrize("size", [9, 64, 65, 112])
def test_the_first_convolution_on_blocks(model: I3D, size: int) -> None:
    x = torch.randn(1, 3, 9, size, 64)
    stem = join([model.conv_1a]).requires_grad_(False)
    plain = stem(pad_same(x, kernel=(7, 7, 7), stride=(2, 2, 2), value=0.0))
    padding = [stem_padding(n, blocks=True) for n in reversed(x.shape[2:])]
    blocks = in_blocks(F.pad(x, [n for pair in padding for n in pair]))
    with torch.inference_mode():
        assert_same(block_kernel(stem)(blocks), plain)


def test_blocks_are_numbered_time_height_width_colour() -> None:
    x = torch.arange(2 * 4 * 2 * 4.0).view(1, 2, 4, 2, 4)
    blocks = in_blocks(x)
    assert blocks.shape == (1, 16, 2, 1, 2)
    channel = ((1 * 2 + 0) * 2 + 1) * 2 + 1  # second frame, first row, second column, colour 1
    assert blocks[0, channel, 1, 0, 1] == x[0, 1, 3, 0, 3]


def test_half_precision_gives_float32_features(network: GpuI3D) -> None:
    half = network.to(torch.float16)
    half.form = Form("epilogue", kernels=True, blocks=True)
    x = torch.randn(1, 3, 9, 64, 64, dtype=torch.float16)
    assert half.features(x).dtype == torch.float32
    assert half.feature_map(x).dtype == torch.float16


def test_without_triton_the_kernels_say_so(model: I3D, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i3d_gpu, "triton_kernels", lambda: None)
    network = gpu_form(model, PIXELS)
    network.form = Form("epilogue", kernels=True)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        network.features(torch.zeros(1, 3, 9, 64, 64))


def test_the_model_still_learns(model: I3D) -> None:
    assert not any(parameter.requires_grad for parameter in gpu_form(model, PIXELS).parameters())
    assert model.conv_1a.conv.weight.requires_grad


def test_refuses_what_the_readable_form_refuses(network: GpuI3D) -> None:
    with pytest.raises(UsageError, match="8 frames is too short for I3D"):
        network.features(torch.zeros(1, 3, 8, 64, 64))

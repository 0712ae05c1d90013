"""Each rewrite alone, then the whole network, against the readable form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_pipeline.backbone import fast as i3d_fast
from aqa_pipeline.backbone.fast import (
    FastMixed,
    FrozenPrefix,
    ReluConv,
    fast_form,
    fold,
    join,
    max_pool,
    snippets_at_once,
)
from aqa_pipeline.backbone.i3d import I3D, LAYERS, Mixed, Unit, max_pool_same
from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.backbone.winograd import Scratch
from aqa_pipeline.errors import UsageError
from tests.support.random_i3d import random_i3d, thin_i3d


@pytest.fixture(scope="module")
def model() -> I3D:
    return random_i3d()


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def assert_same(fast: Tensor, plain: Tensor, *, relative: float = 1e-4) -> None:
    """Largest difference in units of the largest value: zeros have no relative error."""
    assert fast.shape == plain.shape
    assert plain.abs().max() > 0
    assert float((fast - plain).abs().max() / plain.abs().max()) < relative


def test_folded_batchnorm(model: I3D) -> None:
    unit = model.mixed_3b.b1b
    x = torch.randn(2, 96, 3, 5, 6)
    with torch.inference_mode():
        kernel, bias = fold(unit)
        assert_same(F.conv3d(x, kernel, bias, padding=1).relu(), unit(x), relative=1e-5)


def test_joined_1x1x1_convolutions(model: I3D) -> None:
    mixed: Mixed = model.mixed_4b
    units = [mixed.b0, mixed.b1a, mixed.b2a]
    x = torch.randn(1, 480, 2, 3, 4)
    with torch.inference_mode():
        parts = join(units)(channels_last(x)).relu().split([192, 96, 16], dim=1)
        for part, unit in zip(parts, units, strict=True):
            assert_same(part, unit(x), relative=1e-5)


def test_relu_into_some_channels_of_a_larger_map(model: I3D) -> None:
    unit = model.conv_2b
    x = channels_last(torch.randn(1, 64, 2, 3, 4))
    whole = torch.full((1, 2, 3, 4, 70), -1.0)
    with torch.inference_mode():
        ReluConv([unit])(x, whole[..., 3:67])
        assert_same(whole[..., 3:67].permute(0, 4, 1, 2, 3), unit(x), relative=1e-5)
    assert (whole[..., :3] == -1).all()
    assert (whole[..., 67:] == -1).all()


def test_snippets_one_at_a_time_are_the_batch(model: I3D, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = fast_form(model)
    x = channels_last(torch.randn(5, 3, 9, 64, 65))
    monkeypatch.setattr(i3d_fast, "_LARGE_MAPS_PIXELS", 5 * 9 * 64 * 65)
    together = fast.features(x)
    monkeypatch.setattr(i3d_fast, "_LARGE_MAPS_PIXELS", 2 * 9 * 64 * 65)
    assert snippets_at_once(9, 64, 65) == 2
    assert_same(fast.features(x), together, relative=1e-5)
    parts = (x[first : first + 2] for first in (0, 2, 4))
    assert torch.equal(fast.features_of_parts(parts), fast.features(x))
    assert snippets_at_once(16, 1000, 1000) == 1


def test_stride_two_is_left_to_hand_padding(model: I3D) -> None:
    assert join([model.conv_1a]).padding == (0, 0, 0)
    assert join([model.conv_2c]).padding == (1, 1, 1)


@pytest.mark.parametrize("sizes", [(2, 7, 7), (3, 4, 5), (4, 6, 3), (5, 1, 2), (1, 8, 8)])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 3), (1, 1))]
)
def test_max_pool_in_two_steps_is_equal_to_the_bit(
    sizes: tuple[int, int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    x = torch.randn(2, 6, *sizes)  # negative too: no added position may win
    plain = max_pool_same(
        x, kernel=(kernel[0], kernel[1], kernel[1]), stride=(stride[0], stride[1], stride[1])
    )
    assert torch.equal(max_pool(channels_last(x), kernel=kernel, stride=stride), plain)
    assert torch.equal(max_pool(x, kernel=kernel, stride=stride), plain)


@pytest.mark.parametrize("scratch", [None, Scratch()])
def test_mixed_block(model: I3D, scratch: Scratch | None) -> None:
    x = torch.randn(2, 256, 3, 6, 5).relu()
    before = x.clone()
    fast = FastMixed(model.mixed_3c, scratch, scratch)
    with torch.inference_mode():
        assert_same(fast(channels_last(x)), model.mixed_3c(x), relative=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(16, 112, 112), (9, 64, 64), (15, 65, 97), (10, 90, 79)]
)
def test_features_equal_the_readable_form(model: I3D, frames: int, height: int, width: int) -> None:
    x = torch.randn(2, 3, frames, height, width)
    fast = fast_form(model)
    with torch.inference_mode():
        plain = model.features(x)
        assert_same(fast.features(x), plain)
        assert_same(fast.features(channels_last(x)), plain)
        assert_same(fast.feature_map(x), model.feature_map(x))


def test_features_equal_with_the_published_weights(i3d_weights: Path) -> None:
    model, _ = load_i3d(i3d_weights)
    x = torch.rand(2, 3, 16, 224, 224) * 2 - 1
    with torch.inference_mode():
        assert_same(fast_form(model).features(x), model.features(x))


def test_the_batch_is_not_changed_and_needs_no_gradient(model: I3D) -> None:
    fast = fast_form(model)
    x = channels_last(torch.randn(1, 3, 9, 64, 64))
    before = x.clone()
    features = fast.features(x)
    assert torch.equal(x, before)
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_later_training_does_not_reach_the_fast_form() -> None:
    model = random_i3d(seed=1)
    fast = fast_form(model)
    x = torch.randn(1, 3, 9, 64, 64)
    before = fast.features(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert torch.equal(fast.features(x), before)


def test_a_fold_does_not_share_memory_with_the_model() -> None:
    unit = Unit(2, 2)
    kernel, _ = fold(unit)
    assert kernel.data_ptr() != unit.conv.weight.data_ptr()


def test_refuses_what_the_readable_form_refuses(model: I3D) -> None:
    with pytest.raises(UsageError, match="8 frames is too short for I3D"):
        fast_form(model).features(torch.zeros(1, 3, 8, 64, 64))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count", [0, 1, 3, 5, 10, 12])
def test_the_quick_form_gives_the_map_of_the_readable_one(count: int) -> None:
    backbone = thin_i3d()
    names = [name for name, _ in LAYERS[:count]]
    x = torch.randn(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = x
    with torch.no_grad():
        for name in names:
            wanted = backbone.layer(name, wanted)
    found = FrozenPrefix(backbone, names)(x)
    assert found.shape == wanted.shape
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))

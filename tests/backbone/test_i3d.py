from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.image
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data

from aqa_pipeline.backbone.i3d import (
    I3D,
    FrozenNorm,
    Unit,
    max_pool_same,
    normalise,
    pad_same,
    same_padding,
)
from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset
from aqa_pipeline.errors import UsageError
from tests.support.random_i3d import random_i3d

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def model() -> I3D:
    return random_i3d()


# -- SAME padding --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 7, 2, (2, 3)),  # conv_1a: the larger half comes after
        (225, 7, 2, (3, 3)),
        (16, 7, 2, (2, 3)),
        (15, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (14, 2, 2, (0, 0)),
        (7, 2, 2, (0, 1)),
        (5, 3, 1, (1, 1)),
        (9, 1, 1, (0, 0)),
    ],
)
def test_same_padding_by_hand(
    size: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel=kernel, stride=stride) == expected


def windows(array: Array, kernel: int, stride: int) -> list[list[tuple[int, int]]]:
    """TensorFlow's own wording of SAME, position by position: (index, tap) pairs inside."""
    (size,) = array.shape
    remainder = size % stride
    total = max(kernel - (stride if remainder == 0 else remainder), 0)
    return [
        [(i * stride - total // 2 + k, k) for k in range(kernel)]
        for i in range((size + stride - 1) // stride)
    ]


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("size", [5, 8, 9, 12])
def test_same_convolution_and_pool_equal_a_loop(size: int, kernel: int, stride: int) -> None:
    rng = np.random.default_rng(size)
    line, taps = rng.normal(size=size), rng.normal(size=kernel)
    inside = [
        [(i, k) for i, k in window if 0 <= i < size] for window in windows(line, kernel, stride)
    ]
    convolved = [sum(line[i] * taps[k] for i, k in window) for window in inside]
    pooled = [max(line[i] for i, _ in window) for window in inside]

    x = torch.from_numpy(line).view(1, 1, 1, 1, size)
    sizes, strides = (1, 1, kernel), (1, 1, stride)
    padded = pad_same(x, kernel=sizes, stride=strides, value=0.0)
    y = F.conv3d(padded, torch.from_numpy(taps).view(1, 1, 1, 1, kernel), stride=strides)
    np.testing.assert_allclose(y.flatten().numpy(), convolved, atol=1e-12)
    z = max_pool_same(x, kernel=sizes, stride=strides)
    np.testing.assert_array_equal(z.flatten().numpy(), pooled)


def test_same_pads_each_dimension_by_its_own_size() -> None:
    x = torch.arange(2 * 3 * 4.0).view(1, 1, 2, 3, 4)
    out = max_pool_same(x, kernel=(3, 3, 3), stride=(2, 2, 2))
    # T 2 and W 4 are padded after only, H 3 on both sides: window (0, 0, 0) is
    # t 0..1, h 0..1, w 0..2.
    assert out.shape == (1, 1, 1, 2, 2)
    assert out[0, 0, 0, 0, 0] == x[0, 0, 1, 1, 2]
    assert out[0, 0, 0, 1, 1] == x[0, 0, 1, 2, 3]


def test_padding_never_wins_a_max_pool() -> None:
    x = torch.full((1, 1, 1, 3, 3), -5.0)
    assert torch.equal(max_pool_same(x, kernel=(1, 3, 3), stride=(1, 1, 1)), x)


# -- the layers ------------------------------------------------------------------------


def test_batchnorm_epsilon_is_1e_3() -> None:
    norm = FrozenNorm(1)
    norm.load_state_dict(
        {
            "scale": torch.tensor([2.0]),
            "shift": torch.tensor([0.5]),
            "mean": torch.tensor([1.0]),
            "variance": torch.tensor([0.003]),
        }
    )
    y = norm(torch.full((1, 1, 1, 1, 1), 3.0))
    assert y.item() == pytest.approx(2 * (3 - 1) / (0.003 + 0.001) ** 0.5 + 0.5, rel=1e-6)


def test_training_mode_moves_no_statistics() -> None:
    unit = Unit(3, 4, size=3).train()
    before = {name: buffer.clone() for name, buffer in unit.named_buffers()}
    x = torch.randn(2, 3, 4, 5, 6)
    torch.autograd.backward(unit(x).sum())
    assert unit.norm.scale.grad is not None
    assert all(torch.equal(before[name], buffer) for name, buffer in unit.named_buffers())
    assert torch.equal(unit(x), unit.eval()(x))


# -- the network -----------------------------------------------------------------------


def test_parameters_and_statistics(model: I3D) -> None:
    """PROTOCOL: 12,689,984 parameters and 14,560 statistics; scales come on top."""
    state = model.state_dict()
    scales = sum(t.numel() for name, t in state.items() if name.endswith("norm.scale"))
    assert sum(p.numel() for p in model.parameters()) - scales == 12_689_984
    assert sum(b.numel() for b in model.buffers()) == 14_560
    assert scales == 14_560 // 2


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(9, 64, 64), (16, 112, 112), (17, 65, 97), (10, 80, 127)]
)
def test_sizes_the_network_admits(model: I3D, frames: int, height: int, width: int) -> None:
    x = torch.zeros(1, 3, frames, height, width)
    with torch.inference_mode():
        last = model.feature_map(x)
        assert torch.equal(model.features(x), last.mean(dim=(2, 3, 4)))
    expected = [-(-frames // 8), -(-height // 32), -(-width // 32)]
    assert list(last.shape) == [1, 1024, *expected]
    assert last.min() >= 0


@pytest.mark.parametrize("frames", [9, 16])
def test_features_are_the_published_pool_at_224(model: I3D, frames: int) -> None:
    x = torch.randn(1, 3, frames, 224, 224)
    with torch.inference_mode():
        pooled = F.avg_pool3d(model.feature_map(x), (2, 7, 7), stride=1)
        assert pooled.shape == (1, 1024, 1, 1, 1)
        torch.testing.assert_close(model.features(x), pooled.flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 3, 8, 64, 64), "8 frames is too short for I3D: it needs at least 9"),
        ((1, 3, 9, 64, 63), "63x64 pixels are too small for I3D: it needs at least 64x64"),
        ((1, 2, 9, 64, 64), r"\(N, 3, T, H, W\), not torch.float32 of \(1, 2, 9, 64, 64\)"),
        ((3, 9, 64, 64), r"not torch.float32 of \(3, 9, 64, 64\)"),
    ],
)
def test_refused_shapes(model: I3D, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        model.features(torch.zeros(shape))


def test_frames_that_were_not_normalised_are_refused(model: I3D) -> None:
    with pytest.raises(UsageError, match=r"torch.uint8 .*did you forget normalise\(\)"):
        model.features(torch.zeros(1, 3, 9, 64, 64, dtype=torch.uint8))


def test_logits_need_the_size_of_the_published_pool(model: I3D) -> None:
    with pytest.raises(UsageError, match=r"at least 193 pixels a side .* not 192x224"):
        model.logits(torch.zeros(1, 3, 9, 224, 192))
    with torch.inference_mode():
        assert model.logits(torch.zeros(1, 3, 9, 193, 224)).shape == (1, 400)


def test_gradients_reach_the_input_through_the_last_map(model: I3D) -> None:
    x = torch.randn(1, 3, 9, 64, 64, requires_grad=True)
    torch.autograd.backward(model.feature_map(x).sum())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# -- normalise -------------------------------------------------------------------------


def test_normalise_by_hand() -> None:
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 1, 1, 1, 3)
    kinetics = normalise(frames, PIXEL_PRESETS["kinetics"])
    assert kinetics.shape == (1, 3, 1, 1, 1)
    assert kinetics.flatten().tolist() == pytest.approx([-1, -0.6, 1], abs=1e-6)
    core = normalise(frames, PIXEL_PRESETS["core"]).flatten().tolist()
    by_hand = [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert core == pytest.approx(by_hand, abs=1e-6)


def test_normalise_puts_every_number_in_its_place() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    x = normalise(frames, PixelPreset("plain", crop=5, mean=(0, 0, 0), std=(1, 1, 1)))
    for n, c, t, h, w in itertools.product(*map(range, x.shape)):
        assert x[n, c, t, h, w].item() == pytest.approx(frames[n, t, h, w, c].item() / 255)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 2, 4, 4, 3), torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8)],
    ids=["float", "channels first"],
)
def test_normalise_refuses_other_arrays(frames: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"frames are uint8 of shape \(N, T, H, W, 3\), not"):
        normalise(frames, PIXEL_PRESETS["kinetics"])


# -- with the published weights --------------------------------------------------------


def test_golden_logits_of_15_black_frames(i3d_weights: Path) -> None:
    """Published output of the TF-Hub module (PROTOCOL: "Golden fact")."""
    model, _ = load_i3d(i3d_weights)
    black = torch.zeros(1, 15, 224, 224, 3, dtype=torch.uint8)
    with torch.inference_mode():
        logits = model.logits(normalise(black, PIXEL_PRESETS["kinetics"]))[0]
    first, last = [0.7422105, 2.829727, 0.39993525], [-0.38092658, 0.65539014, -1.4021297]
    assert logits[:3].tolist() == pytest.approx(first, abs=1e-4)
    assert logits[-3:].tolist() == pytest.approx(last, abs=1e-4)


def test_inputs_in_minus_one_to_one_match_the_stored_variance(i3d_weights: Path) -> None:
    """A camera moving over a photograph: the variance of conv_1a is about the stored one."""
    model, _ = load_i3d(i3d_weights)
    photo = matplotlib.image.imread(get_sample_data("grace_hopper.jpg", asfileobj=False))
    clip = np.stack([photo[100 + 3 * t :, 60 + 4 * t :][:224, :224] for t in range(16)])

    def ratio(preset: PixelPreset) -> float:
        x = normalise(torch.from_numpy(clip)[None], preset)
        with torch.inference_mode():
            padded = pad_same(x, kernel=(7, 7, 7), stride=(2, 2, 2), value=0.0)
            variance = model.conv_1a.conv(padded).var(dim=(0, 2, 3, 4))
        return float((variance / model.conv_1a.norm.variance).median())

    assert 0.6 < ratio(PIXEL_PRESETS["kinetics"]) < 1.6
    assert ratio(PixelPreset("unit", crop=224, mean=(0, 0, 0), std=(1, 1, 1))) < 0.5


def test_normalising_again_makes_no_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, making them waits for whatever it computes."""
    frames = torch.randint(0, 256, (1, 2, 4, 4, 3), dtype=torch.uint8)
    with torch.inference_mode():
        first = normalise(frames, PIXEL_PRESETS["demo"])
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(normalise(frames, PIXEL_PRESETS["demo"]), first)

"""I3D: Inception-v1 inflated to three dimensions, as trained on Kinetics-400.

The backbone of Sec. 4.1, the readable form. :mod:`aqa_pipeline.backbone.fast` makes from it
the form that extraction runs.

Conventions
-----------
x
    A batch of snippets, float32, shape ``(N, 3, T, H, W)``: RGB, in [-1, 1] for the
    published weights (see :func:`normalise`). T frames, H x W pixels.
SAME padding
    TensorFlow's: the output has ``ceil(n / stride)`` positions, and of an odd number of
    padded positions the larger half comes *after*. At stride 2 over an even size that is
    asymmetric, so torch's own ``padding=`` cannot say it.
BatchNorm
    Always with the stored statistics, in training too: the affine part learns, the
    statistics never move (the published program does the same). epsilon is 1e-3.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017; the layer
widths are those of the published module deepmind/i3d-kinetics-400.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import UsageError

FEATURE_DIM = 1024  #: channels of the last map
NUM_CLASSES = 400  #: Kinetics-400
MIN_FRAMES = 9  #: the fewest frames that leave two time positions in the last map
MIN_SIZE = 64  #: pixels; below, the last map is a single position in space
MIN_LOGITS_SIZE = 193  #: pixels; the classifier pools 7 x 7 positions of 32 pixels each
NORM_EPSILON = 1e-3

#: Channels of each Mixed block: input, then b0, b1a, b1b, b2a, b2b, b3.
MIXED_CHANNELS = {
    "mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}

Pool = tuple[tuple[int, int, int], tuple[int, int, int]]  # kernel, stride

#: The layers in order, each with the max pool before it; behind them what comes out of 16
#: frames of 224 x 224 pixels.
LAYERS: tuple[tuple[str, Pool | None], ...] = (
    ("conv_1a", None),  # (N, 64, 8, 112, 112)
    ("conv_2b", ((1, 3, 3), (1, 2, 2))),  # (N, 64, 8, 56, 56)
    ("conv_2c", None),  # (N, 192, 8, 56, 56)
    ("mixed_3b", ((1, 3, 3), (1, 2, 2))),  # (N, 256, 8, 28, 28)
    ("mixed_3c", None),  # (N, 480, 8, 28, 28)
    ("mixed_4b", ((3, 3, 3), (2, 2, 2))),  # (N, 512, 4, 14, 14)
    ("mixed_4c", None),
    ("mixed_4d", None),
    ("mixed_4e", None),  # (N, 528, 4, 14, 14)
    ("mixed_4f", None),  # (N, 832, 4, 14, 14)
    ("mixed_5b", ((2, 2, 2), (2, 2, 2))),  # (N, 832, 2, 7, 7)
    ("mixed_5c", None),  # (N, 1024, 2, 7, 7)
)

_POOL_BEFORE = dict(LAYERS)


@functools.cache
def scale_and_shift(pixels: PixelPreset, device: torch.device) -> tuple[Tensor, Tensor]:
    """What :func:`normalise` multiplies with and subtracts, each of float32, shape=(3,).

    Kept on the device: making them there waits until it has done all that it was told before.
    """
    with torch.inference_mode(False):  # for use inside and outside of it
        mean = torch.tensor(pixels.mean, device=device)
        std = torch.tensor(pixels.std, device=device)
        return 1 / (255 * std), mean / std


def normalise(frames: Tensor, pixels: PixelPreset) -> Tensor:
    """Decoded frames to the network's input: ``(frames / 255 - mean) / std``.

    Parameters
    ----------
    frames : Tensor of uint8, shape=(N, T, H, W, 3)
        RGB.
    pixels : PixelPreset
        Its ``mean`` and ``std``, in units of full scale.

    Returns
    -------
    Tensor of float32, shape=(N, 3, T, H, W)
        Channels stay last in memory (``torch.channels_last_3d``), which costs nothing
        here and is what the fast form wants.

    Raises
    ------
    UsageError
        If the frames are not uint8 with three channels last.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise UsageError(
            "frames are uint8 of shape (N, T, H, W, 3), "
            f"not {frames.dtype} of {tuple(frames.shape)}"
        )
    scale, shift = scale_and_shift(pixels, frames.device)
    scaled = frames.to(torch.float32).mul_(scale).sub_(shift)
    return scaled.permute(0, 4, 1, 2, 3)  # (N, T, H, W, 3) -> (N, 3, T, H, W)


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Positions that TensorFlow's SAME adds before and after one dimension.

    Returns
    -------
    before, after : int
        ``after`` is the larger when the sum is odd.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, *, kernel: Sequence[int], stride: Sequence[int], value: float) -> Tensor:
    """Pad the last three dimensions of ``x`` so that a plain convolution or pool is SAME."""
    before_after: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        before_after += same_padding(size, kernel=k, stride=s)  # F.pad counts from the last
    return F.pad(x, before_after, value=value) if any(before_after) else x


def max_pool_same(
    x: Tensor, *, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> Tensor:
    """Largest value under each window, SAME padding; padded positions never win."""
    padded = pad_same(x, kernel=kernel, stride=stride, value=float("-inf"))
    return F.max_pool3d(padded, kernel, stride)


def check_input(x: Tensor) -> None:
    """Refuse a batch the network cannot take, in words.

    Raises
    ------
    UsageError
        If the shape is not ``(N, 3, T, H, W)`` with T >= 9 and H, W >= 64, or the
        numbers are integers.
    """
    if x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point():
        raise UsageError(
            f"I3D takes floats of shape (N, 3, T, H, W), not {x.dtype} of {tuple(x.shape)}"
            + ("; did you forget normalise()?" if x.dtype == torch.uint8 else "")
        )
    frames, height, width = x.shape[2:]
    if frames < MIN_FRAMES:
        raise UsageError(
            f"a snippet of {frames} frames is too short for I3D: it needs at least {MIN_FRAMES}"
        )
    if min(height, width) < MIN_SIZE:
        raise UsageError(
            f"frames of {width}x{height} pixels are too small for I3D: "
            f"it needs at least {MIN_SIZE}x{MIN_SIZE}"
        )


class FrozenNorm(nn.Module):
    """BatchNorm whose statistics are constants; only ``scale`` and ``shift`` learn."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.mean, self.variance, self.scale, self.shift, training=False, eps=NORM_EPSILON
        )


class Unit(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; ``size`` and ``stride`` are cubic."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, size, stride, bias=False)
        self.norm = FrozenNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, kernel=self.conv.kernel_size, stride=self.conv.stride, value=0.0)
        return F.relu(self.norm(self.conv(x)))  # (N, out, ceil(T/s), ceil(H/s), ceil(W/s))


class Mixed(nn.Module):
    """Inception block: four branches on the same input, joined by channel."""

    def __init__(self, inp: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3: int) -> None:
        super().__init__()
        self.b0 = Unit(inp, b0)
        self.b1a = Unit(inp, b1a)
        self.b1b = Unit(b1a, b1b, size=3)
        self.b2a = Unit(inp, b2a)
        self.b2b = Unit(b2a, b2b, size=3)
        self.b3 = Unit(inp, b3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool_same(x, kernel=(3, 3, 3), stride=(1, 1, 1))
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3(pooled))
        return torch.cat(branches, dim=1)  # (N, b0 + b1b + b2b + b3, T, H, W)


class I3D(nn.Module):
    """The network; the weights come from :mod:`aqa_pipeline.backbone.weights`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1a = Unit(3, 64, size=7, stride=2)
        self.conv_2b = Unit(64, 64)
        self.conv_2c = Unit(64, 192, size=3)
        self.mixed_3b = Mixed(*MIXED_CHANNELS["mixed_3b"])
        self.mixed_3c = Mixed(*MIXED_CHANNELS["mixed_3c"])
        self.mixed_4b = Mixed(*MIXED_CHANNELS["mixed_4b"])
        self.mixed_4c = Mixed(*MIXED_CHANNELS["mixed_4c"])
        self.mixed_4d = Mixed(*MIXED_CHANNELS["mixed_4d"])
        self.mixed_4e = Mixed(*MIXED_CHANNELS["mixed_4e"])
        self.mixed_4f = Mixed(*MIXED_CHANNELS["mixed_4f"])
        self.mixed_5b = Mixed(*MIXED_CHANNELS["mixed_5b"])
        self.mixed_5c = Mixed(*MIXED_CHANNELS["mixed_5c"])
        self.classifier = nn.Conv3d(FEATURE_DIM, NUM_CLASSES, 1)

    def layer(self, name: str, x: Tensor) -> Tensor:
        """One layer of :data:`LAYERS` with the pool before it, on the map of the layer before."""
        pool = _POOL_BEFORE[name]
        if pool is not None:
            x = max_pool_same(x, kernel=pool[0], stride=pool[1])
        out: Tensor = getattr(self, name)(x)
        return out

    def feature_map(self, x: Tensor) -> Tensor:
        """The last map, Mixed_5c.

        Parameters
        ----------
        x : Tensor, shape=(N, 3, T, H, W)

        Returns
        -------
        Tensor, shape=(N, 1024, ceil(T/8), ceil(H/32), ceil(W/32))
            Not negative.

        Raises
        ------
        UsageError
            If T < 9, or H or W < 64.
        """
        check_input(x)
        for name, _ in LAYERS:
            x = self.layer(name, x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """One vector a snippet: the mean of the last map over all its positions.

        For 9 to 16 frames of 224 x 224 pixels that is the published 2 x 7 x 7 pool.

        Parameters
        ----------
        x : Tensor, shape=(N, 3, T, H, W)

        Returns
        -------
        Tensor, shape=(N, 1024)
        """
        return self.feature_map(x).mean(dim=(2, 3, 4))

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the 400 Kinetics classes, before the softmax.

        Parameters
        ----------
        x : Tensor, shape=(N, 3, T, H, W)
            H and W at least 193: the published classifier pools 2 x 7 x 7 positions.

        Returns
        -------
        Tensor, shape=(N, 400)
        """
        height, width = x.shape[-2:]
        if min(height, width) < MIN_LOGITS_SIZE:
            raise UsageError(
                f"the Kinetics classifier needs frames of at least {MIN_LOGITS_SIZE} pixels a "
                f"side (trained at 224), not {width}x{height}; features() takes smaller ones"
            )
        pooled = F.avg_pool3d(self.feature_map(x), (2, 7, 7), stride=1)  # (N, 1024, T', 1, 1)
        logits: Tensor = self.classifier(pooled)  # (N, 400, T', 1, 1)
        return logits.mean(dim=(2, 3, 4))

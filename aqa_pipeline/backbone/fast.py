"""The form of I3D for a CPU: the same function in fewer operations.

Made from a trained :class:`~aqa_pipeline.backbone.i3d.I3D` by rewrites that are exact up to
rounding (features agree within 1e-4 relative; measured: 3e-6). It cannot be trained.

=====================  ==========================================================
rewrite                why it is exact
=====================  ==========================================================
folded BatchNorm       its statistics are constants, so it is a factor and a shift
                       for each output channel: both move into the convolution
joined 1x1x1           b0, b1a and b2a of a Mixed block read the same input: one
                       convolution with their output channels side by side
channels last          a layout of memory (``torch.channels_last_3d``), not a number
max pool in two steps  the largest of a box is the largest over time of the largest
                       over space; each step is torch's two-dimensional pool, which
                       is vectorised for this layout (the 3D one is not)
pool without a copy    SAME adds ``before`` positions in front, which torch's own
                       padding does, and what it adds behind is what ``ceil_mode``
                       adds; both ignore the added positions
ReLU in place          nobody reads the map before it
no joining copy        the four branches of a Mixed block write, through their ReLU,
                       into their channels of its output
a snippet at a time    through the layers with large maps, which then stay near the
                       cache and use the same memory again; nothing crosses snippets
Winograd               most 3x3x3 convolutions with a quarter of the
                       multiplications, :mod:`aqa_pipeline.backbone.winograd`; float32 only
=====================  ==========================================================

What each of them gives is in docs/performance.md. Tried and left out, because they were
no quicker: see there.

Fine-tuning uses the same form for the layers that do not learn (:class:`FrozenPrefix`), which are
most of the work of a step when only the last ones learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqa_pipeline.backbone.i3d import (
    I3D,
    LAYERS,
    NORM_EPSILON,
    Mixed,
    Unit,
    check_input,
    pad_same,
    same_padding,
)
from aqa_pipeline.backbone.winograd import Scratch, WinogradConv

#: The layers with large maps take so many pixels (frames x height x width) at once on a CPU:
#: one snippet of 224 x 224. Maps then stay near the cache, and their memory is used again
#: instead of being asked for, and cleared, anew.
_LARGE_MAPS_PIXELS = 16 * 224 * 224

#: Where the Winograd form measured faster: of b2b in the largest maps only, and of nothing in
#: maps of 7 x 7.
_WINOGRAD_B2B = ("mixed_3b", "mixed_3c")
_DIRECT = ("mixed_5b", "mixed_5c")


@torch.no_grad()
def fold(unit: Unit) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the one convolution that equals ``unit`` before its ReLU.

    Computed in float64: the fold happens once and its rounding would be in every feature.

    Returns
    -------
    kernel : Tensor of float32, shape=(out, in, t, h, w)
    bias : Tensor of float32, shape=(out,)
    """
    norm = unit.norm
    factor = norm.scale.double() * torch.rsqrt(norm.variance.double() + NORM_EPSILON)
    kernel = unit.conv.weight.double() * factor[:, None, None, None, None]
    bias = norm.shift.double() - norm.mean.double() * factor
    return kernel.float(), bias.float()


def join(units: list[Unit]) -> nn.Conv3d:
    """One convolution whose output channels are those of ``units``, in order.

    The units have the same input, kernel and stride; a single unit is only folded.
    """
    folded = [fold(unit) for unit in units]
    kernel = torch.cat([kernel for kernel, _ in folded])
    bias = torch.cat([bias for _, bias in folded])
    channels_out, channels_in, size = kernel.shape[:3]
    stride = units[0].conv.stride[0]
    # Stride 2 is asymmetric and padded by hand; at stride 1 SAME is half the kernel.
    padding = size // 2 if stride == 1 else 0
    with torch.device("meta"):
        conv = nn.Conv3d(channels_in, channels_out, size, stride, padding)
    conv.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last_3d))
    conv.bias = nn.Parameter(bias)
    return conv


def max_pool(x: Tensor, *, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """SAME max pool of a channels-last map in two steps, space then time.

    Parameters
    ----------
    x : Tensor, shape=(N, C, T, H, W), channels last in memory
    kernel, stride : (int, int)
        Over time, and over height and width.

    Returns
    -------
    Tensor, shape=(N, C, ceil(T/stride[0]), ceil(H/stride[1]), ceil(W/stride[1]))
    """
    (kernel_t, kernel_s), (stride_t, stride_s) = kernel, stride
    n, c, t, h, w = x.shape
    before_t, _ = same_padding(t, kernel=kernel_t, stride=stride_t)
    before_h, _ = same_padding(h, kernel=kernel_s, stride=stride_s)
    before_w, _ = same_padding(w, kernel=kernel_s, stride=stride_s)
    # Memory holds (N, T, H, W, C), so each reshape below is a view, and each map it
    # makes is a channels-last map of its own.
    frames = x.permute(0, 2, 3, 4, 1).reshape(n * t, h, w, c).permute(0, 3, 1, 2)
    frames = F.max_pool2d(
        frames, kernel_s, stride_s, padding=(before_h, before_w), ceil_mode=True
    )  # (N * T, C, H', W')
    h, w = frames.shape[2:]
    if kernel_t > 1:
        lines = frames.permute(0, 2, 3, 1).reshape(n, t, h * w, c).permute(0, 3, 1, 2)
        frames = F.max_pool2d(
            lines, (kernel_t, 1), (stride_t, 1), padding=(before_t, 0), ceil_mode=True
        )  # (N, C, T', H' * W')
    return frames.permute(0, 2, 3, 1).reshape(n, -1, h, w, c).permute(0, 4, 1, 2, 3)


class ReluConv(nn.Module):
    """A folded unit: convolution, then ReLU in place or into ``out``."""

    def __init__(self, units: list[Unit]) -> None:
        super().__init__()
        self.conv = join(units)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """As :meth:`aqa_pipeline.backbone.winograd.WinogradConv.forward`."""
        y: Tensor = self.conv(x)
        if out is None:
            return y.relu_()
        torch.clamp_min(y.permute(0, 2, 3, 4, 1), 0, out=out)
        return out.permute(0, 4, 1, 2, 3)


def cubic_conv(unit: Unit, scratch: Scratch | None) -> nn.Module:
    """A 3x3x3 unit in its Winograd form; without scratch memory a direct convolution."""
    return WinogradConv(*fold(unit), scratch) if scratch else ReluConv([unit])


class FastMixed(nn.Module):
    """A Mixed block with the three 1x1x1 convolutions on its input joined.

    Parameters
    ----------
    mixed : Mixed
    b1b, b2b : Scratch or None
        Memory for the Winograd form of these two 3x3x3 convolutions; None: direct ones.
    """

    def __init__(
        self, mixed: Mixed, b1b: Scratch | None = None, b2b: Scratch | None = None
    ) -> None:
        super().__init__()
        self.widths = [len(unit.norm.shift) for unit in (mixed.b0, mixed.b1a, mixed.b2a)]
        self.ends = [len(unit.norm.shift) for unit in (mixed.b0, mixed.b1b, mixed.b2b, mixed.b3)]
        self.joined = join([mixed.b0, mixed.b1a, mixed.b2a])
        self.b1b = cubic_conv(mixed.b1b, b1b)
        self.b2b = cubic_conv(mixed.b2b, b2b)
        self.b3 = ReluConv([mixed.b3])

    def forward(self, x: Tensor) -> Tensor:
        n, _, t, h, w = x.shape
        out = x.new_empty(n, t, h, w, sum(self.ends))
        to_b0, to_b1, to_b2, to_b3 = torch.split(out, self.ends, dim=-1)
        b0, b1, b2 = torch.split(self.joined(x), self.widths, dim=1)
        torch.clamp_min(b0.permute(0, 2, 3, 4, 1), 0, out=to_b0)
        self.b1b(b1.relu_(), to_b1)
        self.b2b(b2.relu_(), to_b2)
        self.b3(max_pool(x, kernel=(3, 3), stride=(1, 1)), to_b3)
        return out.permute(0, 4, 1, 2, 3)  # (N, b0 + b1b + b2b + b3, T, H, W)


def fast_layer(model: I3D, name: str, scratch: Scratch | None) -> nn.Module:
    """The quick form of one layer of a trained network.

    Parameters
    ----------
    model : I3D
    name : str
        Of :data:`aqa_pipeline.backbone.i3d.LAYERS`.
    scratch : Scratch or None
        Memory for Winograd forms; None: direct convolutions.
    """
    layer = model.get_submodule(name)
    if isinstance(layer, Mixed):
        b1b = None if name in _DIRECT else scratch
        return FastMixed(layer, b1b, scratch if name in _WINOGRAD_B2B else None)
    assert isinstance(layer, Unit)
    return cubic_conv(layer, scratch) if name == "conv_2c" else ReluConv([layer])


class FastI3D(nn.Module):
    """Inference only; made by :func:`fast_form`."""

    def __init__(self, model: I3D, *, winograd: bool) -> None:
        super().__init__()
        scratch = Scratch() if winograd else None
        self.conv_1a = fast_layer(model, "conv_1a", scratch)
        self.conv_2b = fast_layer(model, "conv_2b", scratch)
        self.conv_2c = fast_layer(model, "conv_2c", scratch)
        self.mixed_3b = fast_layer(model, "mixed_3b", scratch)
        self.mixed_3c = fast_layer(model, "mixed_3c", scratch)
        self.mixed_4b = fast_layer(model, "mixed_4b", scratch)
        self.mixed_4c = fast_layer(model, "mixed_4c", scratch)
        self.mixed_4d = fast_layer(model, "mixed_4d", scratch)
        self.mixed_4e = fast_layer(model, "mixed_4e", scratch)
        self.mixed_4f = fast_layer(model, "mixed_4f", scratch)
        self.mixed_5b = fast_layer(model, "mixed_5b", scratch)
        self.mixed_5c = fast_layer(model, "mixed_5c", scratch)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def feature_map(self, x: Tensor) -> Tensor:
        """The last map; shapes and errors as :meth:`aqa_pipeline.backbone.i3d.I3D.feature_map`."""
        check_input(x)
        at_once = snippets_at_once(*x.shape[2:]) if x.device.type == "cpu" else len(x)
        return self._feature_map(torch.split(x, at_once))

    def _feature_map(self, parts: Iterable[Tensor]) -> Tensor:
        x = torch.cat([self._large_maps(part) for part in parts])
        x = self.mixed_4b(x)  # (N, 512, 4, 14, 14)
        x = self.mixed_4c(x)
        x = self.mixed_4d(x)
        x = self.mixed_4e(x)  # (N, 528, 4, 14, 14)
        x = self.mixed_4f(x)  # (N, 832, 4, 14, 14)
        x = max_pool(x, kernel=(2, 2), stride=(2, 2))  # (N, 832, 2, 7, 7)
        x = self.mixed_5b(x)
        last_map: Tensor = self.mixed_5c(x)  # (N, 1024, 2, 7, 7)
        return last_map

    def _large_maps(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = pad_same(x, kernel=(7, 7, 7), stride=(2, 2, 2), value=0.0)
        x = self.conv_1a(x)  # (N, 64, 8, 112, 112)
        x = max_pool(x, kernel=(1, 3), stride=(1, 2))  # (N, 64, 8, 56, 56)
        x = self.conv_2b(x)
        x = self.conv_2c(x)  # (N, 192, 8, 56, 56)
        x = max_pool(x, kernel=(1, 3), stride=(1, 2))  # (N, 192, 8, 28, 28)
        x = self.mixed_3b(x)  # (N, 256, 8, 28, 28)
        x = self.mixed_3c(x)  # (N, 480, 8, 28, 28)
        return max_pool(x, kernel=(3, 3), stride=(2, 2))  # (N, 480, 4, 14, 14)

    def features(self, x: Tensor) -> Tensor:
        """One vector a snippet, as :meth:`aqa_pipeline.backbone.i3d.I3D.features`.

        Parameters
        ----------
        x : Tensor, shape=(N, 3, T, H, W)
            Quickest when channels are last in memory, as ``normalise`` leaves them.

        Returns
        -------
        Tensor, shape=(N, 1024)
        """
        return _pooled(self.feature_map(x))

    @torch.inference_mode()
    def features_of_parts(self, parts: Iterable[Tensor]) -> Tensor:
        """:meth:`features` of snippets that are made when they are asked for, a few at a time.

        Parameters
        ----------
        parts : iterable of Tensor, shape=(n, 3, T, H, W)
            See :func:`snippets_at_once` for n.

        Returns
        -------
        Tensor, shape=(sum of n, 1024)
        """
        return _pooled(self._feature_map(parts))


def _pooled(last_map: Tensor) -> Tensor:
    # Summed in float32 also where the map is in half precision.
    return last_map.mean(dim=(2, 3, 4), dtype=torch.float32)


def snippets_at_once(frames: int, height: int, width: int) -> int:
    """How many snippets of a size go through the layers with large maps together on a CPU."""
    return max(1, _LARGE_MAPS_PIXELS // (frames * height * width))


def fast_form(model: I3D, *, winograd: bool = True) -> FastI3D:
    """The quick form of a trained network; later changes of ``model`` do not reach it.

    Parameters
    ----------
    model : I3D
    winograd : bool
        Off for a GPU, whose own library chooses among such algorithms, and for anything
        but float32. Costs four times the memory of the kernels, 100 MB in all.
    """
    return FastI3D(model, winograd=winograd)


class FrozenPrefix(nn.Module):
    """The first layers of a backbone, as they are when this is made; they cannot be trained.

    Parameters
    ----------
    backbone : I3D
        On a CPU.
    names : sequence of str
        The first of :data:`aqa_pipeline.backbone.i3d.LAYERS`, in order; none: nothing is done.
    """

    def __init__(self, backbone: I3D, names: Sequence[str]) -> None:
        super().__init__()
        scratch = Scratch()
        self._pools = [pool for name, pool in LAYERS if name in names]
        self.layers = nn.ModuleList(fast_layer(backbone, name, scratch) for name in names)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Input of the network to the last of these layers' map."""
        if not len(self.layers):
            return x
        return torch.cat(
            [self._some(part) for part in torch.split(x, snippets_at_once(*x.shape[2:]))]
        )

    def _some(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = pad_same(x, kernel=(7, 7, 7), stride=(2, 2, 2), value=0.0)  # of conv_1a
        for layer, pool in zip(self.layers, self._pools, strict=True):
            if pool is not None:
                (kernel_t, kernel_s, _), (stride_t, stride_s, _) = pool
                x = max_pool(x, kernel=(kernel_t, kernel_s), stride=(stride_t, stride_s))
            x = layer(x)
        return x

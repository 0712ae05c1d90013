"""The form of I3D for a GPU: the same function in few passes over memory.

Made from a trained :class:`~aqa_pipeline.backbone.i3d.I3D`, which stays the reference; BatchNorm is
folded and the 1x1x1 convolutions of a Mixed block are joined, as in
:mod:`aqa_pipeline.backbone.fast`. On a GPU the passes between the convolutions cost as much as
these, so that there are several ways to take them, a :class:`Form`:

convolution
    ``plain``: torch's convolution, its bias, ReLU and concatenation, each a pass.
    ``epilogue``: bias, ReLU and concatenation are one pass (a kernel of our own).
    ``cudnn``: bias and ReLU inside cuDNN's kernel, concatenation a pass.
kernels
    Pools, and what makes snippets from frames, as one pass each, without a pool's indices.
blocks
    The first convolution reads blocks of 2 x 2 x 2 positions with 24 channels instead of
    3: stride 1 and a kernel of 4, whose last tap meets the zero the kernel of 7 is filled
    up with. Exact; 3 channels leave most of a tensor core idle.

:mod:`aqa_pipeline.backbone.gpu_network` chooses one by trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqa_pipeline.backbone import fast as i3d_fast
from aqa_pipeline.backbone.fast import join
from aqa_pipeline.backbone.i3d import I3D, LAYERS, Mixed, Unit, check_input, normalise, same_padding
from aqa_pipeline.backbone.i3d import scale_and_shift as scale_and_shift_of
from aqa_pipeline.config import PixelPreset

_STEM, _STRIDE, _CHANNELS = 7, 2, 3
_BLOCK_STEM = (_STEM + 1) // _STRIDE


@dataclass(frozen=True)
class Form:
    """How a GPU computes the network; the default needs nothing but torch."""

    convolution: Literal["plain", "epilogue", "cudnn"] = "plain"
    kernels: bool = False
    blocks: bool = False

    def __str__(self) -> str:
        extras = [name for name in ("kernels", "blocks") if getattr(self, name)]
        return "+".join([self.convolution, *extras])


PLAIN = Form()


def triton_kernels() -> ModuleType | None:
    """Our own kernels; None where there is no triton to compile them."""
    try:
        from aqa_pipeline.backbone import triton_kernels as kernels
    except (ImportError, RuntimeError, OSError):
        return None
    return kernels


def channels_first(x: Tensor) -> Tensor:
    """(N, T, H, W, C) as (N, C, T, H, W), which is channels last to torch; a view."""
    return x.permute(0, 4, 1, 2, 3)


def channels_behind(x: Tensor) -> Tensor:
    """(N, C, T, H, W) as (N, T, H, W, C); a view."""
    return x.permute(0, 2, 3, 4, 1)


def stem_padding(size: int, *, blocks: bool) -> tuple[int, int]:
    """Positions before and after one dimension that make the first convolution SAME."""
    before, after = same_padding(size, kernel=_STEM, stride=_STRIDE)
    if blocks:
        after = _STRIDE * (-(-size // _STRIDE) + _BLOCK_STEM - 1) - size - before
    return before, after


def in_blocks(x: Tensor) -> Tensor:
    """Blocks of 2 x 2 x 2 positions as channels: (N, C, 2T, 2H, 2W) to (N, 8C, T, H, W)."""
    n, c, t, h, w = x.shape
    blocks = channels_behind(x).reshape(n, t // 2, 2, h // 2, 2, w // 2, 2, c)
    blocks = blocks.permute(0, 1, 3, 5, 2, 4, 6, 7)
    return channels_first(blocks.reshape(n, t // 2, h // 2, w // 2, 8 * c))


def block_kernel(stem: nn.Conv3d) -> nn.Conv3d:
    """The first convolution for an input :func:`in_blocks`: kernel 4, stride 1."""
    kernel = in_blocks(F.pad(stem.weight.detach(), (0, 1) * 3))
    conv = nn.Conv3d(kernel.shape[1], kernel.shape[0], _BLOCK_STEM, device="meta")
    conv.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last_3d))
    conv.bias = stem.bias
    return conv


class GpuI3D(nn.Module):
    """Inference only; made by :func:`gpu_form`. Its ``form`` may be changed at any time.

    Parameters
    ----------
    model : I3D
    pixels : PixelPreset
        Of the frames that :meth:`prepare` takes.
    """

    def __init__(self, model: I3D, pixels: PixelPreset) -> None:
        super().__init__()
        self.form = PLAIN
        self._pixels = pixels
        self._kernels: ModuleType | None = None
        self._zeros: Tensor | None = None
        self.stem = join([model.conv_1a])
        self.block_stem = block_kernel(self.stem)
        self.convs = nn.ModuleDict()
        self.widths: dict[str, list[int]] = {}
        for name, _ in LAYERS[1:]:
            layer = model.get_submodule(name)
            if isinstance(layer, Unit):
                self.convs[name] = join([layer])
                continue
            assert isinstance(layer, Mixed)
            first = [layer.b0, layer.b1a, layer.b2a]
            self.widths[name] = [len(unit.norm.shift) for unit in first]
            self.convs[name] = join(first)
            for branch in ("b1b", "b2b", "b3"):
                self.convs[f"{name}_{branch}"] = join([layer.get_submodule(branch)])  # type: ignore[list-item]
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.stem.weight.dtype

    @property
    def kept(self) -> Tensor | None:
        """Memory that is read again with the next batch; a graph must hold on to it."""
        return self._zeros

    def forget(self) -> None:
        """Give memory back that is kept from one batch to the next."""
        self._zeros = None

    def prepare(self, frames: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
        """What :meth:`features_of` takes, from frames.

        Parameters
        ----------
        frames : Tensor of uint8, shape=(F, H, W, 3), dense
        index : Tensor of int64, shape=(N, T), dense
            Frames of every snippet.
        out : Tensor or None
            What an earlier call gave for the same shapes: it is written again, and returned.
        """
        if not self.form.kernels:
            made = self.padded(normalise(frames[index], self._pixels).to(self.dtype))
            return made if out is None else out.copy_(made)
        blocks = self.form.blocks
        sizes = index.shape[1], *frames.shape[1:3]
        padding = [stem_padding(size, blocks=blocks) for size in sizes]
        side = _STRIDE if blocks else 1
        padded = [sum(p, size) // side for p, size in zip(padding, sizes, strict=True)]
        if out is None:
            shape = len(index), *padded, _CHANNELS * side**3
            out = channels_first(frames.new_empty(shape, dtype=self.dtype))
        before = tuple(p[0] for p in padding)
        scale, shift = scale_and_shift_of(self._pixels, frames.device)
        kernels = self._own_kernels()
        with kernels.on_device_of(frames):
            kernels.cut(frames, index, scale, shift, channels_behind(out), side=side, before=before)
        return out

    def padded(self, x: Tensor) -> Tensor:
        """What :meth:`features_of` takes, from normalised snippets (N, 3, T, H, W)."""
        before_after: list[int] = []
        for size in reversed(x.shape[2:]):  # F.pad counts from the last
            before_after += stem_padding(size, blocks=self.form.blocks)
        x = F.pad(x.contiguous(memory_format=torch.channels_last_3d), before_after)
        return in_blocks(x) if self.form.blocks else x

    @torch.inference_mode()
    def features_of(self, prepared: Tensor) -> Tensor:
        """One vector a snippet, float32, shape=(N, 1024), from what :meth:`prepare` gave."""
        # Summed in float32 also where the map is in half precision.
        return self._map_of(prepared).mean(dim=(2, 3, 4), dtype=torch.float32)

    @torch.inference_mode()
    def feature_map(self, x: Tensor) -> Tensor:
        """The last map; shapes and errors as :meth:`aqa_pipeline.backbone.i3d.I3D.feature_map`."""
        check_input(x)
        return self._map_of(self.padded(x))

    def features(self, x: Tensor) -> Tensor:
        """One vector a snippet, as :meth:`aqa_pipeline.backbone.i3d.I3D.features`."""
        return self.feature_map(x).mean(dim=(2, 3, 4), dtype=torch.float32)

    def _map_of(self, x: Tensor) -> Tensor:
        x = self.unit(x, self.block_stem if self.form.blocks else self.stem)
        for name, pool in LAYERS[1:]:
            if pool is not None:
                (kernel_t, kernel_s, _), (stride_t, stride_s, _) = pool
                x = self._max_pool(x, kernel=(kernel_t, kernel_s), stride=(stride_t, stride_s))
            x = self._mixed(x, name) if name in self.widths else self.unit(x, self.conv(name))
        return x

    def _mixed(self, x: Tensor, name: str) -> Tensor:
        convs = [self.conv(f"{name}_{branch}") for branch in ("b1b", "b2b", "b3")]
        pooled = self._max_pool(x, kernel=(3, 3), stride=(1, 1))
        if self.form.convolution != "epilogue":
            joined = self.unit(x, self.conv(name))
            b0, b1, b2 = torch.split(joined, self.widths[name], dim=1)
            branches = (b1, b2, pooled)
            return torch.cat([b0, *map(self.unit, branches, convs)], dim=1)
        n, _, *sizes = x.shape
        first = self.widths[name]
        widths = [first[0], *(conv.out_channels for conv in convs)]
        out = x.new_empty(n, *sizes, sum(widths))
        to_b0, *to_branches = torch.split(out, widths, dim=-1)
        b1, b2 = (x.new_empty(n, *sizes, width) for width in first[1:])
        self._into(x, self.conv(name), [to_b0, b1, b2])
        for branch, conv, to in zip(
            (channels_first(b1), channels_first(b2), pooled), convs, to_branches, strict=True
        ):
            self._into(branch, conv, [to])
        return channels_first(out)  # (N, b0 + b1b + b2b + b3, T, H, W)

    def conv(self, name: str) -> nn.Conv3d:
        """That of a layer; a Mixed block has ``NAME`` (joined), ``NAME_b1b``, ``_b2b``, ``_b3``."""
        found = self.convs[name]
        assert isinstance(found, nn.Conv3d)
        return found

    def unit(self, x: Tensor, conv: nn.Conv3d) -> Tensor:
        """Convolution, bias, ReLU."""
        if self.form.convolution == "plain":
            plain: Tensor = conv(x)
            return plain.relu_()
        if self.form.convolution == "cudnn":
            return self._by_cudnn(x, conv)
        y = self._without_bias(x, conv)
        self._bias_relu(channels_behind(y), conv.bias, channels_behind(y))
        return y

    def _into(self, x: Tensor, conv: nn.Conv3d, outs: Sequence[Tensor]) -> None:
        """Convolution, then bias and ReLU of its channels into each output in turn."""
        assert conv.bias is not None
        y = channels_behind(self._without_bias(x, conv))
        widths = [out.shape[-1] for out in outs]
        for part, bias, out in zip(
            torch.split(y, widths, dim=-1), torch.split(conv.bias, widths), outs, strict=True
        ):
            self._bias_relu(part, bias, out)

    def _without_bias(self, x: Tensor, conv: nn.Conv3d) -> Tensor:
        y = F.conv3d(x, conv.weight, None, conv.stride, padding_of(conv))
        return y.contiguous(memory_format=torch.channels_last_3d)

    def _bias_relu(self, y: Tensor, bias: Tensor | None, out: Tensor) -> None:
        kernels = self._own_kernels()
        with kernels.on_device_of(y):
            kernels.bias_relu(rows_of(y), bias, rows_of(out))

    def _by_cudnn(self, x: Tensor, conv: nn.Conv3d) -> Tensor:
        n, _, *sizes = x.shape
        sizes = [
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(
                sizes, padding_of(conv), conv.kernel_size, conv.stride, strict=True
            )
        ]
        # cudnn_convolution_relu is this with its own output, not yet written, times 0: what
        # is there may be NaN, which times 0 is NaN.
        added = self._zeros_of(x, n, *sizes, conv.out_channels)
        y: Tensor = torch.cudnn_convolution_add_relu(
            x, conv.weight, added, 0.0, conv.bias, conv.stride, padding_of(conv), (1, 1, 1), 1
        )  # fmt: skip
        return y

    def _zeros_of(self, x: Tensor, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if self._zeros is None or self._zeros.numel() < size:
            self._zeros = x.new_zeros(size)
        return channels_first(self._zeros[:size].view(shape))

    def _max_pool(self, x: Tensor, *, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
        if not self.form.kernels:
            return i3d_fast.max_pool(x, kernel=kernel, stride=stride)
        return pooled_by(self._own_kernels(), x, kernel=kernel, stride=stride)

    def _own_kernels(self) -> ModuleType:
        if self._kernels is None:
            self._kernels = triton_kernels()
        if self._kernels is None:
            raise RuntimeError("triton is not installed")
        return self._kernels


def padding_of(conv: nn.Conv3d) -> tuple[int, ...]:
    """Which torch also takes as a word."""
    assert not isinstance(conv.padding, str)
    return conv.padding


def rows_of(x: Tensor) -> Tensor:
    """Positions by channels, (N, T, H, W, C) to (N T H W, C); a view of a dense map's channels."""
    return x.as_strided((x[..., 0].numel(), x.shape[-1]), (x.stride(-2), 1))


def pooled_by(
    kernels: ModuleType, x: Tensor, *, kernel: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """:func:`aqa_pipeline.backbone.fast.max_pool` by our own kernel."""
    sizes = x.shape[2:]
    cubic, strides = (kernel[0], *kernel[1:] * 2), (stride[0], *stride[1:] * 2)
    before = tuple(
        same_padding(size, kernel=k, stride=s)[0]
        for size, k, s in zip(sizes, cubic, strides, strict=True)
    )
    x = channels_behind(x.contiguous(memory_format=torch.channels_last_3d))
    pooled = [-(-size // s) for size, s in zip(sizes, strides, strict=True)]
    out = x.new_empty(len(x), *pooled, x.shape[-1])
    with kernels.on_device_of(x):
        kernels.max_pool(x, out, kernel=kernel, stride=stride, before=before)
    return channels_first(out)


def gpu_form(model: I3D, pixels: PixelPreset) -> GpuI3D:
    """The GPU's form of a trained network; later changes of ``model`` do not reach it."""
    return GpuI3D(model, pixels)

"""I3D as one would write it without thinking of speed: what stage one is measured against.

Pad, convolve, BatchNorm, ReLU, channels first, four branches concatenated. Takes its
numbers from the program's network, so that both compute the same features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqa_pipeline.backbone.i3d import I3D, NORM_EPSILON, Unit

BLOCKS = (
    *("mixed_3b", "mixed_3c", "mixed_4b", "mixed_4c", "mixed_4d"),
    *("mixed_4e", "mixed_4f", "mixed_5b", "mixed_5c"),
)


def same(
    x: Tensor, kernel: int | tuple[int, int, int], stride: int | tuple[int, int, int]
) -> Tensor:
    """TensorFlow's SAME padding, by hand."""
    kernels = (kernel,) * 3 if isinstance(kernel, int) else kernel
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    pads: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernels[::-1], strides[::-1], strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class ConvNormRelu(nn.Module):
    def __init__(self, unit: Unit) -> None:
        super().__init__()
        out, inp, size = unit.conv.weight.shape[:3]
        self.stride = unit.conv.stride[0]
        self.conv = nn.Conv3d(inp, out, size, self.stride, bias=False)
        self.norm = nn.BatchNorm3d(out, eps=NORM_EPSILON)
        self.conv.weight.data = unit.conv.weight.detach().clone()
        self.norm.weight.data = unit.norm.scale.detach().clone()
        self.norm.bias.data = unit.norm.shift.detach().clone()
        self.norm.running_mean = unit.norm.mean.clone()
        self.norm.running_var = unit.norm.variance.clone()

    def forward(self, x: Tensor) -> Tensor:
        x = same(x, self.conv.kernel_size[0], self.stride)
        return F.relu(self.norm(self.conv(x)))


class PlainI3D(nn.Module):
    def __init__(self, model: I3D) -> None:
        super().__init__()
        for name in ("conv_1a", "conv_2b", "conv_2c"):
            setattr(self, name, ConvNormRelu(getattr(model, name)))
        for name in BLOCKS:
            branches = getattr(model, name).named_children()
            setattr(self, name, nn.ModuleDict({n: ConvNormRelu(unit) for n, unit in branches}))
        self.eval()

    def block(self, name: str, x: Tensor) -> Tensor:
        b: nn.ModuleDict = getattr(self, name)
        pooled = F.max_pool3d(same(x, 3, 1), 3, 1)
        branches = [b["b0"](x), b["b1b"](b["b1a"](x)), b["b2b"](b["b2a"](x)), b["b3"](pooled)]
        return torch.cat(branches, dim=1)

    @torch.inference_mode()
    def features(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) to (N, 1024)."""
        small, large = (1, 3, 3), (1, 2, 2)
        x = F.max_pool3d(same(self.conv_1a(x), small, large), small, large)
        x = self.conv_2c(self.conv_2b(x))
        x = F.max_pool3d(same(x, small, large), small, large)
        for name in BLOCKS:
            if name == "mixed_4b":
                x = F.max_pool3d(same(x, 3, 2), 3, 2)
            if name == "mixed_5b":
                x = F.max_pool3d(same(x, 2, 2), 2, 2)
            x = self.block(name, x)
        return x.mean(dim=(2, 3, 4))

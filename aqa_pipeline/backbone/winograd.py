"""3x3x3 convolution with a quarter of the multiplications in space: Winograd's F(4x4, 3x3).

Conventions
-----------
tile
    4 x 4 neighbouring output positions of one frame, computed from 6 x 6 input ones.
point
    One of the 6 x 6 products of a tile. In one dimension: the values of the two
    polynomials at 0, 1, -1, 2, -2 and infinity, in this order.
tap
    One of the three frames a kernel reaches. Taps stay a plain convolution over time,
    one for each point, done by torch.

A direct convolution takes 9 multiplications for each output position and tap, this one
36 / 16. What it costs is passes over memory before and after; on processors where a
matrix product is the bottleneck that is a good exchange (docs/performance.md). Exact up
to rounding: 1e-5 of the largest output in float32, which is why nothing here may run in
half precision.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016,
for the three matrices.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4
_POINTS = TILE + 2

#: Kernel (3 taps in a row) to its values at the points.
_KERNEL_TO_POINTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
#: Products at the points to the 4 outputs.
_POINTS_TO_OUTPUTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
#: The point whose product enters every output with factor one: a bias added there is added
#: to all of them.
_BIAS_POINT = 1

#: Snippets are taken together up to so many bytes of products. More leave the processor's
#: cache between being made and being read; fewer make many small convolutions. Of 6, 12,
#: 24 and 48 MB the third was the quickest on a processor with 16 MB of it.
_CHUNK_BYTES = 24e6


class Scratch(threading.local):
    """Memory for what is between the passes, kept from one convolution to the next.

    Taking it from the operating system each time costs more than a pass does: every page
    is cleared at its first touch. The convolutions of a network share one; each thread
    that runs the network has its own.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Uninitialised float32; valid until the same name is taken again."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            with torch.inference_mode(False):  # may be written to inside and outside of it
                self._kept[name] = torch.empty(size)
        return self._kept[name][:size].view(shape)


def to_points(d: Sequence[Tensor], out: Tensor, take: Callable[..., Tensor]) -> None:
    """Six neighbouring inputs to the six points, along one dimension.

    Parameters
    ----------
    d : six Tensors of one shape
        Positions 0 to 5 of every tile.
    out : Tensor, shape=(6, ...)
        Written.
    take : callable
        :meth:`Scratch.take`.
    """
    even, odd = take("even", *d[0].shape), take("odd", *d[0].shape)
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    # 4 d0 - 5 d2 + d4 and 4 d1 - 5 d3 + d5, through what is there already
    torch.sub(d[0], d[2], out=out[0])
    torch.add(even, out[0], alpha=4, out=out[0])
    torch.sub(d[5], d[3], out=out[5])
    torch.sub(out[5], odd, alpha=4, out=out[5])
    torch.sub(d[4], d[2], alpha=4, out=even)
    torch.sub(d[3], d[1], alpha=4, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])


class WinogradConv(nn.Module):
    """``relu(conv3d(x, kernel, bias, padding=1))`` for a 3x3x3 kernel.

    Parameters
    ----------
    kernel : Tensor of float32, shape=(out, in, 3, 3, 3)
    bias : Tensor of float32, shape=(out,)
    scratch : Scratch or None
        None: one of its own.
    """

    kernels: Tensor
    bias: Tensor
    to_outputs: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor, scratch: Scratch | None = None) -> None:
        super().__init__()
        self._scratch = scratch or Scratch()
        # In float64: this happens once, and its rounding would be in every feature.
        points = torch.tensor(_KERNEL_TO_POINTS, dtype=torch.float64)
        kernels = torch.einsum("ia,jb,octab->ijotc", points, points, kernel.double())
        outputs = torch.tensor(_POINTS_TO_OUTPUTS, dtype=torch.float64)
        # (36, out, tap, 1, in): channels last for a 3x1 kernel over (time, tiles)
        self.register_buffer("kernels", kernels.flatten(0, 1).unsqueeze(3).float().contiguous())
        self.register_buffer("bias", bias.clone())
        self.register_buffer("to_outputs", torch.kron(outputs, outputs).float())  # (16, 36)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """
        Parameters
        ----------
        x : Tensor of float32, shape=(N, in, T, H, W)
            Quickest with channels last in memory.
        out : Tensor or None, shape=(N, T, H, W, out)
            Where to write, such as some channels of a larger map.

        Returns
        -------
        Tensor, shape=(N, out, T, H, W), channels last in memory
        """
        n, _, t, h, w = x.shape
        channels_out = len(self.bias)
        if out is None:
            out = x.new_empty(n, t, h, w, channels_out)
        tiles = -(-h // TILE) * -(-w // TILE)
        snippet_bytes = 4 * _POINTS**2 * t * tiles * channels_out
        chunk = max(1, int(_CHUNK_BYTES // snippet_bytes))
        x = x.permute(0, 2, 3, 4, 1)
        for first in range(0, n, chunk):
            self._convolve(x[first : first + chunk], out[first : first + chunk])
        return out.permute(0, 4, 1, 2, 3)

    def _convolve(self, x: Tensor, out: Tensor) -> None:
        """Some snippets, (n, T, H, W, in), to their place in the output, (n, T, H, W, out)."""
        n, t, h, w, channels = x.shape
        rows, columns = -(-h // TILE), -(-w // TILE)
        height, width = rows * TILE, columns * TILE
        take = self._scratch.take
        padded = take("padded", n, t, height + 2, width + 2, channels)
        padded[:, :, 0].zero_()
        padded[:, :, h + 1 :].zero_()
        padded[:, :, 1 : h + 1, 0].zero_()
        padded[:, :, 1 : h + 1, w + 1 :].zero_()
        padded[:, :, 1 : h + 1, 1 : w + 1] = x
        # Columns first: the second, larger pass then runs over whole rows of memory.
        across = take("across", _POINTS, n, t, height + 2, columns, channels)
        to_points([padded[:, :, :, a : a + width - 3 : TILE] for a in range(_POINTS)], across, take)
        inputs = take("inputs", _POINTS, _POINTS, n, t, rows, columns, channels)
        to_points(
            [across[:, :, :, a : a + height - 3 : TILE] for a in range(_POINTS)], inputs, take
        )
        products = self._products(inputs.view(-1, n, t, rows * columns, channels))
        outputs = take("outputs", TILE**2, products.numel() // _POINTS**2)
        torch.mm(self.to_outputs, products.view(_POINTS**2, -1), out=outputs)
        outputs = outputs.view(TILE, TILE, n, t, rows, columns, -1).permute(2, 3, 4, 0, 5, 1, 6)
        if (height, width) == (h, w):
            torch.clamp_min(outputs, 0, out=out.view(n, t, rows, TILE, columns, TILE, -1))
            return
        whole = outputs.clamp_min(0).reshape(n, t, height, width, -1)
        out.copy_(whole[:, :, :h, :w])

    def _products(self, inputs: Tensor) -> Tensor:
        """(36, n, T, tiles, in) to (36, n, T, tiles, out): at each point a sum over taps."""
        products = self._scratch.take("products", *inputs.shape[:-1], len(self.bias))
        for point, (x, kernel) in enumerate(zip(inputs, self.kernels, strict=True)):
            bias = self.bias if point == _BIAS_POINT * (_POINTS + 1) else None
            # As a picture of T x tiles pixels: torch's convolution of pictures is quicker
            # than its convolution of volumes and than its matrix product.
            y = F.conv2d(x.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2), bias, padding=(1, 0))
            products[point] = y.permute(0, 2, 3, 1)
        return products

"""The layers that do not learn, in the quick form that extraction uses.

Frozen layers are most of the work of a step when only the last ones learn; rewritten as
:mod:`aqa_pipeline.i3d_fast` does it they take half the time on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aqa_pipeline.i3d import I3D, LAYERS, Mixed, pad_same
from aqa_pipeline.i3d_fast import FastMixed, join, max_pool


class FrozenPrefix(nn.Module):
    """The first layers of a backbone, as they are when this is made; they cannot be trained.

    Parameters
    ----------
    backbone : I3D
    names : sequence of str
        The first of :data:`aqa_pipeline.i3d.LAYERS`, in order; none: nothing is done.
    """

    def __init__(self, backbone: I3D, names: Sequence[str]) -> None:
        super().__init__()
        self._pools = [pool for name, pool in LAYERS if name in names]
        layers = [getattr(backbone, name) for name in names]
        self.layers = nn.ModuleList(
            FastMixed(layer) if isinstance(layer, Mixed) else join([layer]) for layer in layers
        )
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Input of the network to the last of these layers' map."""
        if len(self.layers):
            x = x.contiguous(memory_format=torch.channels_last_3d)
        for layer, pool in zip(self.layers, self._pools, strict=True):
            if pool is not None:
                (kernel_t, kernel_s, _), (stride_t, stride_s, _) = pool
                x = max_pool(x, kernel=(kernel_t, kernel_s), stride=(stride_t, stride_s))
            if isinstance(layer, FastMixed):
                x = layer(x)
                continue
            if isinstance(layer, nn.Conv3d) and layer.stride[0] > 1:
                # Its SAME padding is not symmetric; join() leaves it to us.
                x = pad_same(x, kernel=layer.kernel_size, stride=layer.stride, value=0.0)
            x = layer(x).relu_()
        return x

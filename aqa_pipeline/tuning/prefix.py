"""The layers that do not learn, in the quick form that extraction uses.

Frozen layers are most of the work of a step when only the last ones learn. This form is for
a CPU: a GPU's own library knows as good a way, also in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aqa_pipeline.backbone.fast import fast_layer, max_pool, snippets_at_once
from aqa_pipeline.backbone.i3d import I3D, LAYERS, pad_same
from aqa_pipeline.backbone.winograd import Scratch


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

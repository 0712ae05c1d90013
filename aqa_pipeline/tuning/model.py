"""Backbone and head as one network: pairs of clips in, losses out.

Conventions
-----------
U, S, D
    Clips that are encoded, snippets a clip, dimension of a snippet feature.
frames : Tensor of uint8, shape=(U, m, H, W, 3)
    The used frames of each clip (:mod:`aqa_pipeline.tuning.clips`).
pairs : Tensor of int64, shape=(B, 2)
    Two clips each, as positions among the clips of the call.

The statistics of BatchNorm never move (:class:`aqa_pipeline.backbone.i3d.FrozenNorm`), so a clip's
features do not depend on its neighbours in the batch, and the gradient of a step is the
sum over its pairs however these are cut.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aqa_pipeline.backbone.i3d import I3D, LAYERS, check_input, normalise
from aqa_pipeline.config import PixelPreset, Unfreeze
from aqa_pipeline.errors import SetupError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.tuning.folded import folded_layer
from aqa_pipeline.tuning.prefix import FrozenPrefix

IntArray = npt.NDArray[np.int64]
Precision = Literal["float32", "bfloat16", "float16"]

#: First layer that learns.
_FIRST: dict[Unfreeze, str] = {
    "all": "conv_1a",
    "stem": "conv_1a",
    "mixed_3": "mixed_3b",
    "mixed_4": "mixed_4b",
    "mixed_5": "mixed_5b",
}


def unfreeze(backbone: I3D, first: Unfreeze) -> list[str]:
    """Let a part of the backbone and all after it learn; the rest and the classifier do not.

    Returns
    -------
    list of str
        The layers that learn, in order.
    """
    backbone.requires_grad_(False)
    names = [name for name, _ in LAYERS]
    trained = names[names.index(_FIRST[first]) :]
    for name in trained:
        backbone.get_submodule(name).requires_grad_(True)
    return trained


def resolve_precision(
    wanted: Literal["auto", "float32", "bfloat16", "float16"], device: torch.device
) -> Precision:
    """What the backbone computes in.

    Raises
    ------
    SetupError
        If the device cannot: half precision needs a GPU here.
    """
    if device.type != "cuda":
        if wanted in ("bfloat16", "float16"):
            raise SetupError(
                f"--precision {wanted} needs a GPU; on {device.type} it is float32 (or auto)"
            )
        return "float32"
    if wanted == "auto":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return wanted


class PairModel(nn.Module):
    """The backbone with one head on it.

    Parameters
    ----------
    backbone : I3D
        On its device, and already frozen as far as it is to be, see :func:`unfreeze`.
    head : Head
        One model (K = 1), contrastive.
    snippets : ndarray of int64, shape=(S, snippet_frames)
        Frames of each snippet, as indices into the used frames.
    pixels : PixelPreset
    precision : {"float32", "bfloat16", "float16"}
        Of the backbone; the head is always float32.
    checkpointing : bool
        Keep only what goes from layer to layer, and compute the rest again on the way back.
    """

    snippets: Tensor

    def __init__(
        self,
        backbone: I3D,
        head: Head,
        *,
        snippets: IntArray,
        pixels: PixelPreset,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.pixels, self.checkpointing = pixels, checkpointing
        self.precision = precision
        self.register_buffer("snippets", torch.from_numpy(snippets), persistent=False)
        learns = [
            any(p.requires_grad for p in backbone.get_submodule(name).parameters())
            for name, _ in LAYERS
        ]
        first = learns.index(True) if any(learns) else len(LAYERS)
        self._frozen = [name for name, _ in LAYERS[:first]]
        # In a list, so as not to be part of the state: what is written is the backbone alone.
        on_cpu = backbone.classifier.weight.device.type == "cpu"
        self._prefix = [FrozenPrefix(backbone, self._frozen)] if on_cpu else []
        self._is_folded = not on_cpu
        self._trained = [name for name, _ in LAYERS[first:]]

    @property
    def trained_layers(self) -> list[str]:
        """The layers that learn, in order."""
        return list(self._trained)

    def layer(self, name: str, x: Tensor) -> Tensor:
        """One layer of the backbone, in the form for its device; the pool before it included."""
        if self._is_folded:
            return folded_layer(self.backbone, name, x)
        return self.backbone.layer(name, x)

    def inputs(self, frames: Tensor) -> Tensor:
        """What the first layer that learns gets; (U, m, H, W, 3) -> (U * S, C, T, H', W')."""
        snippets = frames[:, self.snippets].flatten(0, 1)  # (U * S, snippet_frames, H, W, 3)
        x = normalise(snippets, self.pixels)
        check_input(x)
        for prefix in self._prefix:
            frozen: Tensor = prefix(x)
            return frozen
        with torch.no_grad(), self._autocast():
            for name in self._frozen:
                x = self.layer(name, x)
        return x

    def encode(self, frames: Tensor) -> Tensor:
        """Snippet features, (U, m, H, W, 3) -> float32 (U, S, D)."""
        x = self.inputs(frames)
        with self._autocast():
            for name in self._trained:
                if self.checkpointing and torch.is_grad_enabled():
                    # Nothing is drawn in a layer, so there is no random state to put back.
                    x = checkpoint(
                        self.layer, name, x, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    x = self.layer(name, x)
        return x.float().mean(dim=(2, 3, 4)).view(len(frames), len(self.snippets), -1)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.snippets.device.type, dtype=getattr(torch, self.precision))

    def forward(
        self, frames: Tensor | None, encoded: Tensor | None, pairs: Tensor, label: Tensor
    ) -> Tensor:
        """Losses of pairs in both orders.

        Parameters
        ----------
        frames : Tensor of uint8, shape=(U, m, H, W, 3), or None
            Clips to encode.
        encoded : Tensor of float32, shape=(V, S, D), or None
            Clips that are encoded already; they come after those of ``frames``.
        pairs : Tensor of int64, shape=(B, 2)
        label : Tensor of float64, shape=(U + V,)
            In label points.

        Returns
        -------
        Tensor, shape=(2,)
            Classification and regression, a mean over the 2 B ordered pairs.
        """
        parts = [] if frames is None else [self.encode(frames)]
        features = torch.cat(parts if encoded is None else [*parts, encoded])  # (U + V, S, D)
        query, exemplar = torch.cat([pairs, pairs.flip(1)]).T  # (2 B,) each
        halves = self.head.halves(features)
        root = self.head.root(
            halves.query[:, query],
            halves.exemplar[:, exemplar],
            label[exemplar].unsqueeze(0),
        )
        target = (label[query] - label[exemplar]).unsqueeze(0)  # (1, 2 B)
        (labels,) = self.head.trunk.labels(target.unsqueeze(0))
        losses: Tensor = self.head.trunk.losses(root, labels)  # (2, 1)
        return losses[:, 0]

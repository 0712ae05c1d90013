"""Backbone and head as one network: pairs of clips in, losses out.

Conventions
-----------
U, S, D
    Clips that are encoded, snippets a clip, dimension of a snippet feature.
frames : Tensor of uint8, shape=(U, m, H, W, 3)
    The used frames of each clip (:mod:`aqa_pipeline.finetune.frames`).
pairs : Tensor of int64, shape=(B, 2)
    Two clips each, as positions among the clips of the call.

The statistics of BatchNorm never move (:class:`aqa_pipeline.backbone.i3d.FrozenNorm`), so a clip's
features do not depend on its neighbours in the batch, and the gradient of a step is the
sum over its pairs however these are cut.

How many pairs the memory takes at once (:func:`find_pairs_at_once`) is measured: on a GPU one pair
goes forward and back and the allocator says what it took at most. On a CPU, where nobody keeps
such a record, the tensors that autograd keeps for the way back are counted; they are nearly all
there is.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aqa_pipeline.backbone.fast import FrozenPrefix
from aqa_pipeline.backbone.i3d import I3D, LAYERS, check_input, normalise
from aqa_pipeline.config import PixelPreset, Unfreeze
from aqa_pipeline.errors import SetupError
from aqa_pipeline.finetune.folded import folded_layer
from aqa_pipeline.heads.head import Head

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
_USED_PART = 0.8  #: of what is free: allocators waste some

#: A CPU also needs what the largest layer works in, and the gradients on the way back.
_CPU_OVERHEAD = 1.5
_FALLBACK_BYTES = 4 << 30  #: where the free memory cannot be asked


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
        (labels,) = self.head.output.labels(target.unsqueeze(0))
        losses: Tensor = self.head.output.losses(root, labels)  # (2, 1)
        return losses[:, 0]


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


def find_pairs_at_once(
    model: PairModel, *, crop: int, num_frames: int, most: int, reserved_bytes: int = 0
) -> int:
    """As many pairs as fit, at least 1 and at most ``most``.

    Parameters
    ----------
    model : PairModel
        On its device.
    crop : int
        Side of a frame, in pixels.
    num_frames : int
        Used frames of a clip.
    most : int
        Pairs of a step in this process; no more are ever needed.
    reserved_bytes : int
        Of a GPU's memory, for the frames of this step and those prepared beside it.
    """
    if most <= 1:
        return 1
    device = next(model.parameters()).device
    frames = torch.zeros(2, num_frames, crop, crop, 3, dtype=torch.uint8, device=device)
    if device.type != "cuda":
        kept = kept_bytes(model, frames)
        one = (kept.checkpointed if model.checkpointing else kept.plain) * _CPU_OVERHEAD
        return _how_many(free_cpu_bytes(), one, most)
    label = torch.zeros(2, dtype=torch.float64, device=device)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    losses = model(frames, None, torch.tensor([[0, 1]], device=device), label)
    losses.sum().backward()
    one = torch.cuda.max_memory_allocated(device) - before
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    # Gradients and Adam's two moments are still to come.
    to_come = 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return _how_many(free - to_come - reserved_bytes, one, most)


def _how_many(free: float, one: float, most: int) -> int:
    return max(1, min(most, math.floor(_USED_PART * free / max(one, 1))))


def free_cpu_bytes() -> int:
    """Memory of this machine that programs can still have."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return _within_cgroup(int(line.split()[1]) * 1024)
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return _FALLBACK_BYTES


def _within_cgroup(free: int) -> int:
    """A container's or a SLURM job's own limit, where that is lower (cgroup v2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no cgroup, or "max"
        return free
    return max(min(free, limit - used), 0)


class KeptBytes(NamedTuple):
    """What is kept of the clips of a call for the way back, in bytes.

    Attributes
    ----------
    plain : int
        Without checkpointing: all activations.
    checkpointed : int
        With it: the maps between layers, and the activations of the largest layer.
    """

    plain: int
    checkpointed: int


def kept_bytes(model: PairModel, frames: Tensor) -> KeptBytes:
    """Count the tensors autograd keeps; one forward pass, whatever the model's checkpointing.

    Parameters
    ----------
    model : PairModel
    frames : Tensor of uint8, shape=(U, m, H, W, 3)
    """
    owned = {p.untyped_storage().data_ptr() for p in model.backbone.parameters()}
    kept: dict[int, int] = {}
    layer: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = layer[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = model.inputs(frames)
    between, largest = x.nbytes, 0
    # All maps stay alive in ``x``'s graph, so no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        for name in model.trained_layers:
            layer.clear()
            x = model.layer(name, x)
            between += x.nbytes
            largest = max(largest, sum(layer.values()))
    return KeptBytes(sum(kept.values()), between + largest)

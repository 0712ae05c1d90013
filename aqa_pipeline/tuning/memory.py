"""How many pairs the memory takes at once.

On a GPU one pair goes forward and back and the allocator says what it took at most. On a
CPU, where nobody keeps such a record, the tensors that autograd keeps for the way back are
counted; they are nearly all there is.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aqa_pipeline.tuning.model import PairModel

_USED_PART = 0.8  #: of what is free: allocators waste some
#: A CPU also needs what the largest layer works in, and the gradients on the way back.
_CPU_OVERHEAD = 1.5
_FALLBACK_BYTES = 4 << 30  #: where the free memory cannot be asked


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

"""How many models fit side by side into the memory that is free, and what if they do not."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import numpy as np
import torch

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.errors import SetupError
from aqa_pipeline.featureset import FeatureSet
from aqa_pipeline.heads import Head
from aqa_pipeline.trunks import fit_trunk

MOST_MODELS = 64
_SHARE = 0.6  #: of free memory: the rest is for other programs and what is not counted here
_FLOAT = 4  #: bytes
_COPIES_OF_WEIGHTS = 4  #: the weight, its gradient and Adam's two moments
#: Beside these: the captured step's own gradient, and while forms of the step are compared two
#: copies of weights and moments.
_MORE_COPIES_ON_GPU = 7
_SHARE_AT_ONCE = 1 / 64  #: of free memory, for numbers that are made for many steps at once
#: What torch, CUDA, cuBLAS and the system say when memory runs out.
_SHORTAGE = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "can't allocate memory",
             "not enough memory")  # fmt: skip
_CGROUP = Path("/sys/fs/cgroup")


def bytes_a_model(
    train: FeatureSet,
    head_config: HeadConfig,
    config: FitConfig,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - unchanging
) -> int:
    """Memory that each further model of a stack takes, in bytes; features are shared.

    Parameters
    ----------
    train : FeatureSet
        The training split.
    head_config, config : HeadConfig, FitConfig
    device : torch.device
        A GPU computes whole trees, not only the ways to the true leaves.
    """
    on_gpu = device.type != "cpu"
    snippets, dim = train.features.shape[1:]
    generators = [torch.Generator().manual_seed(0)]
    trunk = fit_trunk(
        head_config, [np.linspace(-1, 1, 64)], score_range=1.0, train=train, generators=generators
    )
    head = Head(
        head_config,
        num_snippets=snippets,
        feature_dim=dim,
        trunk=trunk,
        epsilon=1.0,
        generators=generators,
    )
    weights = sum(p.numel() for p in head.parameters())
    seen = 1 if head_config.aggregation == "mean" else snippets
    clip = 3 * seen * dim + 2 * head.aggregate.out_dim + 2 * head_config.hidden
    nodes = 2
    if head_config.kind == "gart":
        leaves = head_config.num_groups
        nodes = leaves - 1 if on_gpu else math.ceil(math.log2(leaves))
    pair = 12 * nodes * head_config.hidden
    step = 2 * config.batch_size * (clip + pair)
    if on_gpu:
        step *= 2  # the captured step keeps memory of its own beside the plain step's
    # A whole epoch's draws, and every clip's two projections when the epoch is judged.
    epoch = len(train) * (12 + (head_config.hidden if head_config.dropout else 0))
    judged = len(train) * 2 * head_config.hidden + len(train) * config.validation_fraction * (
        seen * dim
    )
    copies = _COPIES_OF_WEIGHTS + (_MORE_COPIES_ON_GPU if on_gpu else 0)
    return int(_FLOAT * (copies * weights + step + epoch + judged))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, in bytes; what torch keeps for later use is free."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = _proc_available()
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    return max(free, 0)


def _proc_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kib) * 1024
    except (OSError, StopIteration, ValueError):
        return 4 * 2**30  # not Linux: a size that most machines have


def _cgroup_number(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def largest_stack(model_bytes: int, *, free: int, sharers: int = 1) -> int:
    """Models that fit, at least 1 and at most :data:`MOST_MODELS`.

    Parameters
    ----------
    model_bytes : int
        See :func:`bytes_a_model`.
    free : int
        See :func:`free_bytes`.
    sharers : int
        Processes that train a stack each in the same memory.
    """
    return max(1, min(MOST_MODELS, int(_SHARE * free / sharers / model_bytes)))


def numbers_at_once(device: torch.device, *, on_cpu: int, on_gpu: int) -> int:
    """How many numbers an operation over many steps or clips makes at once.

    Parameters
    ----------
    device : torch.device
    on_cpu, on_gpu : int
        What is best for each; on a GPU less where memory is short, but never below ``on_cpu``.
    """
    if device.type != "cuda":
        return on_cpu
    return max(on_cpu, min(on_gpu, int(_SHARE_AT_ONCE * free_bytes(device)) // _FLOAT))


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: torch says so by a class, libraries only by their words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGE)
    )


def release_memory(device: torch.device) -> None:
    """Free what a stack that is no longer used holds; call it outside the exception handler."""
    gc.collect()  # a stack and its captured step refer to one another
    if device.type == "cuda":
        torch.cuda.empty_cache()


def too_large(device: torch.device) -> SetupError:
    """The error where not even the smallest stack fits."""
    free = f"{free_bytes(device) / 1e9:.1f} GB"
    other = "" if device.type == "cpu" else ", or type --device cpu"
    return SetupError(
        f"device {device}: out of memory ({free} free now); end what else uses it, make the heads "
        f"smaller (--batch-size, --hidden, fewer exemplars){other}"
    )

"""How many models fit side by side into the memory that is free."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.featureset import FeatureSet
from aqa_pipeline.heads import Head
from aqa_pipeline.trunks import fit_trunk

MOST_MODELS = 64
_SHARE = 0.6  #: of free memory: the rest is for other programs and what is not counted here
_FLOAT = 4  #: bytes
_COPIES_OF_WEIGHTS = 4  #: the weight, its gradient and Adam's two moments
_CGROUP = Path("/sys/fs/cgroup")


def bytes_a_model(train: FeatureSet, head_config: HeadConfig, config: FitConfig) -> int:
    """Memory that each further model of a stack takes, in bytes; features are shared.

    Parameters
    ----------
    train : FeatureSet
        The training split.
    head_config, config : HeadConfig, FitConfig
    """
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
    layers = math.ceil(math.log2(head_config.num_groups)) if head_config.kind == "gart" else 2
    pair = 12 * layers * head_config.hidden
    step = 2 * config.batch_size * (clip + pair)
    # A whole epoch's draws, and every clip's two projections when the epoch is judged.
    epoch = len(train) * (12 + (head_config.hidden if head_config.dropout else 0))
    judged = len(train) * 2 * head_config.hidden + len(train) * config.validation_fraction * (
        seen * dim
    )
    return int(_FLOAT * (_COPIES_OF_WEIGHTS * weights + step + epoch + judged))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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

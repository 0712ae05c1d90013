"""Numbers of models that fit side by side into the memory that is free."""

from __future__ import annotations

import math

import numpy as np
import torch

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import fit_output_layer

MOST_MODELS = 64
_SHARE = 0.6  #: of free memory: the rest is for other programs and what is not counted here
_FLOAT = 4  #: bytes
_COPIES_OF_WEIGHTS = 4  #: the weight, its gradient and Adam's two moments
#: Beside these: the captured step's own gradient, and while forms of the step are compared two
#: copies of weights and moments.
_MORE_COPIES_ON_GPU = 7


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
    output = fit_output_layer(
        head_config, [np.linspace(-1, 1, 64)], score_range=1.0, train=train, generators=generators
    )
    head = Head(
        head_config,
        num_snippets=snippets,
        feature_dim=dim,
        output=output,
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
    # A whole epoch's draws, and every clip's two projections when the epoch is evaluated.
    epoch = len(train) * (12 + (head_config.hidden if head_config.dropout else 0))
    evaluation = len(train) * 2 * head_config.hidden + len(train) * config.validation_fraction * (
        seen * dim
    )
    copies = _COPIES_OF_WEIGHTS + (_MORE_COPIES_ON_GPU if on_gpu else 0)
    return int(_FLOAT * (copies * weights + step + epoch + evaluation))


def largest_stack(model_bytes: int, *, free: int, sharers: int = 1) -> int:
    """Models that fit, at least 1 and at most :data:`MOST_MODELS`.

    Parameters
    ----------
    model_bytes : int
        See :func:`bytes_a_model`.
    free : int
        See :func:`aqa_pipeline.device.free_bytes`.
    sharers : int
        Processes that train a stack each in the same memory.
    """
    return max(1, min(MOST_MODELS, int(_SHARE * free / sharers / model_bytes)))

"""The network alone: ours and the plain one by turns, beside the matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from plain_i3d import PlainI3D

from aqa_pipeline.i3d import I3D
from aqa_pipeline.i3d_fast import fast_form

#: Multiply-adds of one snippet of 16 x 224 x 224, twice: what a direct convolution takes.
GFLOP_A_SNIPPET = 55.6
Row = dict[str, Any]


def drawn_weights() -> I3D:
    """A network whose activations neither vanish nor explode; speed does not depend on more."""
    torch.manual_seed(0)
    model = I3D().eval()
    for parameter in model.parameters():
        if parameter.ndim == 5:
            torch.nn.init.kaiming_normal_(parameter)
    return model


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def matrix_gflops(size: int = 2048) -> float:
    """Of one float32 matrix product on the CPU."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / seconds(lambda: a @ b) / 1e9


@torch.inference_mode()
def network(model: I3D, *, size: int, snippets: int, rounds: int) -> Row:
    plain, fast = PlainI3D(model), fast_form(model)
    frames = torch.rand(snippets, 16, size, size, 3) * 2 - 1
    channels_last = frames.permute(0, 4, 1, 2, 3)
    channels_first = channels_last.contiguous()
    expected = plain.features(channels_first)
    error = (fast.features(channels_last) - expected).abs().max() / expected.abs().max()
    taken = np.array(
        [
            (
                seconds(lambda: plain.features(channels_first)) / snippets,
                seconds(lambda: fast.features(channels_last)) / snippets,
                matrix_gflops(),
            )
            for _ in range(rounds)
        ]
    )
    plain_seconds, fast_seconds, peak = np.median(taken, axis=0)
    gflop = GFLOP_A_SNIPPET * (size / 224) ** 2
    return {
        "size": size,
        "plain_seconds": plain_seconds,
        "fast_seconds": fast_seconds,
        "ratio": float(np.median(taken[:, 0] / taken[:, 1])),
        "matrix_product_gflops": peak,
        "fraction_of_matrix_product": float(np.median(gflop / taken[:, 1] / taken[:, 2])),
        "relative_error": float(error),
    }

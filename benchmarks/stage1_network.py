"""The network alone: ours and the plain one by turns, beside the matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from plain_i3d import PlainI3D

from aqa_pipeline.backbone.fast import fast_form
from aqa_pipeline.backbone.i3d import I3D

#: Multiply-adds of one snippet of 16 x 224 x 224, twice: what a direct convolution takes.
GFLOP_A_SNIPPET = 55.6
MATRIX = 2048  #: rows and columns of the matrix product
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


def clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds it took, and seconds of processor time of this process."""
    started, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - processor


@torch.inference_mode()
def network(model: I3D, *, size: int, snippets: int, rounds: int) -> Row:
    plain, fast = PlainI3D(model), fast_form(model)
    frames = torch.rand(snippets, 16, size, size, 3) * 2 - 1
    channels_last = frames.permute(0, 4, 1, 2, 3)
    channels_first = channels_last.contiguous()
    expected = plain.features(channels_first)
    error = (fast.features(channels_last) - expected).abs().max() / expected.abs().max()
    a, b = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    taken = np.array(
        [
            (
                clocks(lambda: plain.features(channels_first)),
                clocks(lambda: fast.features(channels_last)),
                clocks(lambda: a @ b),
            )
            for _ in range(rounds)
        ]
    )  # (rounds, what, clock)
    work = np.array([1, GFLOP_A_SNIPPET * (size / 224) ** 2 * snippets, 2e-9 * MATRIX**3])
    rates = work[1:] / taken[:, 1:].transpose(0, 2, 1)  # (rounds, clock, ours and matrix)
    ratios = np.median(taken[:, 0] / taken[:, 1], axis=0)
    fractions = np.median(rates[..., 0] / rates[..., 1], axis=0)
    plain_seconds, fast_seconds, _ = np.median(taken[..., 0], axis=0)
    return {
        "size": size,
        "plain_seconds": plain_seconds / snippets,
        "fast_seconds": fast_seconds / snippets,
        "ratio": float(ratios[0]),
        "ratio_of_processor_time": float(ratios[1]),
        "matrix_product_gflops": float(np.median(rates[:, 0, 1])),
        "fraction_of_matrix_product": float(fractions[0]),
        "fraction_by_processor_time": float(fractions[1]),
        "relative_error": float(error),
    }

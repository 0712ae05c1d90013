"""``torch.compile`` for the backbone on a GPU: only where a short trial says that it pays.

Compiling takes a minute or more, so that nothing is tried for a run that is over before
that; what is compiled is kept only if it is quicker and computes the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aqa_pipeline.precision import agreement

_log = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]

#: A run with less ahead of it than this cannot win back what compiling takes.
_WORTH_SECONDS = 900.0
_QUICKER = 0.95  #: of the plain network's time, at most
_SAME = 0.9999  #: cosine of the features, at least
_ROUNDS = 3


def compiled_if_it_pays(
    network: Network,
    example: Tensor,
    *,
    num_batches: float,
    compile_network: Callable[[Network], Network] = torch.compile,
    clock: Callable[[], float] = time.perf_counter,
) -> Network:
    """``network``, or what compiling made of it.

    Parameters
    ----------
    network : callable
    example : Tensor
        A batch as all others will be.
    num_batches : float
        How many there will be.
    compile_network, clock : callable
        Replaced in tests.
    """

    def seconds(candidate: Network) -> tuple[float, Tensor]:
        with torch.inference_mode():
            features = candidate(example)  # also compiles, and tries algorithms out
            _finish(example)
            started = clock()
            for _ in range(_ROUNDS):
                features = candidate(example)
            _finish(example)
        return (clock() - started) / _ROUNDS, features

    plain_seconds, plain = seconds(network)
    if plain_seconds * num_batches < _WORTH_SECONDS:
        return network
    try:
        compiled = compile_network(network)
        quick_seconds, features = seconds(compiled)
    except (RuntimeError, ImportError, OSError) as error:  # no compiler, an unknown GPU, ...
        _log.info("torch.compile does not work here (%s): not used", str(error).split("\n", 1)[0])
        return network
    same = agreement(_array(plain), _array(features)) >= _SAME
    pays = same and quick_seconds < _QUICKER * plain_seconds
    _log.info(
        "torch.compile: %.3f s a batch, %.3f s without%s: %s",
        quick_seconds,
        plain_seconds,
        "" if same else ", and other features",
        "used" if pays else "not used",
    )
    return compiled if pays else network


def _array(features: Tensor) -> np.ndarray:
    return features.float().cpu().numpy()


def _finish(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)

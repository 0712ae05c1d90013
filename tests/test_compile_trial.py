"""When a compiled network is used: only if quicker, equal, and worth its time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aqa_pipeline.compile_trial import compiled_if_it_pays

Network = Callable[[Tensor], Tensor]
EXAMPLE = torch.rand(2, 8)


class Clock:
    """Moves only when a network says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def network(self, seconds: float, *, shift: float = 0.0) -> Network:
        def run(x: Tensor) -> Tensor:
            self.now += seconds
            return x + shift

        return run


def trial(plain: float, compiled: float, *, num_batches: float = 1e6, shift: float = 0.0) -> bool:
    """Whether the compiled one is used."""
    clock = Clock()
    network, quick = clock.network(plain), clock.network(compiled, shift=shift)
    used = compiled_if_it_pays(
        network, EXAMPLE, num_batches=num_batches, compile_network=lambda _: quick, clock=clock
    )
    assert used in (network, quick)
    return used is quick


def test_a_quicker_one_is_used() -> None:
    assert trial(1.0, 0.8)
    assert not trial(1.0, 0.97)
    assert not trial(1.0, 1.5)


def test_other_features_are_not_accepted() -> None:
    assert not trial(1.0, 0.5, shift=5.0)


def test_a_short_run_is_not_kept_waiting() -> None:
    def compile_network(_: Network) -> Network:
        raise AssertionError("compiled for nothing")

    clock = Clock()
    network = clock.network(1.0)
    used = compiled_if_it_pays(
        network, EXAMPLE, num_batches=800, compile_network=compile_network, clock=clock
    )
    assert used is network


@pytest.mark.parametrize("error", [RuntimeError("no compiler\nmore"), ImportError("triton")])
def test_where_nothing_compiles_the_plain_one_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def fails(_: Tensor) -> Tensor:
        raise error

    clock = Clock()
    network = clock.network(1.0)
    used = compiled_if_it_pays(
        network, EXAMPLE, num_batches=1e6, compile_network=lambda _: fails, clock=clock
    )
    assert used is network
    assert "torch.compile does not work here" in caplog.text

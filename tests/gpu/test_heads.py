"""Stage two on a GPU: captured steps do what plain ones do, heads learn what a CPU's learn."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.training import adam as stacked_adam
from aqa_pipeline.training import step as step_graph
from aqa_pipeline.training.stack import Stack
from aqa_pipeline.training.step import StepRunner, captured
from tests.gpu.conftest import REHEARSAL, Reading, largest_error
from tests.support.planted import planted_clips

pytestmark = pytest.mark.gpu

MEAN = HeadConfig(aggregation="mean")
KINDS = [
    HeadConfig(hidden=64),
    HeadConfig(hidden=64, aggregation="mean", recipe="paper"),
    HeadConfig(hidden=64, aggregation="attention"),
    HeadConfig(kind="mlp", hidden=64),
    HeadConfig(kind="usdl", mode="direct", hidden=64),
    HeadConfig(mode="direct", aggregation="lstm", hidden=32),
]


@pytest.fixture(scope="module")
def clips() -> FeatureSet:
    return planted_clips(400, snippets=4, dim=256, noise=1.0)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepRunner, "_choose", lambda self, batch: self._step)


def graph_alone(self: StepRunner, batch: object) -> object:
    """``StepRunner._choose`` without its trial; the step itself on a CPU."""
    if self._device.type != "cuda":
        return self._step
    saved = [tensor.detach().clone() for tensor in self._state()]
    step = captured(self._step, batch, self._device)
    self._put_back(saved)
    return step


def stack_of(
    data: FeatureSet, device: torch.device, head: HeadConfig, models: int = 2, **config: object
) -> Stack:
    rates = np.geomspace(3e-4, 1e-3, models)
    return Stack(
        data,
        [ModelSettings(float(rate), 0.0, head.dropout) for rate in rates],
        head_config=head,
        config=FitConfig(**{"batch_size": 16, "seed": 3, **config}),  # type: ignore[arg-type]
        score_range=30.0,
        epsilon=30.0,
        device=device,
        keep_states=False,
    )


def weights(stack: Stack) -> list[torch.Tensor]:
    return [parameter.detach().clone().cpu() for parameter in stack.head.parameters()]


def difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.fixture
def no_reads() -> Callable[[Callable[[], object]], None]:
    """Calls something while waiting for the GPU is an error."""

    def strict(call: Callable[[], object]) -> None:
        if not torch.cuda.is_available():
            call()
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return strict


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("place", ["cuda", "cuda:0"])
def test_a_captured_epoch_leaves_what_a_plain_one_leaves(
    clips: FeatureSet,
    device: torch.device,
    reading: Reading,
    monkeypatch: pytest.MonkeyPatch,
    models: int,
    place: str,
) -> None:
    where = device if REHEARSAL else torch.device(place)
    found, seconds = [], []
    for choose in (lambda self, batch: self._step, graph_alone):
        monkeypatch.setattr(StepRunner, "_choose", choose)
        stack = stack_of(clips, where, MEAN, models)
        stack._loop.epoch()
        finish()
        started = time.perf_counter()
        stack._loop.epoch()
        finish()
        seconds.append(1e3 * (time.perf_counter() - started))
        found.append(weights(stack))
    start = weights(stack_of(clips, where, MEAN, models))
    error, change = difference(*found), difference(found[0], start)
    reading(
        f"graph = plain, K={models}, {place}",
        f"{error:.1e} of {change:.1e}; epoch plain {seconds[0]:.1f}, graph {seconds[1]:.1f} ms",
    )
    assert StepRunner.may_capture
    assert change > 1e-3
    assert error < 1e-2 * change


def test_the_trial_takes_the_graph(
    clips: FeatureSet,
    device: torch.device,
    reading: Reading,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger=step_graph.__name__):
        stack = stack_of(clips, device, HeadConfig(), 4)
        started = time.perf_counter()
        stack._loop.epoch()
        finish()
    reading("first epoch with its trial", f"{time.perf_counter() - started:.2f} s")
    for record in caplog.records:
        reading("training step", record.getMessage()[:200])
    assert not [r for r in caplog.records if r.levelno > logging.INFO]
    assert REHEARSAL or "training step: CUDA graph" in caplog.text


def test_models_of_different_rates_move_as_each_alone(
    clips: FeatureSet, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRunner, "_choose", graph_alone)
    found = []
    for branches in (1, 8):
        monkeypatch.setattr(stacked_adam, "_BRANCHES", branches)
        stacked_adam._streams.cache_clear()
        stack = stack_of(clips, device, MEAN, 8)
        for _ in range(2):
            stack._loop.epoch()
        found.append(weights(stack))
    stacked_adam._streams.cache_clear()
    assert difference(*found) < 1e-5


def test_a_smaller_stack_is_captured_anew(clips: FeatureSet, device: torch.device) -> None:
    stack = stack_of(clips, device, MEAN, 4)
    stack.run_epoch()
    stack.keep([0, 2])
    before = weights(stack)
    stack.run_epoch()
    assert StepRunner.may_capture
    assert difference(before, weights(stack)) > 1e-4


@pytest.mark.parametrize("exemplars", [10, None])
def test_an_epoch_is_judged_without_waiting(
    clips: FeatureSet,
    device: torch.device,
    no_reads: Callable[[Callable[[], object]], None],
    exemplars: int | None,
) -> None:
    stack = stack_of(clips, device, MEAN, 4, num_exemplars=exemplars)
    stack.run_epoch()
    on_cpu = stack_of(clips, torch.device("cpu"), MEAN, 4, num_exemplars=exemplars)
    on_cpu.head.load_state_dict(copy.deepcopy(stack.head).cpu().state_dict())
    if device.type == "cuda":
        stack.selection.labels_on_device()
        no_reads(stack.selection.labels_on_device)
    here, there = stack.selection.update(1), on_cpu.selection.update(1)
    assert np.abs(np.array(here) - there).max() < 1e-3


@pytest.mark.parametrize("head", KINDS, ids=lambda h: f"{h.name} {h.aggregation} {h.recipe}")
def test_heads_learn_what_a_cpus_learn(
    clips: FeatureSet, device: torch.device, reading: Reading, head: HeadConfig
) -> None:
    own, there = stack_of(clips, torch.device("cpu"), head), stack_of(clips, device, head)
    expected = [own.run_epoch() for _ in range(3)]
    found = [there.run_epoch() for _ in range(3)]
    pairs = list(zip(found, expected, strict=True))
    losses = max(largest_error(f[0], e[0]) for f, e in pairs)
    rho = max(float(np.abs(np.array(f[1]) - e[1]).max()) for f, e in pairs)
    reading(f"train {head.name} {head.aggregation}", f"losses {losses:.1e}, rho {rho:.4f}")
    assert losses < 2e-3
    assert rho < 0.03


def test_with_dropout_the_loss_falls(clips: FeatureSet, device: torch.device) -> None:
    stack = stack_of(clips, device, HeadConfig(hidden=64, dropout=0.3), learning_rate=1e-3)
    losses = [stack.run_epoch()[0] for _ in range(6)]
    assert (np.asarray(losses[-1]) < np.asarray(losses[0])).all()


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

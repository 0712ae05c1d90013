"""Which form of a step is chosen, on a pretended GPU: the choice is made without one."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aqa_pipeline import step_graph
from aqa_pipeline.step_graph import StepRunner


class Batch(NamedTuple):
    x: Tensor


class Nested(NamedTuple):
    x: Tensor
    labels: Batch


class Counter:
    """A training step: adds the batch's mean to its state."""

    def __init__(self) -> None:
        self.state, self.calls = torch.zeros(2), 0

    def __call__(self, batch: Batch) -> Tensor:
        self.calls += 1
        self.state += batch.x.mean()
        return self.state.clone()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda step: step)
    return Counter()


def runner(counter: Counter, device: str = "cuda") -> StepRunner:
    return StepRunner(counter, state=lambda: [counter.state], device=torch.device(device))


def captures(counter: Counter, made: list[int], slow: float = 0.0) -> Any:
    def captured(step: Any, batch: Batch) -> Any:
        made.append(1)
        return lambda given: counter(given)

    return captured


def test_on_a_cpu_a_step_is_a_step(counter: Counter) -> None:
    run = runner(counter, "cpu")
    assert run(Batch(torch.ones(3))).tolist() == [1, 1]
    assert counter.calls == 1


def test_the_trial_leaves_no_trace(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(step_graph, "captured", captures(counter, made))
    run = runner(counter)
    assert run(Batch(torch.ones(3))).tolist() == [1, 1]
    tried = counter.calls
    assert tried > 3 * 20, "plain, captured and compiled were timed"
    assert run(Batch(torch.ones(3))).tolist() == [2, 2]
    assert run(Batch(torch.ones(2))).tolist() == [3, 3], "a smaller last batch"
    assert (counter.calls, made) == (tried + 2, [1]), "the choice is made once"
    run.forget()
    assert run(Batch(torch.ones(2))).tolist() == [4, 4]
    assert made == [1, 1]


def test_tensors_inside_a_batch_count_as_its_own(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(step_graph, "captured", captures(counter, made))
    run, x = runner(counter), torch.ones(3)
    run(Nested(x, Batch(torch.ones(2))))
    tried = counter.calls
    monkeypatch.setattr(run, "_fast", lambda batch: torch.full((2,), 9.0))
    assert run(Nested(x, Batch(torch.zeros(2)))).tolist() == [9, 9]
    assert run(Nested(x, Batch(torch.zeros(4)))).tolist() == [2, 2], "other shapes inside"
    assert counter.calls == tried + 1
    batch = Nested(x, Batch(torch.zeros(2)))
    copy = step_graph._copied(batch)
    assert isinstance(copy, Nested)
    for own, given in zip(step_graph._tensors(copy), step_graph._tensors(batch), strict=True):
        assert torch.equal(own, given)
        assert own.data_ptr() != given.data_ptr()


def test_what_cannot_be_captured_is_left_out_with_a_line(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(step: Any, batch: Batch) -> Any:
        step(batch)  # it had begun
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(step_graph, "captured", refuse)
    with caplog.at_level(logging.INFO, logger="aqa_pipeline"):
        assert runner(counter)(Batch(torch.ones(3))).tolist() == [1, 1]
    assert "as CUDA graph is left out: RuntimeError: operation not permitted" in caplog.text
    assert "more" not in caplog.text

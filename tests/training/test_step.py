"""Choice of the form of a step. The capture itself needs a GPU; here stand-ins take its place."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

from aqa_pipeline.training import step as step_graph
from aqa_pipeline.training.step import BrokenCaptureError, StepRunner, largest_difference

CUDA = torch.device("cuda")


class Batch(NamedTuple):
    x: Tensor


class Nested(NamedTuple):
    x: Tensor
    labels: Batch


class Step:
    """Gradient descent of two models: row k moves by its gradient, a counter counts."""

    def __init__(self) -> None:
        self.weight, self.count, self.calls = torch.ones(2, 3), torch.ones(()), 0

    def state(self) -> list[Tensor]:
        return [self.weight, self.count]

    def quickly(self, batch: Any) -> Tensor:
        error = self.weight - batch.x
        self.weight -= 0.1 * error
        self.count += 1
        losses: Tensor = error.square().sum(dim=1).expand(2, 2)
        return losses

    def __call__(self, batch: Any) -> Tensor:
        self.calls += 1
        time.sleep(1e-3)
        return self.quickly(batch)


Capture = Callable[[Step, Any], Callable[[Any], Tensor]]


def honest(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    return step.quickly


def idle(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    losses = step.quickly(batch)
    return lambda given: losses


def deaf(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    return lambda given: step.quickly(batch)


def without_one_model(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    def replay(given: Any) -> Tensor:
        before = step.weight[1].clone()
        losses = step.quickly(given)
        step.weight[1] = before
        return losses

    return replay


def without_counting(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    def replay(given: Any) -> Tensor:
        losses = step.quickly(given)
        step.count -= 1
        return losses

    return replay


def with_old_losses(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    losses = step.quickly(batch).clone()

    def replay(given: Any) -> Tensor:
        step.quickly(given)
        return losses

    return replay


def not_finite(step: Step, batch: Any) -> Callable[[Any], Tensor]:
    def replay(given: Any) -> Tensor:
        losses = step.quickly(given)
        step.weight[0, 0] = torch.nan
        return losses

    return replay


@pytest.fixture(autouse=True)
def _pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(StepRunner, "may_capture", True)


def capture_as(monkeypatch: pytest.MonkeyPatch, form: Capture) -> list[int]:
    """Let ``form`` stand for a capture; the list grows with each."""
    made: list[int] = []

    def captured(step: Any, batch: Any, device: torch.device) -> Any:
        made.append(1)
        for _ in range(3):
            step.quickly(batch)
        return form(step, batch)

    monkeypatch.setattr(step_graph, "captured", captured)
    return made


def runner(step: Step, device: torch.device = CUDA) -> StepRunner:
    return StepRunner(step, state=step.state, device=device)


def batch(value: float = 3.0) -> Batch:
    return Batch(torch.full((2, 3), value))


def after(*values: float) -> Tensor:
    """The weights that plain steps leave."""
    step = Step()
    for value in values:
        step.quickly(batch(value))
    return step.weight


def test_on_a_cpu_a_step_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made, step = capture_as(monkeypatch, honest), Step()
    runner(step, torch.device("cpu"))(batch())
    assert (step.calls, made) == (1, [])


def test_a_captured_step_that_does_the_same_is_used_and_the_trial_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, step = capture_as(monkeypatch, honest), Step()
    run = runner(step)
    for value in (3.0, 5.0):
        run(batch(value))
    tried = step.calls
    assert torch.equal(step.weight, after(3.0, 5.0))
    assert step.count == 3
    run(batch(4.0))
    assert (step.calls, made) == (tried, [1]), "no plain step since, no second trial"
    run.forget()
    run(batch(1.0))
    assert made == [1, 1]
    assert step.calls > tried
    assert torch.equal(step.weight, after(3.0, 5.0, 4.0, 1.0))


@pytest.mark.parametrize(
    "form", [idle, deaf, without_one_model, without_counting, with_old_losses, not_finite]
)
def test_a_captured_step_that_does_something_else_is_refused_however_quick(
    form: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    capture_as(monkeypatch, form)
    step = Step()
    run = runner(step)
    with caplog.at_level(logging.INFO, logger="aqa_pipeline"):
        losses = run(batch())
    assert "plain; its CUDA graph leaves another state" in caplog.text
    assert losses[0].tolist() == pytest.approx([12.0, 12.0])
    tried = step.calls
    run(batch(5.0))
    assert step.calls == tried + 1
    assert torch.equal(step.weight, after(3.0, 5.0))
    assert step.count == 3


def test_where_nothing_changes_a_graph_cannot_show_that_it_works() -> None:
    before = [torch.ones(2, 3)]
    assert largest_difference(before, before, before) == torch.inf
    assert largest_difference([*before, torch.ones(2)], [*before, torch.ones(2)], before) > 1


def test_a_diverged_model_does_not_forbid_the_graph_of_the_others() -> None:
    before = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    after_plain = torch.tensor([[2.0, torch.inf], [2.0, 1.5]])
    assert largest_difference([after_plain.clone()], [after_plain], [before]) == 0
    other = after_plain + torch.tensor([[0.0], [0.01]])
    assert largest_difference([other], [after_plain], [before]) == pytest.approx(0.0126, abs=1e-3)


def test_a_form_that_is_no_quicker_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(step: Step, batch: Any) -> Callable[[Any], Tensor]:
        def replay(given: Any) -> Tensor:
            time.sleep(5e-3)
            return step.quickly(given)

        return replay

    capture_as(monkeypatch, slow)
    step = Step()
    run = runner(step)
    run(batch())
    tried = step.calls
    run(batch())
    assert step.calls == tried + 1


def test_other_shapes_take_the_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_as(monkeypatch, honest)
    step = Step()
    run, x = runner(step), torch.ones(2, 3)
    run(Nested(x, Batch(torch.ones(2))))
    tried = step.calls
    run(Nested(x, Batch(torch.zeros(2))))
    assert step.calls == tried
    run(Nested(x, Batch(torch.zeros(4))))
    assert step.calls == tried + 1, "other shapes inside"


def test_a_copied_batch_has_memory_of_its_own_and_a_varied_one_keeps_its_labels() -> None:
    given = Nested(torch.ones(3), Batch(torch.tensor([1, 2])))
    for change, same in ((step_graph._copied, True), (step_graph._varied, False)):
        found = change(given)
        assert isinstance(found, Nested)
        assert found.labels.x.tolist() == [1, 2]
        assert torch.equal(found.x, given.x) == same
        assert found.x.data_ptr() != given.x.data_ptr()


@pytest.mark.parametrize("broken", [False, True])
def test_what_cannot_be_captured_is_left_out_with_a_line(
    broken: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []

    def refuse(step: Step, batch: Any, device: torch.device) -> Any:
        made.append(1)
        step.quickly(batch)  # it had begun
        raise (BrokenCaptureError if broken else torch.OutOfMemoryError)("no room\nmore")

    monkeypatch.setattr(step_graph, "captured", refuse)
    step = Step()
    run = runner(step)
    with caplog.at_level(logging.INFO, logger="aqa_pipeline"):
        run(batch())
    assert torch.equal(step.weight, after(3.0))
    assert "training step: plain; its CUDA graph failed: " in caplog.text
    assert "no room" in caplog.text
    assert "more" not in caplog.text
    runner(Step())(batch())
    assert len(made) == (1 if broken else 2), "after a broken capture there is no other"


def test_a_plain_step_that_fails_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_as(monkeypatch, honest)
    step = Step()
    monkeypatch.setattr(Step, "__call__", lambda self, batch: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        runner(step)(batch())
    assert torch.equal(step.weight, after())


@pytest.mark.parametrize("ends", [True, False])
def test_a_step_that_fails_while_it_is_captured_ends_the_capture(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Graph:
        def capture_begin(self) -> None:
            told.append("begin")
            assert not gc.isenabled()

        def capture_end(self) -> None:
            told.append("end")
            if not ends:
                raise RuntimeError("operation failed due to a previous error during capture")

    def step(batch: Any) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing") as caught:
        step_graph._recorded(step, batch())
    assert isinstance(caught.value, BrokenCaptureError) != ends
    assert told == ["begin", "end"]
    assert gc.isenabled()


def test_a_graph_is_replayed_on_the_batch_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        """Runs the step again on the memory that was captured, as a CUDA graph does."""

        def __init__(self, step: Step, static: Any) -> None:
            self.step, self.static, self.losses = step, static, step.quickly(static).clone()

        def replay(self) -> None:
            self.losses.copy_(self.step.quickly(self.static))

    def recorded(step: Any, static: Any) -> tuple[Graph, Tensor]:
        graph = Graph(step, static)
        return graph, graph.losses

    stream = mock.MagicMock()
    for place in ("device", "stream", "current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, place, stream)
    monkeypatch.setattr(step_graph, "_recorded", recorded)
    step, given = Step(), batch(3.0)
    run = runner(step)
    run(given)
    tried = step.calls
    given.x.fill_(5.0)  # the memory of the captured batch is its own
    assert run(batch(4.0))[0, 0] == pytest.approx(3 * (after(3.0)[0, 0] - 4) ** 2)
    assert step.calls == tried, "replayed"
    torch.testing.assert_close(step.weight, after(3.0, 4.0))

"""Heads that memory does not suffice for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FitConfig
from aqa_pipeline.errors import SetupError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.training.stack import Stack
from aqa_pipeline.training.train import TrainedHeads, train_heads
from tests.support.planted import planted_clips
from tests.training.test_train import CPU, SMALL, trained, weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model_selection", ["validation", "test"])
def test_heads_that_do_not_fit_side_by_side_train_some_at_a_time(
    model_selection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = planted_clips(60)
    test = clips.take(range(40, 60)) if model_selection == "test" else None
    tried: list[int] = []
    real = Stack.run_epoch

    def short(self: Stack) -> Any:
        tried.append(len(self.seeds))
        if self.epoch == 1 and len(self.seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self)

    def run() -> tuple[TrainedHeads[Head], list[tuple[int, int]]]:
        told: list[tuple[int, int]] = []
        config = FitConfig(
            epochs=3, batch_size=16, num_seeds=5, model_selection=model_selection, seed=4
        )
        outcome = train_heads(
            clips.take(range(40)), head_config=SMALL, config=config, score_range=None,
            epsilon=30.0, device=CPU, test=test, progress=lambda *now: told.append(now),
        )  # fmt: skip
        return outcome, told

    whole, _ = run()
    monkeypatch.setattr(Stack, "run_epoch", short)
    parts, told = run()
    assert tried == [5] * 2 + [3] * 2 + [2] * 3 + [2] * 3 + [1] * 3
    assert told[-1] == (3, 3)
    assert parts.best_epoch == whole.best_epoch
    assert parts.head.num_models == 5
    np.testing.assert_array_equal(parts.validation_rows, whole.validation_rows)
    for name in ("selection_rho", "best_relative_l2", "held_out_scores", "history"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-5)
    votes = [
        outcome.head.halves(torch.from_numpy(clips.features)).query for outcome in (whole, parts)
    ]
    torch.testing.assert_close(*votes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    ],
)
def test_one_head_that_does_not_fit_ends_in_a_sentence(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: Stack) -> Any:
        raise RuntimeError(words)

    monkeypatch.setattr(Stack, "run_epoch", short)
    with pytest.raises(SetupError, match=r"device cpu: out of memory \(.* GB free now\); end what"):
        trained(planted_clips(40), num_seeds=2)


def test_other_errors_of_torch_are_not_taken_for_a_shortage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(self: Stack) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Stack, "run_epoch", wrong)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trained(planted_clips(40))

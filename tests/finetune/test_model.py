"""Pairs that fit into memory, and the memory that checkpointing saves."""

from __future__ import annotations

import pytest
import torch

from aqa_pipeline.finetune import model as memory
from aqa_pipeline.finetune.model import (
    PairModel,
    find_pairs_at_once,
    free_cpu_bytes,
    kept_bytes,
    resolve_precision,
)
from tests.support.tuning_data import small_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> PairModel:
    return small_model()[0]


def frames(count: int) -> torch.Tensor:
    return torch.zeros(count, 9, 64, 64, 3, dtype=torch.uint8)


def test_checkpointing_keeps_less_and_two_clips_twice_as_much(model: PairModel) -> None:
    one, two = kept_bytes(model, frames(1)), kept_bytes(model, frames(2))
    assert two.plain == pytest.approx(2 * one.plain, rel=0.01)
    assert one.checkpointed < 0.7 * one.plain
    # The first map alone: 8 channels x 5 x 32 x 32 floats before and after its BatchNorm.
    assert one.plain > 2 * 8 * 5 * 32 * 32 * 4


def test_frozen_layers_keep_nothing() -> None:
    late = small_model(first="mixed_5")[0]
    assert kept_bytes(late, frames(1)).plain < 0.05 * kept_bytes(small_model()[0], frames(1)).plain


@pytest.mark.parametrize(("pairs", "found"), [(0.5, 1), (3.1, 3), (100, 4)])
def test_as_many_pairs_as_fit(
    model: PairModel, monkeypatch: pytest.MonkeyPatch, pairs: float, found: int
) -> None:
    need = kept_bytes(model, frames(2)).plain * memory._CPU_OVERHEAD / memory._USED_PART
    monkeypatch.setattr(memory, "free_cpu_bytes", lambda: int(pairs * need))
    assert find_pairs_at_once(model, crop=64, num_frames=9, most=4) == found


def test_the_free_memory_is_known() -> None:
    assert free_cpu_bytes() > 1 << 20


def test_half_precision_is_for_gpus() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == resolve_precision("float32", cpu) == "float32"
    with pytest.raises(Exception, match="--precision float16 needs a GPU"):
        resolve_precision("float16", cpu)

"""The state file of an unfinished fine-tuning."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FinetuneConfig, FitConfig
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.finetune.checkpoint import (
    TrainerState,
    check_settings,
    learned,
    put_learned,
    read_state,
    restore,
    write_state,
)
from aqa_pipeline.finetune.step import TrainStep
from tests.finetune.test_step import PAIRS, draw_of
from tests.support.tuning_data import small_model

pytestmark = pytest.mark.usefixtures("one_thread")


def stepped(count: int) -> tuple[TrainStep, np.ndarray]:
    model, frames, label = small_model(first="mixed_5")
    stepper = TrainStep(
        model, label=label, fit_config=FitConfig(), config=FinetuneConfig(), micro_batch_pairs=2
    )
    for _ in range(count):
        stepper.step(draw_of(PAIRS), lambda rows: torch.from_numpy(frames[rows]))
    return stepper, frames


def write(path: Path, stepper: TrainStep, position: TrainerState) -> None:
    write_state(
        path,
        settings={"epochs": 3},
        position=position,
        micro_batch_pairs=2,
        model=stepper.model,
        best=learned(stepper.model),
        optimiser=stepper.optimiser,
        scaler=stepper.scaler,
    )


def test_what_is_read_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    stepper, frames = stepped(2)
    position = TrainerState(epoch=2, step=3, history=[[0, 1, 0.1, 0.2, 0.3, math.nan, 1e-3, 1e-4]])
    write(path, stepper, position)
    other, _ = stepped(0)
    saved = read_state(path)
    assert saved.settings == {"epochs": 3}
    assert (saved.position.epoch, saved.position.step, saved.micro_batch_pairs) == (2, 3, 2)
    assert math.isnan(saved.position.history[0][5])
    best = restore(saved, model=other.model, optimiser=other.optimiser, scaler=other.scaler)
    assert best.keys() == learned(stepper.model).keys()
    for both in (stepper, other):
        both.step(draw_of(PAIRS), lambda rows: torch.from_numpy(frames[rows]))
    for name, value in stepper.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    put_learned(other.model, best)
    assert not torch.equal(stepper.model.head.bias, other.model.head.bias)


def test_frozen_layers_are_not_in_it(tmp_path: Path) -> None:
    stepper, _ = stepped(1)
    names = learned(stepper.model).keys()
    layers = {name.split(".")[1] for name in names if name.startswith("backbone.")}
    assert layers == {"mixed_5b", "mixed_5c"}
    assert not any(name.endswith(".mean") and "backbone" in name for name in names)
    assert "head.standardise.mean" in names


def test_a_damaged_state_says_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    stepper, _ = stepped(0)
    write(path, stepper, TrainerState())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged .*--again to start anew"):
        read_state(path)


def test_other_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"epochs: 2 there, 3 here; unfreeze: None there, all"):
        check_settings(tmp_path / "s", {"epochs": 2}, {"epochs": 3, "unfreeze": "all"})
    check_settings(tmp_path / "s", {"rows": [1, 2]}, {"rows": (1, 2)})

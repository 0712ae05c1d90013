"""The state file of an unfinished fine-tuning, and signals that wait until it is written."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_pipeline.config import FinetuneConfig, FitConfig
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.finetune.checkpoint import (
    TrainerState,
    check_settings,
    held_signals,
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


def held_work(steps: list[str], *, signals: int, error: bool = False) -> None:
    with held_signals() as held:
        for number in range(signals):
            signal.raise_signal(signal.SIGINT)
            steps.append(f"after {number + 1}: {held.number}")
        if error:
            raise ZeroDivisionError


def test_a_signal_takes_effect_at_the_end_of_the_block() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        held_work(steps, signals=1)
    assert steps == ["after 1: 2"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_does_not_wait() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        held_work(steps, signals=2)
    assert steps == ["after 1: 2"]


def test_without_a_signal_nothing_happens() -> None:
    with held_signals() as held:
        pass
    assert held.number is None


def test_an_error_in_the_block_is_what_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        held_work([], signals=1, error=True)


def test_other_threads_hold_nothing() -> None:
    found = []

    def work() -> None:
        with held_signals() as held:
            found.append(held.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]

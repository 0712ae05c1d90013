"""Signals that wait for a safe point."""

from __future__ import annotations

import signal
import threading

import pytest

from aqa_pipeline.finetune.checkpoint import held_signals


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

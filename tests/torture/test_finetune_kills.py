"""Fine-tuning killed again and again at drawn moments: it ends as if left alone."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from pathlib import Path

import pytest

from aqa_pipeline.finetune.checkpoint import STATE_FILE
from tests.finetune.test_run import FINETUNE, learned
from tests.support import thin_aqa
from tests.support.tuning_data import make_tuning_project

pytestmark = pytest.mark.torture

KILLS = 6


def wait_for_a_save(process: subprocess.Popen[str], state: Path) -> None:
    """Until training has saved its state anew, or the process has ended."""
    before = state.stat().st_mtime_ns if state.exists() else 0
    while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
        time.sleep(0.005)


def seconds_after_a_save(process: subprocess.Popen[str], state: Path) -> float:
    """How long the process goes on after it first saved its state."""
    wait_for_a_save(process, state)
    started = time.monotonic()
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return time.monotonic() - started


def killed_at_work(process: subprocess.Popen[str], state: Path, wait: float) -> bool:
    """Kill it ``wait`` seconds after its next save; whether it was still at work."""
    wait_for_a_save(process, state)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    was_at_work = process.poll() is None
    process.kill()
    process.communicate()
    return was_at_work


def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    make_tuning_project(tmp_path)
    options = (*FINETUNE, "--epochs", "4", "--save-every", "1")
    runs = tmp_path / "runs"
    whole = thin_aqa.start(tmp_path, *options, "--run", "whole")
    work = seconds_after_a_save(whole, runs / "whole" / STATE_FILE)
    draw = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        process = thin_aqa.start(tmp_path, *options, "--run", "killed")
        wait = draw.uniform(0, work / KILLS)
        killed += killed_at_work(process, runs / "killed" / STATE_FILE, wait)
    assert killed >= KILLS - 1, "it was hardly ever killed at work: the test is blind"
    done = thin_aqa.start(tmp_path, *options, "--run", "killed")
    _, stderr = done.communicate()
    assert done.returncode == 0, stderr
    assert learned(runs / "killed") == learned(runs / "whole")
    for name in ("history.csv", "predictions.csv"):
        assert (runs / "killed" / name).read_bytes() == (runs / "whole" / name).read_bytes()

"""Fine-tuning killed again and again at drawn moments: it ends as if left alone."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests import thin_aqa
from tests.test_finetune import FINETUNE, learned
from tests.tuning_data import make_tuning_project

pytestmark = pytest.mark.torture

KILLS = 6


def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    make_tuning_project(tmp_path)
    options = (*FINETUNE, "--epochs", "4", "--save-every", "1")
    started = time.monotonic()
    whole = thin_aqa.start(tmp_path, *options, "--run", "whole")
    _, stderr = whole.communicate()
    seconds = time.monotonic() - started
    assert whole.returncode == 0, stderr
    draw = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        process = thin_aqa.start(tmp_path, *options, "--run", "killed")
        try:
            process.wait(draw.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            killed += 1
        process.kill()
        process.communicate()
        if (tmp_path / "runs" / "killed" / "metrics.json").exists():
            break
    assert killed >= 2, "it was never killed at work: the test is blind"
    done = thin_aqa.start(tmp_path, *options, "--run", "killed")
    _, stderr = done.communicate()
    assert done.returncode in (0, 2), stderr
    runs = tmp_path / "runs"
    assert learned(runs / "killed") == learned(runs / "whole")
    for name in ("history.csv", "predictions.csv"):
        assert (runs / "killed" / name).read_bytes() == (runs / "whole" / name).read_bytes()

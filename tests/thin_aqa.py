"""The `aqa` command with the thin network, for tests that fine-tune for real.

``python -m tests.thin_aqa finetune ...``
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use_thin_network() -> None:
    """From here on the real command loads weights of the thin network."""
    from aqa_pipeline import finetune, weights
    from aqa_pipeline.tuning import training
    from tests.tuning_data import load_thin_i3d

    for module in (finetune, training, weights):
        setattr(module, "load_i3d", load_thin_i3d)  # noqa: B010 - modules do not export it


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.thin_aqa", *arguments]


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        command(*arguments),
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    from aqa_cli.main import main

    use_thin_network()
    main()

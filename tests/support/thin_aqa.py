"""The `aqa` command with the thin network, for tests that fine-tune for real.

``python -m tests.support.thin_aqa finetune ...``
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT


def use_thin_network(patch: pytest.MonkeyPatch) -> None:
    """From here on the real command loads weights of the thin network."""
    from aqa_pipeline.backbone import weights
    from aqa_pipeline.finetune import part as training
    from aqa_pipeline.finetune import run as finetune
    from tests.support.tuning_data import load_thin_i3d

    for module in (finetune, training, weights):
        patch.setattr(module, "load_i3d", load_thin_i3d)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.thin_aqa", *arguments]


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
    """The command in this process, which saves the start of another one."""
    import torch
    from aqa_cli.main import cli
    from click.testing import CliRunner

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes of start()
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(root):
            use_thin_network(patch)
            result = CliRunner().invoke(cli, arguments)
    finally:
        torch.set_num_threads(threads)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


if __name__ == "__main__":
    from aqa_cli.main import main

    use_thin_network(pytest.MonkeyPatch())
    main()

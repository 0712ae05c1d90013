"""The `aqa` command with a network that reads frame numbers, for tests that run it for real.

``python -m tests.support.fake_aqa extract ...``; ``FAKE_SECONDS`` is how long a clip takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.support.places import ROOT


def write_fake_weights(path: Path) -> Path:
    """A file with the hash that converted weights carry; nobody loads it."""
    import hashlib

    from safetensors.numpy import save_file

    array = np.zeros(3, np.float32)
    sha256 = hashlib.sha256(b"weight float32 3\n" + array.tobytes()).hexdigest()
    save_file({"weight": array}, path, metadata={"weights_sha256": sha256})
    return path


def aqa_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.fake_aqa", *arguments]


def aqa_environment(*, clip_seconds: float = 0.0) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FAKE_SECONDS": str(clip_seconds),
        "OMP_NUM_THREADS": "1",
    }


def start_aqa(root: Path, *arguments: str, clip_seconds: float = 0.0) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell would start it."""
    return subprocess.Popen(
        aqa_command(*arguments),
        cwd=root,
        env=aqa_environment(clip_seconds=clip_seconds),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_aqa(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        aqa_command(*arguments),
        cwd=root,
        env=aqa_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def slow_encode(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    from tests.support.small_project import encode_numbers

    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    return encode_numbers(frames)


def use_fake_network() -> None:
    """From here on the real command loads the fake network, and does not ask torch anything."""
    from aqa_pipeline.extraction import extract, work

    extract.i3d_backbone = (  # type: ignore[attr-defined]
        lambda weights, protocol, **_: lambda: slow_encode
    )
    work._facts = lambda: {"cpu": "fake"}


if __name__ == "__main__":
    from aqa_cli.main import main

    use_fake_network()
    main()

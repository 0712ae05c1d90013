"""A device by name, on machines with and without a GPU (torch's own count is replaced)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aqa_pipeline.device import device_name, find_device, share_cores
from aqa_pipeline.errors import SetupError, UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[torch.device]:
    """So many GPUs; the devices that became the current one."""
    count = request.param
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return current


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
    ],
    indirect=["gpus"],
)
def test_a_device_by_name(gpus: list[torch.device], name: str, expected: str) -> None:
    assert find_device(name) == torch.device(expected)
    # Streams and graphs are made on the current device.
    assert gpus == ([torch.device("cuda:1")] if name == "cuda:1" else [])


@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(device: torch.device) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old.\nMore.")

    monkeypatch.setattr(torch.cuda, "set_device", too_old)
    with pytest.raises(
        SetupError, match=r"device cuda:0: The NVIDIA .* too old\.; see `aqa doctor`"
    ):
        find_device("cuda:0")


@pytest.mark.parametrize(
    ("gpus", "name", "seen"),
    [(0, "cuda", "no GPUs"), (0, "cuda:0", "no GPUs"), (1, "cuda:1", "1 GPU here")],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there(name: str, seen: str) -> None:
    with pytest.raises(SetupError, match=f"device {name}: torch .* sees {seen}.*--device cpu"):
        find_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "mps", "cuda:-1"])
def test_a_name_that_is_no_device(name: str) -> None:
    with pytest.raises(UsageError, match="is none of auto, cpu, cuda"):
        find_device(name)


@pytest.mark.parametrize(
    ("gpus", "name", "driver", "expected"),
    [
        (1, "auto", True, "cuda"),
        (1, "auto", False, "cpu"),  # no driver: torch is not even asked
        (0, "auto", True, "cpu"),
        (1, "cpu", True, "cpu"),
        (2, "cuda:1", False, "cuda:1"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_the_name_of_a_device(
    name: str, driver: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    there = str(tmp_path) if driver else str(tmp_path / "none")
    monkeypatch.setattr("aqa_pipeline.device._DRIVERS", (there,))
    assert device_name(name) == expected


def test_a_cpu_is_named_without_torch() -> None:
    code = (
        "import sys\n"
        "from aqa_pipeline import device\n"
        "device._DRIVERS = ()\n"
        "sys.platform = 'linux'\n"
        "assert device.device_name('auto') == device.device_name('cpu') == 'cpu'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_wait_without_spinning_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "active"

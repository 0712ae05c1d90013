"""The diagnosis: every line can say ok, and every line can say what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from aqa_cli.main import cli
from click.testing import CliRunner

from aqa_pipeline import atomic
from aqa_pipeline.errors import ClipError, SetupError
from aqa_pipeline.extraction import device_check
from aqa_pipeline.extraction import doctor as decode_check
from aqa_pipeline.extraction.doctor import Check, diagnose
from aqa_pipeline.media import reader as video
from tests.support.random_i3d import random_i3d

Usage = namedtuple("Usage", "total used free")


def check(name: str, root: Path) -> Check:
    return next(item for item in diagnose(cache_root=root) if item.name == name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    return tmp_path


def test_all_is_well_and_nothing_stays(project: Path) -> None:
    from safetensors.torch import save_file

    save_file(random_i3d().state_dict(), project / "w.safetensors")
    result = CliRunner().invoke(cli, ["doctor", "--weights", "w.safetensors", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["ready"]
    assert [item["name"] for item in told["checks"]] == [
        *("python", "packages", "device", "threads", "processes", "weights"),
        *("decoder", "cache folder", "disk", "temporary files"),
    ]
    assert [path.name for path in project.iterdir()] == ["w.safetensors"]


def test_missing_weights_are_6_and_say_what_to_type(project: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 6
    assert "missing  weights" in result.stdout
    assert "`aqa weights fetch`" in result.stdout
    assert result.stderr == "missing: weights\n"


def test_packages_that_are_old_or_not_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "joblib":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.9.1+cpu" if name == "torch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = check("packages", project)
    assert found.status == "missing"
    assert found.advice == "pip install 'joblib>=1.4' 'torch>=2.10'"


def test_a_torch_that_cannot_multiply(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "conv3d", lambda *_: torch.zeros(1))
    found = check("device", project)
    assert (found.status, "computes a wrong convolution" in found.found) == ("missing", True)


#: What CUDA says of a GPU that torch sees and cannot use, and what to do then.
BROKEN_GPUS = {
    "CUDA error: no kernel image is available for execution on the device\nCompile with ...": (
        "install a torch built for this GPU's architecture"
    ),
    "The NVIDIA driver on your system is too old (found version 11040).": "install a newer driver",
    "CUDA error: out of memory": "end what else uses the GPU",
}


@pytest.mark.parametrize("said", BROKEN_GPUS)
@pytest.mark.parametrize("first_failing", ["get_device_name", "mem_get_info"])
def test_a_gpu_that_torch_sees_and_cannot_use(
    project: Path, monkeypatch: pytest.MonkeyPatch, said: str, first_failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    # Everything else of torch.cuda raises by itself: there is no GPU here.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    monkeypatch.setattr(torch.cuda, first_failing, fail)
    found = check("device", project)
    name = "GPU" if first_failing == "get_device_name" else "A GPU"
    assert (found.status, found.found) == ("missing", f"{name}: {said.splitlines()[0]}")
    assert found.advice.startswith(BROKEN_GPUS[said])
    assert "--device cpu" in found.advice
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 6
    assert "Traceback" not in result.output


def test_a_driver_whose_gpu_torch_does_not_see(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = project / "version"
    text.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    monkeypatch.setattr(device_check, "_DRIVER_FILE", text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = check("device", project)
    assert found.status == "!"
    assert found.found.startswith("cpu; a GPU's driver 580.65.06 is here, but torch ")
    assert found.advice == "install a newer driver, or a torch built for a CUDA before 13.0"


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_held_against_float32(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    cpu = torch.device("cpu")
    assert f"{kind} within" in device_check.half_against_float32(cpu, kind)
    real = torch.nn.functional.conv3d

    def wrong(x: torch.Tensor, weight: torch.Tensor, *, padding: int) -> torch.Tensor:
        out = real(x, weight, padding=padding)
        if x.dtype != torch.float32:
            out[0, 0] = 0  # a hundredth of all
        return out

    monkeypatch.setattr(torch.nn.functional, "conv3d", wrong)
    with pytest.raises(SetupError, match=f"a wrong convolution in {kind} on cpu"):
        device_check.half_against_float32(cpu, kind)


def test_more_threads_than_cores(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    found = check("threads", project)
    assert found.status == "!"
    assert found.advice.startswith("export OMP_NUM_THREADS=")


def test_a_decoder_that_gives_other_frames(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = video.VideoReader.read
    monkeypatch.setattr(video.VideoReader, "read", lambda self, index: real(self, index + 1))
    with pytest.raises(SetupError, match=r"asked for frames \[7, .*, the decoder gave \[8, "):
        decode_check.check_decoder()

    def broken(self: video.VideoReader, index: np.ndarray) -> None:
        raise ClipError("a bad packet")

    monkeypatch.setattr(video.VideoReader, "read", broken)
    found = check("decoder", project)
    assert (found.status, found.found) == ("missing", "a video of 24 frames: a bad packet")
    assert "pip install" in found.advice


def test_a_folder_that_cannot_be_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", refuse, raising=False)
        found = check("cache folder", project / "cache")
    assert found.status == "missing"
    assert "cannot write here (Permission denied)" in found.found
    monkeypatch.setattr(os, "mkdir", refuse)
    assert check("cache folder", project / "cache").found.startswith(f"{project}: cannot write")


def test_little_space_is_worth_knowing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 44_000_000))
    found = check("disk", project)
    assert (found.status, "room for 1,000 clips" in found.found) == ("!", True)
    assert check("temporary files", project).status == "!"


def test_no_worker_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert "no worker process" in check("processes", project).found
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "the reading process died (exit code 1)" in check("processes", project).found

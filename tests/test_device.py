"""A device by name, on machines with and without a GPU (torch's own count is replaced)."""

from __future__ import annotations

import pytest
import torch

from aqa_pipeline.device import find_device
from aqa_pipeline.errors import SetupError, UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    count = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


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
@pytest.mark.usefixtures("gpus")
def test_a_device_by_name(name: str, expected: str) -> None:
    assert find_device(name) == torch.device(expected)


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

"""One process of several."""

from __future__ import annotations

import pytest
import torch

from aqa_pipeline.errors import UsageError
from aqa_pipeline.ranks import Ranks, own_device, ranks_of

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
       "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # fmt: skip
CPU = torch.device("cpu")


def test_without_torchrun_there_is_one_process() -> None:
    assert ranks_of({}) == Ranks() == ranks_of({"WORLD_SIZE": "1"})
    assert Ranks().is_first
    assert Ranks().any(True, CPU)
    assert not Ranks().any(False, CPU)
    assert Ranks().sum(torch.ones(1)).tolist() == [1.0]


def test_what_torchrun_says() -> None:
    assert ranks_of(TWO) == Ranks(rank=1, world=2, local_rank=1, local_world=2)
    assert not ranks_of(TWO).is_first


def test_half_of_what_torchrun_says_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"RANK, LOCAL_RANK .*is not set; start .*torchrun"):
        ranks_of({k: v for k, v in TWO.items() if not k.endswith("RANK")})


def test_each_process_of_a_machine_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert own_device(CPU, TWO) == CPU
    assert own_device(cuda, {}) == cuda
    assert own_device(cuda, TWO) == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--device cuda:0 for 2 processes"):
        own_device(torch.device("cuda:0"), TWO)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"2 processes on this machine, but torch sees 1 GPU"):
        own_device(cuda, TWO)

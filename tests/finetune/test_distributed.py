"""One process of several."""

from __future__ import annotations

import pytest
import torch

from aqa_pipeline.errors import UsageError
from aqa_pipeline.finetune.distributed import DistributedContext, joined, own_device, ranks_of

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
       "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # fmt: skip
CPU = torch.device("cpu")


def test_without_torchrun_there_is_one_process() -> None:
    assert ranks_of({}) == DistributedContext() == ranks_of({"WORLD_SIZE": "1"})
    assert DistributedContext().is_first
    assert DistributedContext().any(True, CPU)
    assert not DistributedContext().any(False, CPU)
    assert DistributedContext().sum(torch.ones(1)).tolist() == [1.0]


def test_what_torchrun_says() -> None:
    assert ranks_of(TWO) == DistributedContext(rank=1, world=2, local_rank=1, local_world=2)
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


def test_nccl_is_told_which_gpu_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told none, it makes its communicator late and guesses the GPU from the rank."""
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    current = [torch.device("cuda:0")]
    monkeypatch.setattr("torch.cuda.set_device", lambda device: current.append(device))
    monkeypatch.setattr("torch.cuda.current_device", lambda: current[-1].index)
    met: list[tuple[str, torch.device | None]] = []
    monkeypatch.setattr(
        "torch.distributed.init_process_group",
        lambda backend, device_id=None: met.append((backend, device_id)),
    )
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with joined(torch.device("cuda:1")) as ranks:
        assert ranks.rank == 1
    with joined(CPU):
        pass
    assert met == [("nccl", torch.device("cuda:1")), ("gloo", None)]

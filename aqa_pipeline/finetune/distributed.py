"""Processes that train together: rank, device, and what all of them agree on.

``torchrun`` starts the processes and says in the environment which is which; nothing else
is asked of the user. Without it there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from aqa_pipeline.errors import UsageError


@dataclass(frozen=True)
class DistributedContext:
    """This process among all.

    Attributes
    ----------
    rank, world : int
        Its number, from 0, and how many there are.
    local_rank, local_world : int
        The same on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """The one process that writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is true in any process; all of them get the same answer."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.world > 1:
            dist.barrier()


def ranks_of(environ: Mapping[str, str]) -> DistributedContext:
    """What ``torchrun`` says of this process.

    Raises
    ------
    UsageError
        If it says only a part.
    """
    if int(environ.get("WORLD_SIZE", "1")) == 1:
        return DistributedContext()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start "
            "several processes with `torchrun --no-python aqa finetune ...`"
        )
    return DistributedContext(*(int(environ[name]) for name in names))


@contextmanager
def joined(device: torch.device) -> Iterator[DistributedContext]:
    """Meet the other processes, if there are any, and part at the end."""
    ranks = ranks_of(os.environ)
    if ranks.world == 1:
        yield ranks
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Named, or the first sum has to guess which GPU this process has.
        numbered = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", device_id=numbered)
    else:
        dist.init_process_group("gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device, environ: Mapping[str, str]) -> torch.device:
    """The device of this process: of several on one machine each has a GPU of its own.

    Raises
    ------
    UsageError
        If one GPU was named for several processes, or there are too few.
    """
    ranks = ranks_of(environ)
    if ranks.world == 1 or device.type != "cuda":
        return device
    if device.index is not None and ranks.local_world > 1:
        raise UsageError(f"--device {device} for {ranks.local_world} processes; type --device cuda")
    if ranks.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"{ranks.local_world} processes on this machine, but torch sees "
            f"{torch.cuda.device_count()} GPU(s); start as many as there are GPUs"
        )
    return torch.device("cuda", ranks.local_rank)

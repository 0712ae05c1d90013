"""Where the arithmetic is done: the one place that picks a device by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aqa_pipeline.errors import SetupError, UsageError

if TYPE_CHECKING:
    import torch

#: One of these is there wherever a driver is through which torch could see a GPU: NVIDIA's,
#: NVIDIA's for Jetson, AMD's, Windows' for Linux.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/kfd", "/dev/dxg")


def device_name(name: str) -> str:
    """The device a user asked for, ``cpu``, ``cuda`` or ``cuda:N``; errors as :func:`find_device`.

    torch is not imported where it is clear without: a finished extraction says so in a
    second.
    """
    may_have_gpu = sys.platform != "linux" or any(Path(path).exists() for path in _DRIVERS)
    if name == "cpu" or (name == "auto" and not may_have_gpu):
        return "cpu"
    return str(find_device(name))


def share_cores() -> None:
    """Let torch's threads sleep, not spin, while they wait for one another on a CPU.

    A thread that spins keeps its core from whatever the other one waits for: a decoder, or
    another program. With others at work the network is several times as fast this way
    (docs/performance.md). Must come before torch is imported; what the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def find_device(name: str) -> torch.device:
    """The device a user asked for; a GPU with a number becomes torch's current one.

    Streams, graphs and page-locked memory are made on the current device where none is named.

    Parameters
    ----------
    name : str
        ``auto`` (a GPU if torch sees one, else the CPU), ``cpu``, ``cuda``, or ``cuda:N``.

    Raises
    ------
    UsageError
        If the name is none of these.
    SetupError
        If there is no such GPU, or it cannot be used.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and (kind == "cpu" or not number.isdecimal())):
        raise UsageError(f"device {name!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        seen = f"torch {torch.__version__} sees {count or 'no'} GPU{'' if count == 1 else 's'}"
        raise SetupError(f"device {name}: {seen} here; type --device cpu, or see `aqa doctor`")
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        try:
            torch.cuda.set_device(device)
        except RuntimeError as error:  # a driver that is too old, a GPU in exclusive use, ...
            reason = str(error).split("\n", 1)[0]
            raise SetupError(f"device {name}: {reason}; see `aqa doctor`") from error
    return device

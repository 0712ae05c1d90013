"""Devices by name, how much memory they have left, and what to do when it runs out."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aqa_pipeline.errors import SetupError, UsageError

if TYPE_CHECKING:
    import torch

#: One of these is there wherever a driver is through which torch could see a GPU: NVIDIA's,
#: NVIDIA's for Jetson, AMD's, Windows' for Linux.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/kfd", "/dev/dxg")
_FLOAT = 4  #: bytes
_SHARE_AT_ONCE = 1 / 64  #: of free memory, for numbers that are made for many steps at once

#: What torch, the CUDA runtime, cuDNN 8 and 9, cuBLAS and the system say when memory runs out.
#: A convolution that gets no workspace for any of its algorithms finds no engine.
_SHORTAGE = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "unable to find an engine",
    "can't allocate memory",
    "not enough memory",
)
_CGROUP = Path("/sys/fs/cgroup")


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


def find_device(name: str | torch.device) -> torch.device:
    """The device a user asked for; a GPU with a number becomes torch's current one.

    Streams, graphs and page-locked memory are made on the current device where none is named.

    Parameters
    ----------
    name : str or torch.device
        ``auto`` (a GPU if torch sees one, else the CPU), ``cpu``, ``cuda``, or ``cuda:N``; a
        device is given back as it is.

    Raises
    ------
    UsageError
        If the name is none of these.
    SetupError
        If there is no such GPU, or it cannot be used.
    """
    if not isinstance(name, str):
        return name
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


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, in bytes; what torch keeps for later use is free."""
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = _proc_available()
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    return max(free, 0)


def _proc_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kib) * 1024
    except (OSError, StopIteration, ValueError):
        return 4 * 2**30  # not Linux: a size that most machines have


def _cgroup_number(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def numbers_at_once(device: torch.device, *, on_cpu: int, on_gpu: int) -> int:
    """How many numbers an operation over many steps or clips makes at once.

    Parameters
    ----------
    device : torch.device
    on_cpu, on_gpu : int
        What is best for each; on a GPU less where memory is short, but never below ``on_cpu``.
    """
    if device.type != "cuda":
        return on_cpu
    return max(on_cpu, min(on_gpu, int(_SHARE_AT_ONCE * free_bytes(device)) // _FLOAT))


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: torch says so by a class, libraries only by their words."""
    import torch

    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(part in words for part in _SHORTAGE)
    )


def release_memory(device: torch.device) -> None:
    """Free what a stack that is no longer used holds; call it outside the exception handler."""
    gc.collect()  # a stack and its captured step refer to one another
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def too_large(device: torch.device) -> SetupError:
    """The error where not even the smallest stack fits."""
    free = f"{free_bytes(device) / 1e9:.1f} GB free now"
    return SetupError(f"device {device}: out of memory ({free}); {smaller_heads(device)}")


def smaller_heads(device: torch.device) -> str:
    """What to do where the heads of stage two are too large."""
    other = "" if device.type == "cpu" else ", or type --device cpu"
    return (
        "end what else uses it, make the heads smaller (--batch-size, --hidden, fewer exemplars)"
        + other
    )


@contextmanager
def naming_shortage(device: object, advice: str) -> Iterator[None]:
    """Turn what a device says when its memory runs out into a sentence; the rest passes.

    Parameters
    ----------
    device : object
        Its name is the beginning of the sentence.
    advice : str
        What to lower or type, the end of the sentence.

    Raises
    ------
    SetupError
    """
    try:
        yield
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        said = str(error).strip().split("\n", 1)[0]
        raise SetupError(f"{device}: out of memory ({said}); {advice}") from error

"""A self-test of the device that ``auto`` picks: what it is, and whether it computes right.

A GPU that torch sees may still be of no use: the driver is older than torch's CUDA, torch has
no code for its architecture, or another program has taken its memory. Each is a finding here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aqa_pipeline.errors import SetupError

if TYPE_CHECKING:
    import torch

#: What the driver says of itself, on Linux.
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
#: float16 keeps 11 bits, bfloat16 8; the factors are rounded, the sums are in float32.
_TOLERANCES = {"float16": 5e-3, "bfloat16": 4e-2}
_ON_CPU = "type --device cpu meanwhile"


@dataclass(frozen=True)
class DeviceFinding:
    """What was found of a device.

    Attributes
    ----------
    found : str
    advice : str
        What to do; empty when all is well.
    is_broken : bool
        It is there and cannot be used.
    """

    found: str
    advice: str = ""
    is_broken: bool = False


def check_device() -> DeviceFinding:
    """Compute something on the device that ``auto`` picks.

    Raises
    ------
    SetupError
        It computes wrong.
    """
    import torch

    from aqa_pipeline.device import find_device

    name = "GPU"
    try:
        device = find_device("auto")
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            return DeviceFinding(_check_gpu(device, name))
    except RuntimeError as error:
        # Whatever CUDA says; torch's out of memory is one of these, too.
        said = str(error).strip().split("\n", 1)[0]
        return DeviceFinding(f"{name}: {said}", _advice(error), is_broken=True)
    _check_ones(device)
    driver = driver_version()
    if driver:
        advice = (
            f"install a newer driver, or a torch built for a CUDA before {torch.version.cuda}"
            if torch.version.cuda
            else "install a torch built for CUDA; this one is for a CPU alone"
        )
        return DeviceFinding(
            f"cpu; a GPU's driver {driver} is here, but torch {torch.__version__} sees no GPU",
            advice,
        )
    return DeviceFinding("cpu (no GPU: extraction takes seconds a clip)")


def driver_version() -> str:
    """Version of NVIDIA's driver, such as ``580.65.06``; empty where it cannot be told."""
    try:
        text = _DRIVER_FILE.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)*)\b", text)
    return match[1] if match else ""


def _advice(error: RuntimeError) -> str:
    from aqa_pipeline.device import is_shortage

    if is_shortage(error):
        return f"end what else uses the GPU, or {_ON_CPU}"
    if "no kernel image" in str(error):
        return f"install a torch built for this GPU's architecture, or {_ON_CPU}"
    return f"install a newer driver, or a torch built for an older CUDA; {_ON_CPU}"


def _check_gpu(device: torch.device, name: str) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    _check_ones(device)
    differences = [half_against_float32(device, kind) for kind in _half_types(device)]
    driver = driver_version()
    return ", ".join(
        [
            f"{name}, {total / 1e9:.0f} GB ({free / 1e9:.1f} free)",
            f"capability {major}.{minor}",
            *([f"driver {driver}"] if driver else []),
            f"CUDA {torch.version.cuda}",
            f"cuDNN {torch.backends.cudnn.version()}",  # type: ignore[no-untyped-call]
            *differences,
        ]
    )


def _half_types(device: torch.device) -> list[str]:
    import torch

    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ["float16", "bfloat16"] if has_bf16 else ["float16"]


def _check_ones(device: torch.device) -> None:
    import torch

    ones = torch.ones(1, 1, 3, 3, 3, device=device)
    total = float(torch.nn.functional.conv3d(ones, ones))
    if total != 27.0:
        raise SetupError(
            f"torch {torch.__version__} computes a wrong convolution on {device}: {total}, not 27"
        )


def half_against_float32(device: torch.device, kind: str) -> str:
    """Compare a convolution of the network's kind with float32's on the CPU; says how near it is.

    Raises
    ------
    SetupError
        It is not near.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 4, 14, 14, generator=draw)
    weight = torch.randn(96, 64, 3, 3, 3, generator=draw) / (64 * 27) ** 0.5
    expected = torch.nn.functional.conv3d(x, weight, padding=1)
    half = {
        "device": device,
        "dtype": getattr(torch, kind),
        "memory_format": torch.channels_last_3d,
    }
    found = torch.nn.functional.conv3d(x.to(**half), weight.to(**half), padding=1)
    difference = float((found.float().cpu() - expected).norm() / expected.norm())
    if not difference <= _TOLERANCES[kind]:  # also where it is not a number
        raise SetupError(
            f"torch {torch.__version__} computes a wrong convolution in {kind} on {device}: "
            f"{difference:.1e} of float32's away"
        )
    return f"{kind} within {difference:.0e} of float32"

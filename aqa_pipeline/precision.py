"""What the network computes in, and whether its features are still the same.

Conventions
-----------
float32
    IEEE single precision; the only one on a CPU, where half precision without hardware
    for it is tens of times slower.
tf32, bf16, fp16
    A GPU's quicker arithmetic: float32 with short factors; bfloat16; float16. What was
    really used is part of a cache's fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float32]

FLOAT32 = "float32"
#: Quickest first.
PRECISIONS = ("bf16", "fp16", "tf32", FLOAT32)
#: Cosine between a snippet's features in float32 and in another precision, at least.
LEAST_COSINE = 0.999


def set_precision(precision: str) -> torch.dtype:
    """Let torch compute in a precision from now on; the type that weights and input have."""
    import torch

    how = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = how
    torch.backends.cudnn.conv.fp32_precision = how  # type: ignore[attr-defined]
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def supported_precisions(device: torch.device) -> tuple[str, ...]:
    """Those a GPU has hardware for, quickest first."""
    import torch

    has_tf32 = torch.cuda.get_device_capability(device) >= (8, 0)
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    lacking = {"bf16": not has_bf16, "tf32": not has_tf32}
    return tuple(name for name in PRECISIONS if not lacking.get(name, False))


def agreement(reference: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """The smallest cosine between rows that belong together; -1 if a number is not finite."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = (a * b).sum(axis=-1) / np.maximum(lengths, np.finfo(float).tiny)
    return float(cosines.min())


@dataclass(frozen=True)
class Choice:
    """The precision chosen, and the cosine of each that was tried, in order."""

    precision: str
    cosines: dict[str, float]


def choose(candidates: Sequence[str], features: Callable[[str], Array]) -> Choice:
    """The first candidate whose features agree with float32's.

    Parameters
    ----------
    candidates : sequence of str
        Quickest first; float32 need not be among them.
    features : callable
        Features of the same snippets in a precision, shape=(n, dim).
    """
    cosines: dict[str, float] = {}
    reference = features(FLOAT32)
    for precision in candidates:
        if precision == FLOAT32:
            break
        cosines[precision] = agreement(reference, features(precision))
        if cosines[precision] >= LEAST_COSINE:
            return Choice(precision, cosines)
    return Choice(FLOAT32, cosines)

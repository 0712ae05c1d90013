"""Numerical precisions of the backbone, and the check that features agree with float32.

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

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float32]

FLOAT32 = "float32"
#: Quickest first. fp16 is as quick as bf16 wherever there is both, and several times nearer to
#: float32; the activations of I3D are far from its largest number, and where they are not,
#: :func:`agreement` sees it.
PRECISIONS = ("fp16", "bf16", "tf32", FLOAT32)
#: Least cosine between a snippet's features in float32 and in another precision. fp16 reaches
#: .999998; bf16, at .99986 on the published weights, moves a fitted head by up to half a point.
LEAST_COSINE = 0.9999


def dtype_of(precision: str) -> torch.dtype:
    """The type that weights and input have in a precision."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextmanager
def computing_in(precision: str, *, benchmark: bool = False) -> Iterator[torch.dtype]:
    """Let cuDNN's convolutions compute in a precision; everything is as it was afterwards.

    Matrix products (a head's) are left alone. The flags are the process's, not the thread's.

    Parameters
    ----------
    precision : str
        One of :data:`PRECISIONS`.
    benchmark : bool
        Whether cuDNN tries out its algorithms for each new shape of input.

    Yields
    ------
    torch.dtype
        The type that weights and input have, :func:`dtype_of`.
    """
    import torch

    cudnn = torch.backends.cudnn
    before = _tf32_flags(), cudnn.benchmark
    how = "tf32" if precision == "tf32" else "ieee"
    try:
        _set_tf32_flags((how == "tf32", how, how))
        cudnn.benchmark = benchmark
        yield dtype_of(precision)
    finally:
        _set_tf32_flags(before[0])
        cudnn.benchmark = before[1]


#: torch's older flag for cuDNN, then the newer ones for convolutions and for recurrent networks.
_Tf32Flags = tuple[bool, str, str]


def _tf32_flags() -> _Tf32Flags:
    import torch

    conv, recurrent = (
        str(torch._C._get_fp32_precision_getter("cuda", name)) for name in ("conv", "rnn")
    )
    try:
        with _no_word_of_newer_flags():
            return torch.backends.cudnn.allow_tf32, conv, recurrent
    except RuntimeError:  # somebody set the newer flags alone: then torch refuses to say
        return conv == "tf32", conv, recurrent


def _set_tf32_flags(flags: _Tf32Flags) -> None:
    """Set all three: reading the older flag raises where the newer ones contradict it."""
    import torch

    allowed, conv, recurrent = flags
    with _no_word_of_newer_flags():
        torch.backends.cudnn.allow_tf32 = allowed  # first, for it writes the newer ones, too
    # The flag for recurrent networks has had several places in torch.backends.
    for name, how in (("conv", conv), ("rnn", recurrent)):
        torch._C._set_fp32_precision_setter("cuda", name, how)


@contextmanager
def _no_word_of_newer_flags() -> Iterator[None]:
    """Some versions of torch warn whoever touches the older flag; it is kept in step here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32")
        yield


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

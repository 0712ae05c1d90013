"""Page-locking of memory that torch did not allocate, for uploads without a copy in between.

A GPU reads page-locked memory by itself, while the processor does something else. Any other
memory has to be copied into page-locked memory first.

torch is imported only where a GPU is in use already.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_PORTABLE = 1  #: ``cudaHostRegisterPortable``: page-locked for every GPU of this process

#: Address -> bytes of everything that is page-locked here.
_locked: dict[int, int] = {}


def page_lock(address: int, nbytes: int) -> bool:
    """Page-lock memory until :func:`page_unlock`; a refusal is logged.

    Parameters
    ----------
    address, nbytes : int
        Whole pages.

    Returns
    -------
    bool
        False: CUDA refused, and the memory is as it was.
    """
    try:
        code = _code(_cuda().cudaHostRegister(address, nbytes, _PORTABLE))
        reason = f"cudaHostRegister: error {code}"
    except (RuntimeError, AssertionError) as error:  # the latter: a torch without CUDA
        code, reason = -1, str(error).split("\n", 1)[0]
    if code:
        _log.warning("decoded frames are not page-locked (%s): each is copied once more", reason)
        _forget_error()
        return False
    _locked[address] = nbytes
    return True


def page_unlock(address: int) -> None:
    """Undo :func:`page_lock`; nothing may be reading the memory any more."""
    _locked.pop(address, None)
    with contextlib.suppress(RuntimeError):  # CUDA has come to grief: somebody else says so
        if _code(_cuda().cudaHostUnregister(address)):
            _forget_error()


def pinned_tensor_of(array: npt.NDArray[np.uint8]) -> Tensor | None:
    """The array as a tensor that can be uploaded as it is; None if it must be copied first.

    The memory must stay untouched until the upload is over: who uploads keeps the tensor.

    Parameters
    ----------
    array : ndarray of uint8
        C-contiguous and all within page-locked memory, or the answer is None.
    """
    if not array.flags.c_contiguous or not array.flags.writeable:
        return None
    start = array.__array_interface__["data"][0]
    for first, nbytes in list(_locked.items()):
        if first <= start and start + array.nbytes <= first + nbytes:
            import torch

            return torch.from_numpy(array)
    return None


def _cuda() -> Any:
    import torch

    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _code(answer: object) -> int:
    """The number of a ``cudaError``: torch's bindings make it an enumeration, or a number."""
    return int(getattr(answer, "value", answer))  # type: ignore[call-overload, no-any-return]


def _forget_error() -> None:
    """Take away the error that a refused call left behind.

    CUDA keeps it for this thread, and the next kernel that is launched is blamed for it.
    """
    import torch

    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.full((1,), 1.0, device="cuda")

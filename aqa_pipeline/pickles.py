"""Pickles from outside, read without running what is in them.

Official annotations and published weights are pickles, and a pickle is a program.
This reader only builds what is on a short list: plain Python values, which need no
import at all, and numpy arrays. Anything else is refused before it is called.
The project itself never writes a pickle.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from aqa_pipeline.errors import DataError

# The names under which pickles ask for numpy arrays: (module, name).
_ALLOWED = frozenset(
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"),  # how protocol 2 spells bytes, and nothing more: text to bytes
    ]
)
# numpy 2 renamed numpy.core and warns when the old name is imported; numpy 1 lacks the new.
_NUMPY_CORE = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something that is not on the list."""


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        old_module = module.replace("numpy._core", "numpy.core", 1)
        # A dotted name would be followed attribute by attribute; none is on the list.
        if (old_module, name) not in _ALLOWED:
            raise _RefusedError(f"it asks for {module}.{name}")
        return super().find_class(old_module.replace("numpy.core", _NUMPY_CORE, 1), name)


def read_pickle(path: Path, *, encoding: str = "latin1") -> Any:
    """Read a pickle made of plain Python values and numpy arrays.

    Parameters
    ----------
    path : Path
    encoding : str
        For strings that Python 2 wrote; latin1 keeps its bytes and its arrays.

    Raises
    ------
    DataError
        If the file is missing, is not a pickle, or asks for anything that is not on
        the list. In the last case nothing of it has been run.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return loads_pickle(data, source=str(path), encoding=encoding)


def loads_pickle(data: bytes, *, source: str, encoding: str = "latin1") -> Any:
    """As :func:`read_pickle`, of bytes already in memory; ``source`` is for the errors."""
    try:
        return _AllowListUnpickler(io.BytesIO(data), encoding=encoding).load()
    except _RefusedError as error:
        raise DataError(
            f"{source}: refused, {error}; only plain values and numpy arrays are read, "
            "and nothing of this file was run"
        ) from None
    except Exception as error:  # noqa: BLE001
        # A damaged pickle can raise nearly anything: EOFError, KeyError, IndexError,
        # AttributeError, UnicodeDecodeError, MemoryError ...
        raise DataError(
            f"{source}: not a pickle, or a damaged one ({type(error).__name__}: {error})"
        ) from None

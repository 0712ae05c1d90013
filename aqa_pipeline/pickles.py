"""Reading pickles that came from outside, without running what is in them.

Official annotations and published weights are pickles, and a pickle is a program.
This reader only builds what is on a short list: plain Python values, which need no
import at all, and numpy arrays. Anything else is refused before it is called.
The project itself never writes a pickle.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from aqa_pipeline.errors import DataError

# The names under which numpy's own pickles ask for arrays, old and new module paths.
_ALLOWED = frozenset(
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),  # how Python 2 and protocol 2 spell bytes
    ]
)


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


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
        with open(path, "rb") as file:
            return _AllowListUnpickler(file, encoding=encoding).load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError as error:
        if "it asks for" in str(error):
            raise DataError(
                f"{path}: refused, {error}; only plain values and numpy arrays are read, "
                "and nothing of this file was run"
            ) from None
        raise DataError(f"{path}: not a pickle, or a damaged one ({error})") from None
    except Exception as error:
        # A damaged pickle can raise nearly anything: EOFError, KeyError, IndexError,
        # AttributeError, UnicodeDecodeError, MemoryError ...
        raise DataError(
            f"{path}: not a pickle, or a damaged one ({type(error).__name__}: {error})"
        ) from None

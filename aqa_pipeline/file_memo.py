"""Arrays remembered about a file for as long as the file stays the same.

One small ``.npz`` a file, named after the hash of the file's absolute path. It counts
only while the file's size and modification time are those it was made from; one that
is absent, damaged or out of date is simply made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)


class FileMemo:
    """Memory about one file.

    Parameters
    ----------
    path : Path
        The file. Its size and time are taken now, before the caller reads it: had it
        changed meanwhile, what is written would not count later.
    folder : Path
        Where memos lie; created when something is written.

    Raises
    ------
    OSError
        If ``path`` cannot be examined.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        absolute = path.resolve()
        status = absolute.stat()
        self._path = path
        self._folder = folder
        self._signature = f"{status.st_size} {status.st_mtime_ns} {absolute}"
        self.memo_path = folder / f"{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:32]}.npz"

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays by name; empty when nothing valid is remembered."""
        try:
            with np.load(self.memo_path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            valid = str(arrays.pop("signature")) == self._signature
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return {}
        return arrays if valid else {}

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Remember these arrays instead of what was there.

        Written under a temporary name first, so that a reader never sees half of it. Of
        two processes writing at once one wins; the loser's arrays are made again.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    np.savez(
                        file, allow_pickle=False, signature=np.array(self._signature), **arrays
                    )
                os.replace(temporary, self.memo_path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            logger.warning(
                "cannot remember facts about %s in %s (%s); they will be read again next time",
                self._path,
                self._folder,
                error,
            )

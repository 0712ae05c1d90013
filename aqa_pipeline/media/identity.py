"""Identity and length of a video file, and memory for what was once found out about one.

All that resuming an extraction needs to know of a video: PyAV is never imported here.
:class:`FileMemo` keeps arrays and short facts for as long as a file stays the same, in two small
files, ``.npz`` and ``.json``, named after the hash of the file's absolute path: facts are read
twenty times quicker than arrays. They count only while the file's size and modification time are
those they were made from; what is absent, damaged or out of date is simply made again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.frame_folder import folder_identity, list_frames

logger = logging.getLogger(__name__)

#: Endings by which a video is known among other files; one that is named is opened whatever
#: its ending.
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
        *(".wmv", ".flv", ".3gp", ".ogv", ".gif"),
    }
)


@cache
def av_version() -> str:
    """Version of the installed PyAV, which brings its own FFmpeg; empty without one."""
    try:
        return importlib.metadata.version("av")
    except importlib.metadata.PackageNotFoundError:
        return ""


def source_identity(path: Path, *, index_folder: Path | None = None) -> str:
    """What a cached feature remembers of the video it came from.

    ``file:<size in bytes>:<sha256>`` of a file,
    ``folder:<count>:<sha256 over the sorted (name, size)>`` of a frame folder. The video
    is not opened as a video, so that a broken one has an identity too.

    Parameters
    ----------
    path : Path
    index_folder : Path or None
        Where facts about files are remembered; a file of unchanged size and time is not
        read again. Created if missing.

    Raises
    ------
    ClipError
        ``open``: nothing there, or not readable.
    """
    if path.is_dir():
        return folder_identity(path)
    try:
        size = path.stat().st_size
        memo = FileMemo(path, index_folder) if index_folder is not None else None
        known = memo.read_facts() if memo is not None else {}
        if "sha256" in known:
            return f"file:{size}:{known['sha256']}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ClipError(f"cannot read {path}: {error.strerror}", stage="open") from error
    if memo is not None:
        memo.add_facts(sha256=digest)
    return f"file:{size}:{digest}"


def known_length(path: Path, *, index_folder: Path) -> int | None:
    """Number of frames of a video, if that is known without opening it.

    Raises
    ------
    ClipError
        A frame folder cannot be read or has gaps.
    """
    if path.is_dir():
        return len(list_frames(path))
    try:
        known = FileMemo(path, index_folder).read_facts()
    except OSError:
        return None
    # Another PyAV may count the frames of an odd file otherwise.
    return int(known["num_frames"]) if known.get("counted_by") == av_version() else None


def remember_length(memo: FileMemo, num_frames: int) -> None:
    """Make a number of frames known to :func:`known_length`."""
    memo.add_facts(num_frames=num_frames, counted_by=av_version())


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
        absolute = os.path.realpath(path)  # twice as quick as Path.resolve
        status = os.stat(absolute)
        self._path = path
        self._folder = folder
        self._signature = f"{status.st_size} {status.st_mtime_ns} {absolute}"
        name = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:32]
        self.memo_path = folder / f"{name}.npz"
        self._facts_path = folder / f"{name}.json"

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays by name; empty when nothing valid is remembered."""
        try:
            with np.load(self.memo_path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            valid = str(arrays.pop("signature")) == self._signature
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return {}
        return arrays if valid else {}

    def read_facts(self) -> dict[str, str | int]:
        """Facts by name; empty when nothing valid is remembered."""
        try:
            facts = json.loads(self._facts_path.read_bytes())
            valid = facts.pop("signature") == self._signature
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return facts if valid else {}

    def add_facts(self, **facts: str | int) -> None:
        """Remember these facts too; as :meth:`write`."""
        facts = {**self.read_facts(), **facts, "signature": self._signature}
        self._replace(self._facts_path, lambda file: file.write(json.dumps(facts).encode("ascii")))

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Remember these arrays instead of what was there.

        Written under a temporary name first, so that a reader never sees half of it. Of
        two processes writing at once one wins; the loser's arrays are made again.
        """
        signature = np.array(self._signature)
        self._replace(
            self.memo_path,
            lambda file: np.savez(file, allow_pickle=False, signature=signature, **arrays),
        )

    def _replace(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    write(file)
                os.replace(temporary, path)
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

"""Which video this is, and how long, without opening it as a video.

All that resuming an extraction needs to know of a video: PyAV is never imported here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

from aqa_pipeline.errors import ClipError
from aqa_pipeline.file_memo import FileMemo
from aqa_pipeline.frame_folder import folder_identity, list_frames


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

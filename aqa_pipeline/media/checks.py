"""Checks of a video from anywhere before it is decoded: kind of file, kind of picture.

A video may come from a stranger. Reading it must not wait for ever (a pipe), open
other files or addresses (a playlist), or need memory that the picture does not deserve. What
these checks let through is decoded in a process with limits
(:mod:`aqa_pipeline.media.sandbox`).
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.frame_folder import list_frames
from aqa_pipeline.media.index import MAX_PICTURE_PIXELS, VideoIndex, read_index

#: Between the sides of a picture: a panorama is let through, a line is not.
_MAX_ASPECT = 10
_LEAST_PIXELS = 16  #: of either side; nothing can be seen in less

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

#: First bytes -> what they say. Their formats are not opened anyway (see
#: :data:`aqa_pipeline.media.index.VIDEO_FORMATS`); these are for a better sentence.
_PLAYLIST = "a playlist, which only names other files: give the video itself"
_PICTURE = "a picture: give a video, or a folder of numbered pictures"
_SIGNATURES = (
    (b"#EXTM3U", _PLAYLIST),
    (b"ffconcat", _PLAYLIST),
    (b"[playlist]", _PLAYLIST),
    (b"\x89PNG\r\n", _PICTURE),
    (b"\xff\xd8\xff", _PICTURE),
    (b"BM", _PICTURE),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML text"),
    (b"<!doctype", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x7fELF", "a program"),
)

#: Size in bytes and time of the last change; None: it cannot be read.
SourceState = tuple[int, int] | None


def checked_index(
    path: Path, *, index_folder: Path | None = None
) -> tuple[VideoIndex, SourceState]:
    """Index of a video that is one, see :func:`.read_index`, and its state for later.

    Raises
    ------
    ClipError
        ``open`` or ``index``: it is no video, or its pictures have a size that no clip has.
    """
    state = check_source(path)
    index = read_index(path, index_folder=index_folder)
    check_index(path, index)
    return index, state


def source_state(path: Path) -> SourceState:
    """Size and time of a file or frame folder, to see later whether it is still the same."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def check_source(path: Path) -> SourceState:
    """Refuse what is no file or frame folder, or is plainly something else than a video.

    Returns
    -------
    tuple or None
        To be handed to :func:`check_unchanged` afterwards.

    Raises
    ------
    ClipError
        ``open``.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if _ADDRESS.match(str(path)):
            raise ClipError(
                f"{path} is an address, not a file: download it first", stage="open"
            ) from None
        raise ClipError(f"{path}: no such video", stage="open") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ClipError(f"{path}: cannot be read ({reason})", stage="open") from None
    if stat.S_ISDIR(found.st_mode):
        list_frames(path)
        return found.st_size, found.st_mtime_ns
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            raise ClipError(f"{path} is {name}, not a video file", stage="open")
    if found.st_size == 0:
        raise ClipError(f"{path} has zero bytes: copy or download it again", stage="open")
    try:
        with path.open("rb") as file:
            meaning = identify_non_video(file.read(64))
    except OSError as error:
        raise ClipError(f"{path}: cannot be read ({error.strerror})", stage="open") from None
    if meaning is not None:
        raise ClipError(f"{path} is {meaning}", stage="open")
    return found.st_size, found.st_mtime_ns


def identify_non_video(header: bytes) -> str | None:
    """Describe a known non-video file from its first bytes, or return None."""
    start = header.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for sign, what in _SIGNATURES if start.startswith(sign.lower())), None)


def check_unchanged(path: Path, before: SourceState) -> None:
    """Refuse a file that was written to while it was read.

    Raises
    ------
    ClipError
        ``open``.
    """
    if not path.is_dir() and source_state(path) != before:
        raise ClipError(
            f"{path} changed while it was read: wait until it is written, then try again",
            stage="open",
        )


def check_index(path: Path, index: VideoIndex) -> None:
    """Refuse pictures of a size or shape that no clip has, before one is decoded.

    Those of a frame folder are looked at as they are decoded.

    Raises
    ------
    ClipError
        ``open``.
    """
    if not path.is_dir():
        check_picture(index.width, index.height, where=str(path))


def check_picture(width: int, height: int, *, where: str) -> None:
    """Refuse a picture of a size or shape that no clip has.

    Parameters
    ----------
    width, height : int
        In pixels.
    where : str
        The video, for the message.

    Raises
    ------
    ClipError
        ``open``.
    """
    if width < 1 or height < 1:
        raise ClipError(
            f"{where}: its pictures have no size, or one that is too large to be read", stage="open"
        )
    short, long = sorted((width, height))
    if short < _LEAST_PIXELS or long > _MAX_ASPECT * short or short * long > MAX_PICTURE_PIXELS:
        raise ClipError(
            f"{where}: its pictures are {width} x {height} pixels; taken are sides of "
            f"{_LEAST_PIXELS} pixels or more, one at most {_MAX_ASPECT} times the other, and at "
            f"most {MAX_PICTURE_PIXELS / 1e6:.0f} million pixels",
            stage="open",
        )

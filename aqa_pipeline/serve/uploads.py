"""Take in one upload: as much as is allowed, only if it begins like a video.

The body of the request is the file itself. What the sender calls it is shown and nothing
else: the file's name on the disk is made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aqa_pipeline.errors import AqaError
from aqa_pipeline.media.checks import identify_non_video

#: Bytes that are looked at before anything is kept: four packets of a transport stream.
HEAD_BYTES = 4 * 188
#: Without another byte for so long, an upload has been given up.
STALLED_SECONDS = 30.0

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PREFIXES = {
    b"\x1a\x45\xdf\xa3": "Matroska or WebM",
    b"OggS": "Ogg",
    b"FLV\x01": "Flash video",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "Windows Media",
    b"\x00\x00\x01\xba": "MPEG",
    b"\x00\x00\x01\xb3": "MPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}


class RefusedUpload(AqaError):
    """An upload that is not taken; ``status`` is what HTTP calls the reason."""

    exit_code = 3

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Upload:
    """One file that was taken in.

    Attributes
    ----------
    path : Path
        Named here, in a folder that nobody else can read.
    name : str
        What the sender calls it: to be shown, never to be opened.
    num_bytes : int
    """

    path: Path
    name: str
    num_bytes: int

    def delete(self) -> None:
        """Remove the file; done before is done."""
        self.path.unlink(missing_ok=True)


def container_of(head: bytes) -> str | None:
    """The kind of video file that begins with these bytes; None for anything else.

    The list is closed on purpose: the decoder itself also takes playlists and session
    descriptions, texts that name other files and addresses to open.
    """
    if head[4:8] in _BOXES:
        return "MP4 or QuickTime"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    if len(head) >= HEAD_BYTES and all(head[i] == 0x47 for i in range(0, HEAD_BYTES, 188)):
        return "MPEG transport stream"
    return next((kind for prefix, kind in _PREFIXES.items() if head.startswith(prefix)), None)


def shown_name(name: str, *, longest: int = 80) -> str:
    """A sender's name for a file on one line: nothing unprintable, not too long."""
    line = "".join(c if c.isprintable() else " " for c in name).strip() or "clip"
    return line if len(line) <= longest else f"{line[: longest // 2]}…{line[-(longest // 2) :]}"


async def receive(
    chunks: AsyncIterator[bytes],
    *,
    folder: Path,
    name: str,
    max_bytes: int,
    stalled_seconds: float = STALLED_SECONDS,
) -> Upload:
    """Write an upload to a new file of the folder; whatever goes wrong removes it.

    Parameters
    ----------
    chunks : async iterator of bytes
        The body as it comes in.
    folder : Path
    name : str
        Shown only.
    max_bytes : int
        Counted as they come, whatever the sender announced.
    stalled_seconds : float

    Raises
    ------
    RefusedUpload
        Too large (413), empty (400), no video (415), given up in the middle (408), no room
        for it here (507).
    """
    path = folder / f"{secrets.token_hex(16)}.upload"
    try:
        with open(path, "xb") as file:
            head, size, is_known = b"", 0, False
            async for chunk in _in_time(chunks, stalled_seconds):
                size += len(chunk)
                if size > max_bytes:
                    raise RefusedUpload(
                        f"larger than {max_bytes / 1e6:.0f} MB; cut the clip out, or let the "
                        "server take larger ones",
                        status=413,
                    )
                if not is_known:
                    head += chunk[: HEAD_BYTES - len(head)]
                    is_known = len(head) == HEAD_BYTES and _checked(head)
                await asyncio.to_thread(file.write, chunk)
        if not size:
            raise RefusedUpload("an empty file (0 bytes)", status=400)
        _checked(head)
    except BaseException as error:  # also when the sender's connection breaks
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RefusedUpload(
                f"it cannot be stored on this machine ({error.strerror})", status=507
            ) from None
        raise
    return Upload(path, shown_name(name), size)


def _checked(head: bytes) -> bool:
    if container_of(head) is None:
        instead = identify_non_video(head)
        if instead is not None:
            raise RefusedUpload(f"not a video but {instead}", status=415)
        raise RefusedUpload(
            "not a video file: its first bytes are those of no known kind (MP4, QuickTime, "
            "Matroska, WebM, AVI, MPEG, Ogg, Flash, Windows Media, GIF)",
            status=415,
        )
    return True


async def _in_time(chunks: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), seconds)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusedUpload(
                f"the upload stopped: nothing came for {seconds:g} s", status=408
            ) from None
        yield chunk

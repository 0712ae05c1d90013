"""Files that appear whole or not at all.

A file is written under a temporary name in the folder it belongs to, closed,
fsynced and renamed; then the folder is fsynced. Nothing that has its final name is
ever open for writing, so a reader needs no lock and a killed writer leaves nothing
behind but a temporary.

Conventions
-----------
writer
    ``<host>-<pid>-<8 hex digits>``: unlike any other writer's, on any machine that
    shares the folder. The host part never holds a hyphen.
temporary
    ``.tmp-<writer>--<final name>``
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from aqa_pipeline.errors import SetupError

_TEMPORARY = re.compile(r"\.tmp-(?P<host>[^-]+)-(?P<pid>\d+)-[0-9a-f]{8}--.+", re.DOTALL)

#: A temporary younger than this is never taken for abandoned: in a container the pid of
#: a living writer can look dead to another container with the same host name.
STALE_AFTER_SECONDS = 3600.0


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to; the file gets its name only when it is complete and on the disk.

    An existing file of that name is replaced in one step. Whatever ends the block
    early (an error, Ctrl-C) removes the temporary and leaves the folder as it was.

    Parameters
    ----------
    path : Path
        The final name; its folder is made if it is missing.

    Yields
    ------
    Path
        The temporary, not yet there; to be written and closed inside the block.

    Raises
    ------
    SetupError
        The disk is full, the folder is read-only or the device failed.
    """
    temporary = path.with_name(f".tmp-{writer_name()}--{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(error, path) from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """As :func:`atomic_path`, with the temporary open for writing and reading, binary."""
    # Buffered on purpose: a raw file may write less than it was given and say so only
    # in a return value, which the HDF5 layer above does not look at.
    with atomic_path(path) as temporary, open(temporary, "xb+") as file:
        yield file


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; see :func:`as_json`."""
    write_text_atomically(path, as_json(value) + "\n")


def as_json(value: Any) -> str:
    """JSON text of plain values, paths and numpy scalars.

    NaN and infinities become null, which every reader takes.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a numpy scalar
        return _plain(value.item())
    return value


class DeferredErrors:
    """A file for a library that cannot cope with a failed write, such as HDF5.

    HDF5 loses the reason ("file close failed") and keeps the file open inside it. So the
    first error (disk full, Ctrl-C) is kept, all later writes are thrown away, and whoever
    made the file raises the error once the library is done.

    Attributes
    ----------
    error : BaseException or None
        The first one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def _guarded(self, call: Callable[..., int], *arguments: Any) -> int | None:
        if self.error is None:
            try:
                return call(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                self.error = error
        return None

    def write(self, data: memoryview) -> int:
        written = self._guarded(self._file.write, data)
        return len(data) if written is None else written

    def truncate(self, size: int) -> int:
        self._guarded(self._file.truncate, size)
        return size

    def flush(self) -> None:
        pass  # atomic_file does, where an error is understood

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._guarded(self._file.seek, offset, whence) or 0

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)  # by having this method h5py knows a file

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut (not possible on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no fsync for folders; they order renames themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path) -> SetupError:
    """Say in a sentence why a file could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SetupError(
            f"{path.parent}: no space left to write {path.name}; nothing that was finished is "
            "lost: free some space and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SetupError(
            f"{path.parent}: cannot write here ({error.strerror}); make the folder writable or "
            "choose another one"
        )
    reason = error.strerror or str(error)
    return SetupError(f"{path}: could not be written ({reason}); nothing that was finished is lost")


def host_name() -> str:
    """Name of this machine, fit for a file name, without hyphens."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "unknown"


def writer_name() -> str:
    """A name no other writer has: ``<host>-<pid>-<8 hex digits>``."""
    return f"{host_name()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_temporary(path: Path) -> bool:
    """Whether a file name is that of an unfinished file."""
    return _TEMPORARY.fullmatch(path.name) is not None


def stale_temporaries(
    folder: Path,
    *,
    older_than_seconds: float = STALE_AFTER_SECONDS,
    now_seconds: float | None = None,
) -> list[Path]:
    """Temporaries that a killed writer left behind.

    Only those that are certainly abandoned: written on this machine, by a process that
    no longer runs, and untouched for a while. What another machine left behind is for
    that machine to find.

    Parameters
    ----------
    folder : Path
    older_than_seconds : float
        Age since the last write, in seconds.
    now_seconds : float, optional
        Time since the epoch, in seconds; default: now.
    """
    now = time.time() if now_seconds is None else now_seconds
    stale = []
    for path in sorted(folder.glob(".tmp-*")):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or match["host"] != host_name() or is_running(int(match["pid"])):
            continue
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime >= older_than_seconds:
                stale.append(path)
    return stale


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there; True where that cannot be asked."""
    if os.name == "nt":
        return True  # os.kill(pid, 0) is not a question there: it ends the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        # "<pid> (<name>) <state> ...": a dead one that its parent has not asked for is Z.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z"
    except OSError:
        return True  # no /proc

"""Advisory leases on clips, so that concurrent writers of one cache share the work.

Advisory, not locks: a cache is right without any of it. What leases save is extracting a
clip twice. A lease is a hard link to its writer's *heartbeat*, a small file whose
modification time goes on as long as the writer lives:

- making a link is one step, on NFS too: exactly one of two contenders gets the clip;
- a writer that died, or lost its machine, stops touching the file, and all its leases
  expire with it. Another writer then takes the clip over by making the lease of the
  next *generation*: again one step, so exactly one of two contenders wins.

A clip is leased before the cache is looked at for the last time, and given back once it
is durable in a segment or in the list of failures. A writer that gets a lease therefore
sees what the one before it did.

Where there are no hard links, every lease is granted, and work may be done twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Self

from aqa_pipeline.atomic import host_name, is_running, storage_error, writer_name

logger = logging.getLogger(__name__)

FOLDER = "claims"  #: a stored word
BEAT_SECONDS = 10.0
#: A network file system may show another machine's times a minute late.
LEASE_SECONDS = 180.0
_FORGOTTEN_SECONDS = 86_400.0


class Leases:
    """The leases of one writer; a context manager.

    Parameters
    ----------
    cache_folder : Path
        It must exist.
    lease_seconds : float
        A writer without a heartbeat for so long has lost its leases.

    Raises
    ------
    SetupError
        On entering: the folder cannot be written, so that segments could not be either.
    """

    def __init__(self, cache_folder: Path, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._folder = cache_folder / FOLDER
        self._lease = lease_seconds
        self._heartbeat = self._folder / f"{writer_name()}.alive"
        self._held: dict[str, Path] = {}
        self._stopped = threading.Event()
        self._beat = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._works = False

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(exist_ok=True)
            self._heartbeat.write_text(_who(), encoding="utf-8")
            self._forget_old()
        except OSError as error:
            # Better now than when the first segment is to be written.
            raise storage_error(error, self._heartbeat) from error
        self._works = True
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.release(list(self._held))
        with contextlib.suppress(OSError):
            self._heartbeat.unlink(missing_ok=True)

    def take(self, clip: str) -> bool:
        """Lease a clip; False if another living writer has it.

        Parameters
        ----------
        clip : str
            Everything that identifies it: id, source and window.
        """
        if not self._works or clip in self._held:
            return True
        stem = hashlib.sha256(clip.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        generation = 0
        while True:
            path = self._folder / f"{stem}.{generation}"
            try:
                os.link(self._heartbeat, path)
            except FileExistsError:
                if not self._is_free(path):
                    return False
                generation += 1
            except OSError as error:
                self._give_up(error)
                return True
            else:
                self._held[clip] = path
                return True

    def release(self, clips: Iterable[str]) -> None:
        """Give clips back; those that are not held are left out."""
        for clip in clips:
            path = self._held.pop(clip, None)
            if path is None:
                continue
            with contextlib.suppress(OSError):
                # The oldest generation first: while one is left, the clip is not free.
                for generation in range(int(path.suffix[1:]) + 1):
                    path.with_suffix(f".{generation}").unlink(missing_ok=True)

    def _is_free(self, path: Path) -> bool:
        """Whether the writer of a lease is gone, or the lease is by now."""
        try:
            who = path.read_text(encoding="utf-8")
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return False  # given back a moment ago: free at the next try, from generation 0
        except (OSError, ValueError):
            return False
        machine, _, pid = who.rpartition(" ")
        if machine == _machine() and pid.isdecimal() and not is_running(int(pid)):
            return True
        return self._now() - touched > self._lease

    def _now(self) -> float:
        """The file system's time: clocks of machines differ, its own does not."""
        try:
            os.utime(self._heartbeat)
            return self._heartbeat.stat().st_mtime
        except OSError:
            return 0.0

    def _beat_on(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            self._now()

    def _forget_old(self) -> None:
        """Remove what writers left that were killed long ago."""
        now = self._now()
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _FORGOTTEN_SECONDS:
                    path.unlink()

    def _give_up(self, error: OSError) -> None:
        self._works = False
        logger.info(
            "%s: no leases here (%s); a second process on this cache may do work twice",
            self._folder,
            error.strerror or error,
        )


def _who() -> str:
    return f"{_machine()} {os.getpid()}"


@cache
def _machine() -> str:
    """This machine since it was started, and this container: where a pid means something."""
    parts = [host_name()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "-".join(parts)

"""The other side of :class:`aqa_pipeline.limited_process.LimitedProcess`.

No torch is imported here, so that the process starts in about half a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from aqa_pipeline.errors import AqaError, ClipError


class Answer(IntEnum):
    """What a message from the process is."""

    READY, ITEM, END, ERROR = range(4)


def main(handle: int, memory_bytes: int) -> None:
    """Work through requests until the other end is closed.

    Parameters
    ----------
    handle : int
        File descriptor of the connection.
    memory_bytes : int
        Address space that may be taken from here on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to act on
    Thread(target=_end_with_parent, name="parent", daemon=True).start()
    connection = Connection(handle)
    import aqa_pipeline.clip_frames  # noqa: F401 - before the limit: the bare process has it

    _limit_memory(memory_bytes)
    connection.send((Answer.READY, None))
    while True:
        try:
            folder, work, argument, is_stream = connection.recv()
        except EOFError:
            return
        try:
            os.chdir(folder)
            for item in work(argument) if is_stream else _once(work, argument):
                connection.send((Answer.ITEM, item))
            connection.send((Answer.END, None))
        except BrokenPipeError:
            return
        except AqaError as error:
            connection.send((Answer.ERROR, error))
        except MemoryError:
            sentence = f"reading it takes more than {memory_bytes / 2**30:g} GiB of memory"
            connection.send((Answer.ERROR, ClipError(sentence, stage="worker")))
        except Exception as error:  # noqa: BLE001 - a decoder may fail in any way
            sentence = f"reading it failed ({type(error).__name__}: {error})"
            connection.send((Answer.ERROR, ClipError(sentence, stage="worker")))


def _once(work: Callable[[Any], Any], argument: Any) -> Iterator[Any]:
    yield work(argument)


def _end_with_parent() -> None:
    """End as soon as the parent is gone, even in the middle of a hung decode."""
    sys.stdin.buffer.read()
    os._exit(1)


def _limit_memory(extra_bytes: int) -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):  # no Linux: macOS has no such limit that it enforces
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, used + extra_bytes))

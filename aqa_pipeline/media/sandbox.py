"""Work on files that are not trusted: in another process, under limits of time and memory.

A decoder can hang, crash, or be talked into an enormous picture. The process that does the work
may take a fixed amount of memory on top of what it needs to run at all, and a fixed time for
each answer; when it breaks a limit or dies, it is replaced, and the caller gets one sentence.

It is a fresh interpreter (:mod:`aqa_pipeline.media.sandbox`) that never runs the caller's main
module, so that a notebook or a script of three lines can use it as it is.

The other side of :class:`aqa_pipeline.media.sandbox.LimitedProcess`.

No torch is imported here, so that the process starts in about half a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Thread
from types import TracebackType
from typing import Any, Self

from aqa_pipeline.config import ScoreConfig
from aqa_pipeline.errors import AqaError, ClipError

_START_SECONDS = 60.0  #: of a fresh interpreter, on a machine that has better things to do


class LimitedProcess:
    """One process that works through calls; a context manager.

    Calls come from one thread at a time; a second one waits.

    Parameters
    ----------
    memory_bytes : int
        What the work may take beyond the bare process. Linux enforces it, macOS does not.
    seconds : float
        For one answer, or from one item of :meth:`stream` to the next.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = ScoreConfig.decode_memory_bytes,
        seconds: float = ScoreConfig.decode_seconds,
    ) -> None:
        self._memory_bytes, self._seconds = memory_bytes, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_ready = False

    def start(self) -> None:
        """Start the process now, so that the first call need not wait for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._connection, theirs = Pipe()
        # The caller's way to find modules, and nothing of its main module.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from aqa_pipeline.media.sandbox import main; "
            f"main({theirs.fileno()}, {self._memory_bytes})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,  # it ends when this does, even in a hung decode
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what a decoder says there is nobody's output
            )
        self._is_ready = False

    def call(self, work: Callable[[Any], Any], argument: Any) -> Any:
        """``work(argument)``, done in the process; ``work`` is a function of a module.

        Raises
        ------
        AqaError
            What ``work`` raised; ClipError ``timeout`` or ``worker`` where it broke a limit.
        """
        with self._lock:
            (answer,) = self._exchange(work, argument, False)
        return answer

    def stream(self, work: Callable[[Any], Iterator[Any]], argument: Any) -> Iterator[Any]:
        """Each item of the iterator ``work(argument)``, made in the process one at a time.

        Errors as :meth:`call`.
        """
        with self._lock:
            yield from self._exchange(work, argument, True)

    def _exchange(
        self, work: Callable[[Any], Any], argument: Any, is_stream: bool
    ) -> Iterator[Any]:
        self.start()
        finished = False
        try:
            if not self._is_ready:
                self._receive(_START_SECONDS)
                self._is_ready = True
            assert self._connection is not None
            # Paths are meant from where the caller is by now.
            self._connection.send((os.getcwd(), work, argument, is_stream))
            while True:
                kind, value = self._receive(self._seconds)
                if kind == Answer.ITEM:
                    yield value
                    continue
                finished = True
                if kind == Answer.ERROR:
                    raise value
                return
        except (EOFError, OSError):
            raise ClipError(f"the reading process died ({self._death()})", stage="worker") from None
        finally:
            if not finished:  # a limit was broken, or the caller wants no more items
                self.close()

    def _receive(self, seconds: float) -> tuple[Answer, Any]:
        assert self._connection is not None
        if not self._connection.poll(seconds):
            raise ClipError(f"reading took longer than {seconds:g} s", stage="timeout")
        answer: tuple[Answer, Any] = self._connection.recv()
        return answer

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "no exit code"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
    import aqa_pipeline.media.clip  # noqa: F401 - before the limit: the bare process has it

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

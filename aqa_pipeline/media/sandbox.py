"""Processes for work on files that are not trusted, under limits of time and memory.

A decoder can hang, crash, or be talked into an enormous picture. The process that does the work
may take a fixed amount of memory on top of what it needs to run at all, and a fixed time for
each answer; when it breaks a limit or dies, it is ended, and the caller gets one sentence.

It is a fresh interpreter that never runs the caller's main module, so that a notebook or a
script of three lines can use it as it is, and a process group of its own: Ctrl-C is the
caller's to act on. One is used alone (:meth:`LimitedProcess.call`), or several in turn
(:mod:`aqa_pipeline.media.decode_pool`).

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
from threading import Thread, Timer
from typing import Any, Self

from aqa_pipeline.config import ScoreConfig
from aqa_pipeline.errors import AqaError, ClipError

_START_SECONDS = 60.0  #: of a fresh interpreter, on a machine that has better things to do
_MESSAGE_SECONDS = 30.0  #: from the first byte of a message to its last

#: Added to the niceness of a process that works beside a network: where cores are few, the
#: network keeps them.
_NICER = 5


class Answer(IntEnum):
    """Kind of a message from the process."""

    READY = 0  #: it can begin
    ITEM = 1  #: of a stream
    DONE = 2  #: the result of a call, or the end of a stream
    ERROR = 3  #: what the work raised


class LimitedProcess:
    """One process that works through calls; a context manager.

    Calls come from one thread at a time; a second one waits.

    Parameters
    ----------
    memory_bytes : int
        What the work may take beyond the bare process. Linux enforces it, macOS does not.
    seconds : float
        For one answer, or from one item of :meth:`stream` to the next.
    frames_fd : int or None
        File of :class:`.FrameSlots` that the work may write frames into.
    is_helper : bool
        It makes way for the caller's work, and what its libraries say is shown.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = ScoreConfig.decode_memory_bytes,
        seconds: float = ScoreConfig.decode_seconds,
        frames_fd: int | None = None,
        is_helper: bool = False,
    ) -> None:
        self._memory_bytes, self._seconds = memory_bytes, seconds
        self._frames_fd, self._is_helper = frames_fd, is_helper
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_ready = False

    @property
    def connection(self) -> Connection:
        """What :func:`multiprocessing.connection.wait` takes, to wait for an answer."""
        assert self._connection is not None
        return self._connection

    @property
    def limit_seconds(self) -> float:
        """How long the next answer may take."""
        return self._seconds if self._is_ready else _START_SECONDS

    def start(self) -> None:
        """Start the process now, so that the first call need not wait for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._connection, theirs = Pipe()
        frames_fd = -1 if self._frames_fd is None else self._frames_fd
        nicer = _NICER if self._is_helper and hasattr(os, "nice") else 0
        # The caller's way to find modules, and nothing of its main module.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from aqa_pipeline.media.sandbox import main; "
            f"main({theirs.fileno()}, {self._memory_bytes}, {frames_fd}, {nicer})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[fd for fd in (theirs.fileno(), frames_fd) if fd >= 0],
                stdin=subprocess.PIPE,  # it ends when this does, even in a hung decode
                stdout=subprocess.DEVNULL,
                # What a decoder says of a stranger's video is nobody's output.
                stderr=None if self._is_helper else subprocess.DEVNULL,
                process_group=0,
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
            try:
                self.start()
                self.send(work, argument)
                kind, value = self._answer()
            except BaseException:  # Ctrl-C, too: its answer must not be taken for the next one's
                self.close()
                raise
        if kind == Answer.ERROR:
            raise value
        return value

    def stream(self, work: Callable[[Any], Iterator[Any]], argument: Any) -> Iterator[Any]:
        """Each item of the iterator ``work(argument)``, made in the process one at a time.

        Errors as :meth:`call`.
        """
        with self._lock:
            self.start()
            self.send(work, argument, is_stream=True)
            kind = Answer.ITEM
            try:
                while True:
                    kind, value = self._answer()
                    if kind == Answer.ERROR:
                        raise value
                    if kind == Answer.DONE:
                        return
                    yield value
            finally:
                if kind == Answer.ITEM:  # the caller wants no more
                    self.close()

    def send(self, work: Callable[[Any], Any], argument: Any, *, is_stream: bool = False) -> None:
        """Let the process do something after what it has in hand; started if it never was.

        Raises
        ------
        ClipError
            ``worker``: it has died.
        """
        if self._process is None:
            self.start()
        try:
            # Paths are meant from where the caller is by now.
            self.connection.send((os.getcwd(), work, argument, is_stream))
        except OSError:
            raise self._broken(self._death(), stage="worker") from None

    def receive(self, seconds: float) -> tuple[Answer, Any]:
        """The next message; a process that broke a limit or died is ended.

        Raises
        ------
        ClipError
            ``timeout`` or ``worker``.
        """
        try:
            if not self.connection.poll(seconds):
                sentence = f"reading took longer than {self.limit_seconds:g} s"
                raise self._broken(sentence, stage="timeout")
            assert self._process is not None
            # A process that stops in the middle of a message would be waited for for ever.
            watchdog = Timer(_MESSAGE_SECONDS, self._process.kill)
            watchdog.daemon = True
            watchdog.start()
            try:
                answer: tuple[Answer, Any] = self.connection.recv()
            finally:
                watchdog.cancel()
        except (EOFError, OSError):
            raise self._broken(self._death(), stage="worker") from None
        if answer[0] == Answer.READY:
            self._is_ready = True
        return answer

    def _answer(self) -> tuple[Answer, Any]:
        """The next message that is an answer."""
        if not self._is_ready:
            self.receive(self.limit_seconds)
        return self.receive(self.limit_seconds)

    def _broken(self, sentence: str, *, stage: str) -> ClipError:
        self.close()
        return ClipError(sentence, stage=stage)

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "the reading process died (no exit code)"
        if code >= 0:
            return f"the reading process died (exit code {code})"
        hint = ", out of memory?" if -code == signal.SIGKILL else ""
        return f"the reading process died (killed by {signal.Signals(-code).name}{hint})"

    def kill(self) -> subprocess.Popen[bytes] | None:
        """Kill the process, whatever it is doing; returns it, to be waited for."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            assert process.stdin is not None
            process.stdin.close()
        return process

    def close(self) -> None:
        """End the process."""
        process = self.kill()
        if process is not None:
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(handle: int, memory_bytes: int, frames_fd: int, nicer: int) -> None:
    """Work through calls until the parent is gone.

    Parameters
    ----------
    handle : int
        File descriptor of the connection.
    memory_bytes : int
        That may be taken from here on.
    frames_fd : int
        See :class:`LimitedProcess`; -1: none.
    nicer : int
        Added to the niceness.
    """
    Thread(target=_end_with_parent, name="parent", daemon=True).start()
    if nicer:
        os.nice(nicer)
    connection = Connection(handle)
    import aqa_pipeline.media.clip  # noqa: F401 - before the limit: the bare process has it
    from aqa_pipeline.media.frame_slots import open_in_decoder

    open_in_decoder(frames_fd if frames_fd >= 0 else None)
    _limit_memory(memory_bytes)
    connection.send((Answer.READY, None))
    while True:
        try:
            folder, work, argument, is_stream = connection.recv()
        except EOFError:
            return
        try:
            os.chdir(folder)
            result = work(argument)
            if is_stream:
                for item in result:
                    connection.send((Answer.ITEM, item))
                result = None
            connection.send((Answer.DONE, result))
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


def _end_with_parent() -> None:
    """End as soon as the parent is gone, even in the middle of a hung decode."""
    sys.stdin.buffer.read()
    os._exit(1)


def _limit_memory(extra_bytes: int) -> None:
    """Limit the process's own memory; what it shares with the caller does not count."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")  # data and stack
    except (ImportError, OSError):  # no Linux: macOS has no such limit that it enforces
        return
    resource.setrlimit(resource.RLIMIT_DATA, (used + extra_bytes, used + extra_bytes))

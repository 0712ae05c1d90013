"""Ctrl-C and SIGTERM between two steps instead of in the middle of one.

Python turns both into exceptions that may come at any point, also halfway through an
update of the weights. Inside :func:`held_signals` the first of them is only noted; whoever
works asks at a safe point, saves and leaves the block, which then does what the signal
would have done. A second one is not held: it acts at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)


class HeldSignals:
    """Whether a signal has come.

    Attributes
    ----------
    number : int or None
        The signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        for number in _HELD:
            self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.release()


@contextmanager
def held_signals() -> Iterator[HeldSignals]:
    """Hold SIGINT and SIGTERM; at the end of the block one that came takes effect.

    Outside the main thread, where Python handles no signals, nothing is held.
    """
    held = HeldSignals()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    held.hold()
    try:
        yield held
    finally:
        held.release()
    if held.number is not None:
        signal.raise_signal(held.number)

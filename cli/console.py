"""Output of the commands: results on stdout, everything else on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click


class ProgressCallback(Protocol):
    """Called as ``progress(done, total)``, and with what else there is to say of a job."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line of progress or advice on stderr."""
    click.echo(message, err=True)


def say_error(message: str) -> None:
    """The one line an error is worth."""
    click.echo(f"Error: {message}", err=True)


def say_warning(message: str) -> None:
    """One line about a result that may not mean what it seems to."""
    click.echo(f"Warning: {message}", err=True)


def print_json(value: Any) -> None:
    """A result for programs: JSON alone on stdout; NaN as null."""
    from aqa_pipeline.atomic import as_json

    click.echo(as_json(value))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A result for people: aligned columns on stdout, plain text in a pipe."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    if title:
        click.echo(title)
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


class _StderrHandler(logging.Handler):
    """Library warnings as plain sentences, above a progress bar if one is showing."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        say_above_progress(prefix + record.getMessage())


_live: list[Any] = []  # the rich progress display now on screen, if any


def say_above_progress(message: str) -> None:
    """One line on stderr that does not tear a progress bar."""
    if _live:
        _live[-1].console.print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        say(message)


def log_to_stderr(verbose: int) -> None:
    """Send the library's log to stderr: warnings, with -v infos, with -vv everything."""
    logger = logging.getLogger("aqa_pipeline")
    logger.handlers = [_StderrHandler()]
    logger.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
    logger.propagate = False


@contextmanager
def progress(label: str, *, unit: str) -> Iterator[ProgressCallback]:
    """A progress bar with rate and time left; plain lines where stderr is no terminal.

    Yields what the library calls as ``progress(done, total)``; ``note`` is a few words for the
    end of the line.
    """
    if not sys.stderr.isatty():
        yield _PlainProgress(label, unit)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=_stderr_console(),
    )
    with bar:
        task = bar.add_task(label, total=None, rate="", note="")
        started = time.monotonic()
        first_done: list[int] = []

        def show(done: int, total: int, note: str = "") -> None:
            first_done.append(done) if not first_done else None
            seconds = time.monotonic() - started
            rate = (done - first_done[0]) / seconds if seconds > 0 else 0.0
            bar.update(task, completed=done, total=total, rate=f"{rate:.2f} {unit}/s", note=note)

        _live.append(bar)
        try:
            yield show
        finally:
            _live.pop()


class _PlainProgress:
    """A line now and then, for logs: at the start, every 10 seconds, at the end."""

    _EVERY_SECONDS = 10.0

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._started = self._shown = time.monotonic()
        self._first: int | None = None
        self._last = -1  # what was done at the line before

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        first = self._first is None
        if first:
            self._first = done
        is_end = done >= total and done != self._last
        if not first and not is_end and now - self._shown < self._EVERY_SECONDS:
            return
        self._shown, self._last = now, done
        seconds = now - self._started
        rate = (done - (self._first or 0)) / seconds if seconds > 0.5 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        pace = f", {rate:.2f} {self._unit}/s" if rate > 0 else ""
        more = f", {note}" if note else ""
        say(f"{self._label}: {done}/{total} {self._unit}{pace}{left}{more}")


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash where it is not defined."""
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}"


__all__ = [
    "ProgressCallback",
    "log_to_stderr",
    "number",
    "print_json",
    "print_table",
    "progress",
    "say",
    "say_above_progress",
    "say_error",
    "say_warning",
]

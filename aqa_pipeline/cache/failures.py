"""The list of clips that could not be extracted, and why.

One ``failures-<writer>.jsonl`` a writer, so that no two processes ever append to one
file; merged when read. A line is one JSON object, in ASCII, ended by a newline: a line
cut short by a crash is recognised and left out.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aqa_pipeline.atomic import storage_error, writer_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """One clip that failed.

    Attributes
    ----------
    clip_id : str
    source_id : str
        Identity of the video it was to be cut from; empty when it could not be opened.
    frame_window : (int, int)
        Half-open: the first position of the window and the one after its last.
    stage : str
        As :class:`aqa_pipeline.errors.ClipError`.
    error : str
        The sentence for the user.
    detail : str
        What the decoder itself said, empty when it said nothing.
    attempts : int
        How often the clip has been tried.
    when_utc : str
        ISO 8601 with microseconds; these sort as text. Filled in when it is left empty.
    """

    clip_id: str
    source_id: str
    frame_window: tuple[int, int]
    stage: str
    error: str
    detail: str = ""
    attempts: int = 1
    when_utc: str = ""


class FailureLog:
    """One writer's list; the file is made with the first failure.

    Parameters
    ----------
    folder : Path
        The cache folder; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"failures-{writer_name()}.jsonl"
        self._torn = False

    def append(self, failure: Failure) -> None:
        """Write one failure and make it last.

        Raises
        ------
        SetupError
            The disk is full or the folder is read-only.
        """
        fields = asdict(failure)
        fields["when_utc"] = failure.when_utc or datetime.now(UTC).isoformat(
            timespec="microseconds"
        )
        line = json.dumps(fields, allow_nan=False).encode("ascii") + b"\n"
        # After half a line (the disk was full) the next one must not continue it.
        start, self._torn = b"\n" if self._torn else b"", True
        try:
            with open(self.path, "ab") as file:
                file.write(start + line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, self.path) from error
        self._torn = False


def read_failures(folder: Path, *, succeeded: Collection[str] = ()) -> dict[str, Failure]:
    """Failures of all writers: for every clip the latest.

    Parameters
    ----------
    folder : Path
        A cache folder.
    succeeded : collection of str
        Clips that are in the cache by now; their failures are history and left out.

    Returns
    -------
    dict of str to Failure
        By clip id, oldest failure first.
    """
    found: list[Failure] = []
    for path in sorted(folder.glob("failures-*.jsonl")):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            continue
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                found.append(_from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                if number < len(lines):  # the last line may simply be unfinished
                    logger.warning("%s, line %d: not a failure record; left out", path, number)
    done = frozenset(succeeded)
    latest: dict[str, Failure] = {}
    for failure in sorted(found, key=lambda failure: failure.when_utc):
        if failure.clip_id not in done:
            latest.pop(failure.clip_id, None)
            latest[failure.clip_id] = failure
    return latest


def _from_json(fields: dict[str, Any]) -> Failure:
    first, end = fields["frame_window"]
    return Failure(
        clip_id=str(fields["clip_id"]),
        source_id=str(fields["source_id"]),
        frame_window=(int(first), int(end)),
        stage=str(fields["stage"]),
        error=str(fields["error"]),
        detail=str(fields["detail"]),
        attempts=int(fields["attempts"]),
        when_utc=str(fields["when_utc"]),
    )

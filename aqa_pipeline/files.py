"""Text and JSON files, written so that a reader never meets half of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aqa_pipeline.atomic import atomic_path


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON text of plain values, paths and numpy scalars.

    NaN and infinities become null, which every reader takes.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def write_json_atomically(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; see :func:`as_json`."""
    write_text_atomically(path, as_json(value) + "\n")


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

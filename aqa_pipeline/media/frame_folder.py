"""A folder of numbered pictures as a video: ``00000001.jpg``, ``img_00001.jpg``, ...

Conventions
-----------
position
    0-based place in numeric order: the lowest number is position 0, whatever it is.
    A gap is an error, because every later frame would silently move.

Names and sizes only: no picture is opened here.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from pathlib import Path

from aqa_pipeline.errors import ClipError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


def list_frames(folder: Path) -> list[Path]:
    """Pictures of a frame folder; position ``i`` is entry ``i``.

    The number of a picture is the last run of digits in its name without the suffix.
    Other files and pictures without a number (``cover.jpg``) are left out.

    Returns
    -------
    list of Path

    Raises
    ------
    ClipError
        ``open``: the folder cannot be read or holds no numbered picture. ``index``: a
        number is missing, or two pictures have the same one.
    """
    by_number: dict[int, str] = {}
    for name in _image_names(folder):
        match = _LAST_NUMBER.search(name.rpartition(".")[0])
        if match is None:
            continue
        number = int(match[1])
        if number in by_number:
            raise ClipError(
                f"frame folder {folder}: {by_number[number]} and {name} both have number {number}; "
                "one picture for each number is expected",
                stage="index",
            )
        by_number[number] = name
    if not by_number:
        raise ClipError(
            f"frame folder {folder} holds no numbered picture (such as 00000001.jpg or .png)",
            stage="open",
        )
    numbers = sorted(by_number)
    for before, after in itertools.pairwise(numbers):
        if after != before + 1:
            missing = f"{before + 1}" if after == before + 2 else f"{before + 1} to {after - 1}"
            raise ClipError(
                f"frame folder {folder}: number {missing} missing between {by_number[before]} "
                f"and {by_number[after]}; extract the frames again, since every later frame "
                "would be taken for an earlier one",
                stage="index",
            )
    return [folder / by_number[number] for number in numbers]


def folder_identity(folder: Path) -> str:
    """``folder:<count>:<sha256 over the sorted (name, size) of its pictures>``.

    Raises
    ------
    ClipError
        If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            sizes = {e.name: e.stat().st_size for e in entries if _is_image(e.name)}
    except OSError as error:
        raise _unreadable(folder, error) from error
    lines = "".join(f"{name}\0{sizes[name]}\n" for name in sorted(sizes))
    digest = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return f"folder:{len(sizes)}:{digest}"


def _image_names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if _is_image(name)]
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> ClipError:
    return ClipError(f"cannot read frame folder {folder}: {error.strerror}", stage="open")


def _is_image(name: str) -> bool:
    # "._00000001.jpg" is what macOS leaves beside a picture on a foreign disk.
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")

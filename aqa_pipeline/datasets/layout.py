"""Finding the videos of a data set below the folder a user downloaded them to.

Conventions
-----------
place
    Where a video may lie: a path below the folder, ``/`` between its parts and without
    a suffix, such as ``diving-out/001``. It fits a folder of numbered pictures of that
    name, else a video file of that name with any suffix of :data:`VIDEO_SUFFIXES`.

Folders are listed once each. The numbering of every frame folder is checked, since a
gap would silently move all later frames.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from aqa_pipeline.errors import ClipError, DataError
from aqa_pipeline.media.frame_folder import IMAGE_SUFFIXES, list_frames

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".avi",
        ".mkv",
        ".mov",
        ".webm",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".wmv",
        ".flv",
        ".gif",
    }
)


class VideoFinder:
    """Looks up places below one folder.

    Parameters
    ----------
    root : Path

    Raises
    ------
    DataError
        If there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of videos")
        self.root = root
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._found: dict[str, Path | None] = {}

    def find(self, places: Sequence[str]) -> Path | None:
        """The video at the first place that has one, or None.

        Raises
        ------
        DataError
            If two files fit one place, or a frame folder lacks a number.
        """
        for place in places:
            if place not in self._found:
                self._found[place] = self._look(place)
            if self._found[place] is not None:
                return self._found[place]
        return None

    def _look(self, place: str) -> Path | None:
        path = self.root / place
        if path.is_file():  # named with its suffix
            return path
        if path.is_dir() and _holds_pictures(path):
            try:
                list_frames(path)
            except ClipError as error:
                raise DataError(str(error)) from None
            return path
        files = self._entries(path.parent).get(path.name, [])
        if len(files) > 1:
            raise DataError(
                f"{path.parent} holds {' and '.join(files)}: one video of the name {path.name} is "
                "expected; move the others away"
            )
        return path.parent / files[0] if files else None

    def _entries(self, folder: Path) -> dict[str, list[str]]:
        """Video files of a folder by their name without suffix."""
        if folder not in self._listed:
            found: dict[str, list[str]] = {}
            try:
                names = sorted(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except OSError as error:
                raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in VIDEO_SUFFIXES:
                    found.setdefault(stem, []).append(name)
            self._listed[folder] = found
        return self._listed[folder]


def _holds_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(
                os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def locate_videos(
    root: Path | None, wanted: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[str]]:
    """Find the video of each clip.

    Parameters
    ----------
    root : Path or None
        None: nothing is looked up, and each clip gets its first place as it stands.
    wanted : mapping of str to sequence of str
        Clip id -> places, the official one first.

    Returns
    -------
    videos : list of str
        One a clip: an absolute path, that of the first place where none was found; the
        place itself if nothing was looked up.
    missing : list of str
        Clips whose video was not found. They stay in the manifest: the data may be
        completed later, and `aqa manifest check` tells.

    Raises
    ------
    DataError
        If not one video is there, or as in :meth:`VideoFinder.find`.
    """
    if root is None:
        return [places[0] for places in wanted.values()], []
    finder = VideoFinder(root.absolute())
    videos: list[str] = []
    missing: list[str] = []
    for clip_id, places in wanted.items():
        found = finder.find(places)
        if found is None:
            missing.append(clip_id)
        videos.append(str(found or finder.root / places[0]))
    if len(missing) == len(wanted):
        places = wanted[missing[0]]
        raise DataError(
            f"{root}: none of the {len(wanted)} clips has its video here; that of {missing[0]} was "
            f"looked for at {', '.join(places)} (a folder of numbered pictures, or a file with a "
            "suffix such as .mp4 or .avi); docs/datasets.md shows the layout"
        )
    if missing:
        logger.warning(
            "%s: %d of %d clips have no video here, %s first; they stay in the manifest",
            root,
            len(missing),
            len(wanted),
            missing[0],
        )
    return videos, missing

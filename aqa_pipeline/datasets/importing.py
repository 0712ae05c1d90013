"""Import of a published data set: its videos found, its rows and protocol written as a manifest.

Conventions
-----------
place
    Where a video may lie: a path below the user's folder, ``/`` between its parts and without
    a suffix, such as ``diving-out/001``. It fits a folder of numbered pictures of that
    name, else a video file of that name with any suffix of :data:`.VIDEO_SUFFIXES`.

Folders are listed once each. The numbering of every frame folder is checked, since a
gap would silently move all later frames.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.manifest import parse_clips, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.errors import ClipError, DataError, UsageError
from aqa_pipeline.media.frame_folder import IMAGE_SUFFIXES, list_frames
from aqa_pipeline.media.identity import VIDEO_SUFFIXES
from aqa_pipeline.tables import Cells

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, eq=False)
class ImportedManifest:
    """An imported data set.

    Attributes
    ----------
    clips : DataFrame
        As in :class:`aqa_pipeline.datasets.manifest.Manifest`; ``video`` is absolute, or a place
        of the official layout where no videos were looked up.
    protocol : Protocol
    missing : tuple of str
        Clips whose video was not found.
    """

    clips: pd.DataFrame
    protocol: Protocol
    missing: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        source: Path,
        rows: Sequence[Mapping[str, Any]],
        *,
        protocol: Protocol,
        videos: Sequence[str],
        missing: Sequence[str],
    ) -> ImportedManifest:
        """Check rows as those of a manifest are checked.

        Parameters
        ----------
        source : Path
            The annotation, for messages.
        rows : sequence of mapping
            Columns of each clip, without ``video``; those a row lacks are empty.
        protocol : Protocol
        videos, missing : sequence of str
            From :func:`aqa_pipeline.datasets.importing.locate_videos`.

        Raises
        ------
        DataError
            Naming all rows that cannot be used.
        """
        header = ["video", *dict.fromkeys(name for row in rows for name in row)]
        cells = [
            [video, *(str(row.get(name, "")) for name in header[1:])]
            for video, row in zip(videos, rows, strict=True)
        ]
        places = [f"clip {row['clip_id']}" for row in rows]
        clips = parse_clips(Cells(source, header, cells, places))
        return cls(clips=clips, protocol=protocol, missing=tuple(missing))

    @property
    def looked_up(self) -> bool:
        """Whether the videos were looked for at all."""
        return all(os.path.isabs(video) for video in self.clips["video"])

    def write(self, path: Path, *, replace: bool = False) -> None:
        """Write ``NAME.csv`` and, beside it, ``NAME.toml``.

        Parameters
        ----------
        path : Path
            The CSV file.
        replace : bool
            Overwrite both if they exist; the TOML may hold a user's changes.

        Raises
        ------
        UsageError
            If a file exists that must not be replaced.
        SetupError
            If a file cannot be written.
        """
        toml = path.with_suffix(".toml")
        for existing in (path, toml):
            if existing.exists() and not replace:
                raise UsageError(
                    f"{existing} exists already; --force replaces it, --out writes elsewhere"
                )
        clips = self.clips.assign(video=[video_cell(v, path) for v in self.clips["video"]])
        # The protocol first: a manifest without it would be read with the defaults.
        write_protocol(toml, self.protocol)
        write_manifest(path, clips)


def video_cell(video: str, manifest: Path) -> str:
    """How a manifest names a video.

    Relative to the manifest's folder if the video lies in the project (the folder above
    it), so that the project can be moved as a whole; otherwise absolute. A path that is
    relative already stays as it is.
    """
    if not os.path.isabs(video):
        return str(PurePosixPath(video))
    folder = Path(os.path.abspath(manifest)).parent
    if folder.parent == Path(folder.anchor) or not Path(video).is_relative_to(folder.parent):
        return video
    return Path(os.path.relpath(video, folder)).as_posix()

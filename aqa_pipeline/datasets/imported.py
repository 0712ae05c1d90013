"""What an importer gives: the rows of a manifest and its protocol, ready to be written."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from aqa_pipeline.config import Protocol
from aqa_pipeline.errors import UsageError
from aqa_pipeline.manifest import parse_clips, write_manifest
from aqa_pipeline.protocol import write_protocol
from aqa_pipeline.tables import Cells

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Imported:
    """An imported data set.

    Attributes
    ----------
    clips : DataFrame
        As in :class:`aqa_pipeline.manifest.Manifest`; ``video`` is absolute, or a place
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
    ) -> Imported:
        """Check rows as those of a manifest are checked.

        Parameters
        ----------
        source : Path
            The annotation, for messages.
        rows : sequence of mapping
            Columns of each clip, without ``video``; those a row lacks are empty.
        protocol : Protocol
        videos, missing : sequence of str
            From :func:`aqa_pipeline.datasets.layout.locate_videos`.

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

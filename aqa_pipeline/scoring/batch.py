"""Score many videos: what a user names becomes clips, and each clip a score.

A name is a video file, a folder of numbered pictures (one video), a folder of videos, or a CSV
with a row per clip. A clip that cannot be scored is a line in the result; the others go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aqa_pipeline.datasets.manifest import KNOWN, parse_clips
from aqa_pipeline.errors import ClipError, DataError, UsageError
from aqa_pipeline.media.clip import ClipFrames, escape_unprintable
from aqa_pipeline.media.frame_folder import list_frames
from aqa_pipeline.media.identity import VIDEO_SUFFIXES
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.result import ScoredClip
from aqa_pipeline.scoring.scorer import Scorer
from aqa_pipeline.tables import Cells, read_cells


@dataclass(frozen=True)
class ScoreRequest:
    """One clip to be scored.

    Attributes
    ----------
    name : str
        What it is called in the result: the clip's id, or the path as typed.
    video : Path
    metadata : ClipMetadata
    known_score : float or None
        The judges', where the CSV has it.
    """

    name: str
    video: Path
    metadata: ClipMetadata = ClipMetadata()  # noqa: RUF009 - frozen
    known_score: float | None = None


@dataclass(frozen=True)
class BatchResult:
    """A clip with its score, or with the sentence that says why there is none."""

    clip: ScoreRequest
    scored: ScoredClip | None
    error: str = ""


def score_requests(paths: Sequence[Path], common: ClipMetadata) -> list[ScoreRequest]:
    """The clips that paths name.

    Parameters
    ----------
    paths : sequence of Path
        Videos, folders, CSV files.
    common : ClipMetadata
        What holds for every clip that a CSV does not say otherwise of.

    Raises
    ------
    DataError
        If a CSV is not a table of clips.
    ClipError
        If a folder holds no video.
    """
    clips: list[ScoreRequest] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            clips += _clips_of_table(path, common)
        elif path.is_dir() and not _is_frame_folder(path):
            videos = _videos_in(path)
            if not videos:
                raise ClipError(
                    f"{path}: no video in this folder, and no numbered pictures", stage="open"
                )
            clips += [ScoreRequest(str(video), video, common) for video in videos]
        else:
            clips.append(ScoreRequest(str(path), path, common))
    return clips


def _is_frame_folder(path: Path) -> bool:
    try:
        list_frames(path)
    except ClipError as error:
        return error.stage == "index"  # pictures with a gap are meant as a video
    return True


def _videos_in(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    entries = [folder / name for name in names if not name.startswith(".")]
    return [
        entry
        for entry in entries
        if entry.suffix.lower() in VIDEO_SUFFIXES or (entry.is_dir() and _is_frame_folder(entry))
    ]


def _clips_of_table(path: Path, common: ClipMetadata) -> list[ScoreRequest]:
    cells = read_cells(path)
    if "video" not in cells.header:
        raise DataError(
            f"{path}: column video is missing; found {', '.join(cells.header) or 'nothing'}"
        )
    rows = parse_clips(_completed(cells))
    scores = [_number(cell) for cell in cells.column("score")]
    names = cells.column("clip_id") if "clip_id" in cells.header else cells.column("video")
    return [
        ScoreRequest(name, path.parent / str(row["video"]), metadata_of(row, common), score)
        for name, score, row in zip(names, scores, rows.to_dict("records"), strict=True)
    ]


def metadata_of(row: Mapping[Hashable, Any], other: ClipMetadata) -> ClipMetadata:
    """What a row of a manifest says of its clip, and where it is silent, what is said elsewhere."""

    def number(name: str) -> Any:
        return getattr(other, name) if pd.isna(row[name]) else row[name]

    start, end = number("start_frame"), number("end_frame")
    difficulty = number("difficulty")
    free = {str(name): str(cell) for name, cell in row.items() if name not in KNOWN and cell}
    return ClipMetadata(
        start_frame=None if start is None else int(start),
        end_frame=None if end is None else int(end),
        category=str(row["category"]) or other.category,
        difficulty=None if difficulty is None else float(difficulty),
        columns={**other.columns, **free},
    )


def _completed(cells: Cells) -> Cells:
    """The table as a manifest: rows numbered, scores nothing that could be wrong."""
    kept = [i for i, name in enumerate(cells.header) if name not in ("clip_id", "score", "split")]
    return Cells(
        path=cells.path,
        header=["clip_id", "score", *(cells.header[i] for i in kept)],
        rows=[[str(n), "0", *(row[i] for i in kept)] for n, row in enumerate(cells.rows)],
        places=cells.places,
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def score_clips(
    scorer: Scorer,
    clips: Sequence[ScoreRequest],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[BatchResult]:
    """Score clips one after the other; the next is decoded while the network is at work.

    Parameters
    ----------
    scorer : Scorer
    clips : sequence of ScoreRequest
    progress : callable
        Called as ``progress(done, total)``, in clips.

    Raises
    ------
    UsageError
        Before anything is decoded: if a clip lacks a category or difficulty that the run needs.
    """
    for clip in clips:
        try:
            scorer.check(clip.metadata)
        except UsageError as error:
            where = f"{escape_unprintable(clip.name)}: " if len(clips) > 1 else ""
            raise type(error)(f"{where}{error}", fact=error.fact) from None
    progress(0, len(clips))
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as ahead:
        decoded = [ahead.submit(scorer.decode, clip.video, clip.metadata) for clip in clips[:1]]
        for done, clip in enumerate(clips, start=1):
            decoded += [
                ahead.submit(scorer.decode, following.video, following.metadata)
                for following in clips[done : done + 1]
            ]
            yield _result(scorer, clip, decoded.pop(0))
            progress(done, len(clips))


def _result(scorer: Scorer, clip: ScoreRequest, decoded: Future[ClipFrames]) -> BatchResult:
    try:
        return BatchResult(clip, scorer.score_frames(decoded.result(), clip.metadata))
    except ClipError as error:
        return BatchResult(clip, None, escape_unprintable(str(error)))


def results_table(results: Sequence[BatchResult]) -> pd.DataFrame:
    """One row per clip; scores and intervals in points."""
    return pd.DataFrame([_row(result) for result in results])


def _row(result: BatchResult) -> dict[str, Any]:
    clip, scored = result.clip, result.scored
    low, high = (scored and scored.interval) or (None, None)
    return {
        "clip_id": clip.name,
        "video": str(clip.video),
        "start_frame": scored and scored.start_frame,
        "end_frame": scored and scored.end_frame,
        "category": scored.category if scored else clip.metadata.category,
        "difficulty": clip.metadata.difficulty,
        "score": clip.known_score,
        "prediction": scored and scored.score,
        "low": low,
        "high": high,
        "coverage": scored and scored.coverage,
        "warnings": " ".join(scored.warnings) if scored else "",
        "error": result.error,
    }

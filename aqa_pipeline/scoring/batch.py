"""Scoring many videos: what a user names, turned into clips, and each clip into its score.

A name is a video file, a folder of numbered pictures (one video), a folder of videos, or a CSV
with a row a clip. A clip that cannot be scored is a line in the result; the others go on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from aqa_pipeline.datasets.manifest import KNOWN, parse_clips
from aqa_pipeline.errors import ClipError, DataError, UsageError
from aqa_pipeline.media.clip import ClipFrames, escape_unprintable
from aqa_pipeline.media.frame_folder import list_frames
from aqa_pipeline.media.identity import VIDEO_SUFFIXES
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
    start_frame, end_frame : int or None
    category : str
    difficulty : float or None
    columns : mapping of str to str
        Further columns, for runs that compare by one of them.
    known_score : float or None
        The judges', where the CSV has it.
    """

    name: str
    video: Path
    start_frame: int | None = None
    end_frame: int | None = None
    category: str = ""
    difficulty: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    known_score: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Keyword arguments of the scorer's methods."""
        return {
            "category": self.category,
            "difficulty": self.difficulty,
            "columns": self.columns,
        }


@dataclass(frozen=True)
class BatchResult:
    """A clip with its score, or with the sentence that says why there is none."""

    clip: ScoreRequest
    scored: ScoredClip | None
    error: str = ""


def wanted_clips(paths: Sequence[Path], common: ScoreRequest) -> list[ScoreRequest]:
    """The clips that paths name.

    Parameters
    ----------
    paths : sequence of Path
        Videos, folders, CSV files.
    common : ScoreRequest
        What holds for every clip that a CSV does not say otherwise of.

    Raises
    ------
    DataError
        If a CSV is not a table of clips, or a folder holds no video.
    """
    clips: list[ScoreRequest] = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            clips += _clips_of_table(path, common)
        elif path.is_dir() and not _is_frame_folder(path):
            videos = _videos_in(path)
            if not videos:
                raise DataError(f"{path}: no video in this folder, and no numbered pictures")
            clips += [dataclasses.replace(common, name=str(v), video=v) for v in videos]
        else:
            clips.append(dataclasses.replace(common, name=str(path), video=path))
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


def _clips_of_table(path: Path, common: ScoreRequest) -> list[ScoreRequest]:
    cells = read_cells(path)
    if "video" not in cells.header:
        raise DataError(
            f"{path}: column video is missing; found {', '.join(cells.header) or 'nothing'}"
        )
    rows = parse_clips(_completed(cells))
    scores = [_number(cell) for cell in cells.column("score")]
    names = cells.column("clip_id") if "clip_id" in cells.header else cells.column("video")
    free = [str(name) for name in rows if name not in KNOWN]
    return [
        ScoreRequest(
            name=name,
            video=path.parent / str(row["video"]),
            start_frame=_or(row["start_frame"], common.start_frame, int),
            end_frame=_or(row["end_frame"], common.end_frame, int),
            category=str(row["category"]) or common.category,
            difficulty=_or(row["difficulty"], common.difficulty, float),
            columns={**common.columns, **{name: row[name] for name in free if row[name]}},
            known_score=score,
        )
        for name, score, row in zip(names, scores, rows.to_dict("records"), strict=True)
    ]


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


def _or(value: Any, otherwise: Any, kind: Callable[[Any], Any]) -> Any:
    return otherwise if pd.isna(value) else kind(value)


def score_clips(
    scorer: Scorer,
    clips: Sequence[ScoreRequest],
    *,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[BatchResult]:
    """Score clips one after the other; the next is decoded while the network is at work.

    Parameters
    ----------
    scorer : Scorer
    clips : sequence of ScoreRequest
    advance : callable
        Told ``(clips done, clips in all)``.

    Raises
    ------
    UsageError
        Before anything is decoded: if a clip lacks a category or difficulty that the run needs.
    """
    for clip in clips:
        try:
            scorer.check_facts(**clip.facts)
        except UsageError as error:
            where = f"{escape_unprintable(clip.name)}: " if len(clips) > 1 else ""
            raise UsageError(f"{where}{error}") from None
    advance(0, len(clips))
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as ahead:
        waiting = ahead.submit(_decode, scorer, clips[0]) if clips else None
        for done, clip in enumerate(clips, start=1):
            assert waiting is not None
            current = waiting
            if done < len(clips):
                waiting = ahead.submit(_decode, scorer, clips[done])
            yield _outcome(scorer, clip, current)
            advance(done, len(clips))


def _decode(scorer: Scorer, clip: ScoreRequest) -> ClipFrames:
    return scorer.decode(
        clip.video,
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
        category=clip.category,
    )


def _outcome(scorer: Scorer, clip: ScoreRequest, decoded: Future[ClipFrames]) -> BatchResult:
    try:
        return BatchResult(clip, scorer.score_frames(decoded.result(), **clip.facts))
    except (ClipError, DataError) as error:
        return BatchResult(clip, None, escape_unprintable(str(error)))


def outcomes_table(outcomes: Sequence[BatchResult]) -> pd.DataFrame:
    """One row a clip, for ``--csv``; scores and intervals in points."""
    return pd.DataFrame([_row(outcome) for outcome in outcomes])


def _row(outcome: BatchResult) -> dict[str, Any]:
    clip, scored = outcome.clip, outcome.scored
    low, high = (scored and scored.interval) or (None, None)
    return {
        "clip_id": clip.name,
        "video": str(clip.video),
        "start_frame": scored and scored.start_frame,
        "end_frame": scored and scored.end_frame,
        "category": scored.category if scored else clip.category,
        "difficulty": clip.difficulty,
        "score": clip.known_score,
        "prediction": scored and scored.score,
        "low": low,
        "high": high,
        "coverage": scored and scored.coverage,
        "warnings": " ".join(scored.warnings) if scored else "",
        "error": outcome.error,
    }

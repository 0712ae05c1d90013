"""Case study of three clips of a run: the best, the median and the worst (Fig. 8).

The run folder holds no test features; they come from the project's cache, pictures from its
videos. Either may be out of reach, and then a sentence says why.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.cache.load import load_clips
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import PixelPreset, Protocol
from aqa_pipeline.datasets.locate import clip_positions, video_index_folder
from aqa_pipeline.datasets.manifest import Clip, Manifest, read_manifest
from aqa_pipeline.errors import AqaError, DataError
from aqa_pipeline.heads.tree_path import TreePath
from aqa_pipeline.heads.voting import Predictions
from aqa_pipeline.media.encode import JPEG, data_address, jpeg
from aqa_pipeline.media.reader import VideoReader, read_index
from aqa_pipeline.media.snippets import clamp_positions
from aqa_pipeline.project import Project
from aqa_pipeline.runs.evaluate import predict_clips
from aqa_pipeline.runs.folder import Run, read_run
from aqa_pipeline.runs.record import RunRecord
from aqa_pipeline.scoring.explainer import run_tree_path

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

#: Pictures of a clip; they fit side by side on a telephone.
NUM_PICTURES = 4

#: The same part of the frame as the network's 224 of 256 pixels.
PIXELS = PixelPreset("thumbnail", crop=112, short_side=128)


@dataclass(frozen=True, eq=False)
class Rescored:
    """A run with its test clips scored again, votes and all.

    Attributes
    ----------
    run : Run
    manifest : Manifest
        With the protocol that the run was fitted with.
    predictions : Predictions
    """

    run: Run
    manifest: Manifest
    predictions: Predictions

    @property
    def vote_scores(self) -> FloatArray:
        """Every vote, shape=(K, Q, M), in points; NaN for none."""
        scores = self.predictions.clips.to_score(np.moveaxis(self.predictions.votes.label, 1, 2))
        return np.moveaxis(scores, 2, 1)

    def vote_spread(self) -> FloatArray:
        """Standard deviation of a clip's votes, mean over the heads, shape=(Q,), in points.

        NaN for clips with fewer than 2 votes, such as all of a direct head.
        """
        scores = self.vote_scores
        several = (~np.isnan(scores)).sum(axis=2).min(axis=0) >= 2
        spread = np.full(len(self.predictions.clips), np.nan)
        spread[several] = np.nanstd(scores[:, several], axis=2).mean(axis=0)
        return spread


@dataclass(frozen=True)
class Vote:
    """Vote of one exemplar on the query; scores in points, the rest in label points."""

    exemplar: str
    exemplar_score: float
    exemplar_label: float
    delta: float
    score: float


@dataclass(frozen=True, eq=False)
class Case:
    """One clip, how it was judged and how the first head came to its score.

    Attributes
    ----------
    title, clip_id, category : str
    difficulty, score, prediction : float
        ``prediction`` is the run's, the mean of all heads.
    head_prediction : float
        Of the first head, whose votes and path these are.
    votes : tuple of Vote
        Empty for a direct head.
    shown : int
        The vote whose tree path is shown: the median one.
    path : TreePath or None
        None for a head without a tree.
    pictures : tuple of (str, list of str)
        Caption and ``data:`` addresses: the query, then the exemplar of the path.
    without_pictures : str
        Why there are none, or nothing.
    """

    title: str
    clip_id: str
    category: str
    difficulty: float
    score: float
    prediction: float
    head_prediction: float
    votes: tuple[Vote, ...]
    shown: int
    path: TreePath | None
    pictures: tuple[tuple[str, list[str]], ...]
    without_pictures: str

    @property
    def error(self) -> float:
        return self.prediction - self.score


def rescore(record: RunRecord, project: Project) -> Rescored:
    """Score the clips of a run's ``predictions.csv`` again, to see the votes.

    Raises
    ------
    AqaError
        If the run, its manifest or its features cannot be read.
    """
    run = read_run(record.folder, device=torch.device("cpu"))
    if record.predictions.empty:
        raise DataError(f"{record.folder}: predictions.csv is missing or empty")
    manifest = read_manifest(project.manifest_path(run.config.dataset))
    # The protocol the head was fitted with, whatever the file says by now.
    manifest = dataclasses.replace(manifest, protocol=run.protocol)
    rows = manifest.clips.set_index("clip_id", drop=False)
    wanted = record.predictions["clip_id"].tolist()
    gone = sorted(set(wanted) - set(rows.index))
    if gone:
        raise DataError(f"{manifest.path}: {len(gone)} clips of the run are gone, as {gone[0]!r}")
    rows = rows.loc[wanted]
    cache = FeatureCache.open(project.cache / manifest.name / run.config.cache.folder)
    predictions = predict_clips(run, load_clips(manifest, cache, rows, run.labels))
    return Rescored(run, manifest, predictions)


def cases(rescored: Rescored, project: Project) -> list[Case]:
    """The best, the median and the worst clip by absolute error; fewer if there are fewer."""
    error = np.abs(rescored.predictions.score - rescored.predictions.clips.score)
    order = np.argsort(error, kind="stable")[: np.isfinite(error).sum()]  # NaN comes last
    if not len(order):
        return []
    titles: dict[int, str] = {}
    for title, i in (("Best clip", 0), ("Median clip", len(order) // 2), ("Worst clip", -1)):
        titles.setdefault(int(order[i]), title)
    return [_case(title, row, rescored, project) for row, title in titles.items()]


def _case(title: str, row: int, rescored: Rescored, project: Project) -> Case:
    run, predictions = rescored.run, rescored.predictions
    clips, pool = predictions.clips, run.exemplars
    votes: list[Vote] = []
    shown, exemplar = 0, None
    if run.head.is_contrastive:
        rows = [int(i) for i in predictions.exemplars[row] if i >= 0]
        labels = predictions.votes.label[0, row]
        votes = [
            Vote(
                exemplar=pool.clip_id[i],
                exemplar_score=float(pool.score[i]),
                exemplar_label=float(pool.label[i]),
                delta=float(labels[m] - pool.label[i]),
                score=float(clips.offset[row] + clips.scale[row] * labels[m]),
            )
            for m, i in enumerate(rows)
        ]
        if votes:
            by_score = sorted(range(len(votes)), key=lambda m: votes[m].score)
            shown = by_score[len(votes) // 2]
            exemplar = rows[shown]
    wanted = [("query", clips.clip_id[row])]
    if exemplar is not None:
        wanted.append(("exemplar", pool.clip_id[exemplar]))
    pictures, without = _pictures(wanted, rescored, project)
    return Case(
        title=title,
        clip_id=clips.clip_id[row],
        category=clips.category[row],
        difficulty=float(clips.difficulty[row]),
        score=float(clips.score[row]),
        prediction=float(predictions.score[row]),
        head_prediction=float(predictions.per_head[0, row]),
        votes=tuple(votes),
        shown=shown,
        path=run_tree_path(run, clips.features[row], exemplar),
        pictures=pictures,
        without_pictures=without,
    )


def _pictures(
    wanted: list[tuple[str, str]], rescored: Rescored, project: Project
) -> tuple[tuple[tuple[str, list[str]], ...], str]:
    manifest = rescored.manifest
    clips = {clip.clip_id: clip for clip in manifest.clip_list()}
    index_folder = video_index_folder(project.cache)
    strips = []
    for role, clip_id in wanted:
        if clip_id not in clips:
            return (), f"the manifest no longer has the clip {clip_id!r}"
        try:
            frames = thumbnails(
                clips[clip_id], manifest.protocol, count=NUM_PICTURES, index_folder=index_folder
            )
        except AqaError as error:
            _log.info("no pictures of %s: %s", clip_id, error)
            return (), f"the video of {clip_id!r} cannot be read"
        strips.append((f"{role} {clip_id}", frames))
    return tuple(strips), ""


def thumbnails(clip: Clip, protocol: Protocol, *, count: int, index_folder: Path) -> list[str]:
    """Frames evenly spaced over a clip's window, each a ``data:`` address of a JPEG.

    Parameters
    ----------
    clip : Clip
    protocol : Protocol
        Says which frames are the window.
    count : int
    index_folder : Path
        Where facts about videos are remembered, see
        :func:`aqa_pipeline.media.index.read_index`.

    Raises
    ------
    ClipError
        If the video is not there or cannot be decoded.
    DataError
        If the clip is empty.
    """
    index = read_index(clip.video, index_folder=index_folder)
    window = clip_positions(protocol, clip, video_frames=index.num_frames)
    window, _ = clamp_positions(window, video_frames=index.num_frames)
    chosen = window[np.linspace(0, len(window) - 1, count).round().astype(np.int64)]
    with VideoReader(clip.video, PIXELS, index=index) as reader:
        return [data_address(jpeg(frame), JPEG) for frame in reader.read(chosen).frames]

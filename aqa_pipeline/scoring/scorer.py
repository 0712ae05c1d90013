"""Score a video that nobody has seen before with a fitted run.

.. code-block:: python

    from aqa_pipeline import Scorer

    scorer = Scorer.load("runs/demo")
    scored = scorer.score("dive.mp4", difficulty=3.2)
    scored.score, scored.interval

A video is decoded in a process of its own with limits of time and memory, goes through the
backbone once, and is compared with exemplars whose features lie in the run folder. What is slow
to start (weights, exemplars, that process) is loaded once, by :meth:`Scorer.load`.

On a CPU a prediction is the one that ``aqa evaluate`` makes for the same clip, to the bit
(:mod:`aqa_pipeline.heads.voting`). A GPU computes one clip by other algorithms than a group of
clips, so there the two differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.backbone.encoder import Backbone, Encode
from aqa_pipeline.config import DEVICE, ScoreConfig
from aqa_pipeline.device import find_device, naming_shortage
from aqa_pipeline.errors import MissingFactError, UsageError
from aqa_pipeline.media.clip import (
    ClipFrames,
    ClipRequest,
    prefix_errors_with,
    read_clip,
    stream_clip,
)
from aqa_pipeline.media.sandbox import LimitedProcess
from aqa_pipeline.project import Project
from aqa_pipeline.runs.conformal import check_coverage
from aqa_pipeline.runs.folder import Run, read_run, run_folders
from aqa_pipeline.scoring.assessor import ClipMetadata, FeatureScorer
from aqa_pipeline.scoring.backbone import LESS_MEMORY, load_backbone
from aqa_pipeline.scoring.result import ScoredClip
from aqa_pipeline.scoring.slide import SlidingScores, slide, snippet_protocol


class Scorer:
    """A run, or the runs of its categories and folds, ready to score; a context manager.

    Parameters
    ----------
    runs : sequence of Run
        See :func:`aqa_pipeline.runs.folder.run_folders`.
    encode : callable
        The backbone, see :data:`aqa_pipeline.backbone.encoder.Encode`.
    config : ScoreConfig
    snippet_backbone : callable or None
        Loads the backbone for snippets that do not overlap
        (:func:`aqa_pipeline.scoring.slide.snippet_protocol`); only :meth:`slide` needs it.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        encode: Encode,
        *,
        config: ScoreConfig = ScoreConfig(),  # noqa: B008 - frozen
        snippet_backbone: Backbone | None = None,
    ) -> None:
        check_coverage(config.coverage)
        self.config, self.encode = config, encode
        self._snippet_backbone = snippet_backbone
        by_category: dict[str, list[Run]] = {}
        for run in runs:
            by_category.setdefault(run.config.part.category or "", []).append(run)
        self._assessors = {
            category: FeatureScorer(own, config.coverage) for category, own in by_category.items()
        }
        self._reader = LimitedProcess(
            memory_bytes=config.decode_memory_bytes, seconds=config.decode_seconds
        )

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        weights: str | Path | None = None,
        device: str = DEVICE,
        coverage: float = ScoreConfig.coverage,
        decode_seconds: float = ScoreConfig.decode_seconds,
    ) -> Scorer:
        """Load a run folder and its backbone.

        Parameters
        ----------
        run : str or Path
            A run folder, or its name in ``runs/`` of the project.
        weights : str, Path or None
            Of the backbone; None: those in the run folder, else those that ``aqa weights
            fetch`` fetched.
        device : str
            See :func:`aqa_pipeline.device.find_device`.
        coverage : float
            Share of true scores that intervals are meant to hold.
        decode_seconds : float
            A video that takes longer to decode is refused.

        Returns
        -------
        Scorer

        Raises
        ------
        DataError
            If it is no run folder.
        CacheError
            If the run was fitted on features that no video can be turned into here.
        SetupError
            If the weights are missing.
        UsageError
            If there is no such device.
        """
        config = ScoreConfig(coverage=coverage, decode_seconds=decode_seconds)
        check_coverage(coverage)
        runs, found = load_runs(Project.find().run_path(run), device)
        snippets = snippet_protocol(runs[0].protocol)
        scorer = cls(
            runs,
            load_backbone(runs, weights, device=str(found)),
            config=config,
            snippet_backbone=lambda: load_backbone(
                runs, weights, protocol=snippets, device=str(found)
            ),
        )
        scorer.start()
        return scorer

    def __repr__(self) -> str:
        run, heads = self.any_run, sum(len(own.runs) for own in self._assessors.values())
        categories = ", ".join(filter(None, self.categories))
        return (
            f"Scorer({run.head.config.name}, data set {run.config.dataset or 'unknown'}, "
            f"{heads} {'run' if heads == 1 else 'runs'}"
            f"{f', categories {categories}' if categories else ''}, on {run.head.device})"
        )

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories with heads of their own; one empty text where there are none."""
        return tuple(self._assessors)

    @property
    def any_run(self) -> Run:
        """One of the runs, for what all of them agree in."""
        return next(iter(self._assessors.values())).any_run

    def runs(self, category: str = "") -> list[Run]:
        """The runs that score a category: one, or one per fold.

        Raises
        ------
        UsageError
            If the category has no heads.
        """
        return self.assessor(category).runs

    def score(
        self,
        video: str | Path,
        *,
        start_frame: int | None = None,
        end_frame: int | None = None,
        category: str = "",
        difficulty: float | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> ScoredClip:
        """Score one clip of a video.

        Parameters
        ----------
        video : str or Path
            A video file, or a folder of numbered pictures.
        start_frame, end_frame, category, difficulty, columns
            See :class:`aqa_pipeline.scoring.assessor.ClipMetadata`.

        Returns
        -------
        ScoredClip

        Raises
        ------
        ClipError
            If the video cannot be read.
        MissingFactError
            If the run needs a category or difficulty that is not given.
        """
        metadata = ClipMetadata(start_frame, end_frame, category, difficulty, columns or {})
        self.check(metadata)  # before anything slow
        return self.score_frames(self.decode(video, metadata), metadata)

    def check(self, metadata: ClipMetadata) -> None:
        """Raise what :meth:`score` would for a clip of which this is known, without its video."""
        self.assessor(metadata.category).key(metadata)

    def request(self, video: str | Path, metadata: ClipMetadata) -> ClipRequest:
        """What :func:`aqa_pipeline.media.clip.read_clip` is to read, in whichever process."""
        protocol = self.assessor(metadata.category).any_run.protocol
        return ClipRequest(Path(video), protocol, metadata.start_frame, metadata.end_frame)

    def decode(self, video: str | Path, metadata: ClipMetadata) -> ClipFrames:
        """The frames of one clip, decoded in a process with limits; errors as :meth:`score`."""
        clip: ClipFrames = self.read(read_clip, self.request(video, metadata))
        return clip

    def read(self, task: Callable[[ClipRequest], Any], request: ClipRequest) -> Any:
        """Give a request to a function of :mod:`aqa_pipeline.media.clip`, in that process."""
        with prefix_errors_with(request.video):
            return self._reader.call(task, request)

    def score_frames(self, clip: ClipFrames, metadata: ClipMetadata) -> ScoredClip:
        """Score a clip whose frames are decoded; errors as :meth:`score`."""
        with naming_shortage(self.any_run.head.device, LESS_MEMORY):
            features = self.encode(np.ascontiguousarray(clip.frames))
        return self.score_features(features, metadata, clip)

    def score_features(
        self,
        features: npt.NDArray[np.float32],
        metadata: ClipMetadata,
        clip: ClipFrames | None = None,
    ) -> ScoredClip:
        """Score a clip whose features are known, see :meth:`FeatureScorer.score`."""
        with naming_shortage(self.any_run.head.device, LESS_MEMORY):
            return self.assessor(metadata.category).score(features, metadata, clip)

    def slide(
        self,
        video: str | Path,
        metadata: ClipMetadata = ClipMetadata(),  # noqa: B008 - frozen
        *,
        stride: int = ScoreConfig.stride_frames,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> SlidingScores:
        """Score every window of a long video, which is decoded once, in bounded memory.

        Parameters
        ----------
        video : str or Path
        metadata : ClipMetadata
            The same for every window; its frames bound the stretch of the video.
        stride : int
            Frames from one window to the next.
        progress : callable
            Called as ``progress(done, total)``, in windows.

        Raises
        ------
        ClipError
            If the video cannot be read.
        UsageError
            If the video is shorter than a window, or the run has none of a fixed length.
        """
        self.check(metadata)
        request = self.request(video, metadata)
        if self._snippet_backbone is None:
            raise UsageError("this scorer was made without a backbone for single snippets")
        with prefix_errors_with(request.video):
            return slide(
                self._reader.stream(stream_clip, request),
                self.assessor(metadata.category),
                self._snippet_backbone(),
                request=request,
                metadata=metadata,
                stride=stride,
                progress=progress,
            )

    def assessor(self, category: str = "") -> FeatureScorer:
        """The scorer of a category.

        Raises
        ------
        UsageError
            If it has no heads, or none is named and there are several.
        """
        if category in self._assessors:
            return self._assessors[category]
        if len(self._assessors) == 1:
            only = next(iter(self._assessors))
            if not category or not only:
                return self._assessors[only]
        known = ", ".join(self._assessors)
        if not category:
            raise MissingFactError(
                f"this run has heads for {known}: name one of them as the category", fact="category"
            )
        raise UsageError(
            f"this run has no heads for the category {category!r}, only for {known}",
            fact="category",
        )

    def start(self) -> None:
        """Start the decoding process, which the first video would otherwise wait for."""
        self._reader.start()

    def close(self) -> None:
        """End the decoding process."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_runs(folder: Path, device: str) -> tuple[list[Run], torch.device]:
    """The runs of a folder on the device of that name, see :meth:`Scorer.load`."""
    found = find_device(device)
    with naming_shortage(found, LESS_MEMORY):
        return [read_run(own, device=found) for own in run_folders(folder)], found

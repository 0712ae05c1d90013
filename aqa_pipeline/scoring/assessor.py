"""Score one clip from its features: prediction, interval, exemplar votes, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.featureset import FeatureSet, Key
from aqa_pipeline.errors import MissingFactError, UsageError
from aqa_pipeline.heads.voting import ClipPrediction
from aqa_pipeline.media.clip import ClipFrames
from aqa_pipeline.runs.calibration import HalfWidth, Intervals, merged
from aqa_pipeline.runs.conformal import fewest_residuals
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.scoring.backbone import has_exact_features
from aqa_pipeline.scoring.result import ExemplarVote, ScoredClip
from aqa_pipeline.scoring.similarity import OutlierDetector


@dataclass(frozen=True)
class ClipMetadata:
    """What a user says of a clip in addition to its video.

    Attributes
    ----------
    start_frame, end_frame : int or None
        Half-open positions; None: the first frame, the end of the video. The protocol's rule
        cuts its window out of that.
    category : str
        Empty where there are no categories.
    difficulty : float or None
    columns : mapping of str to str
        Values of further columns that the run's exemplar key names, such as ``action_type``.
    """

    start_frame: int | None = None
    end_frame: int | None = None
    category: str = ""
    difficulty: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class FeatureScorer:
    """Score clips of one category from their features: by a run, or by one run per fold.

    Over folds the mean of all heads is the prediction, and a training clip's error is that of the
    heads, of any fold, that did not know it.

    Parameters
    ----------
    runs : sequence of Run
        All with the same protocol.
    coverage : float
        Share of true scores that intervals are meant to hold.
    """

    def __init__(self, runs: Sequence[Run], coverage: float) -> None:
        self.runs, self.coverage = list(runs), coverage
        self._voters = [run.voter() for run in runs]
        self._known = FeatureSet.concat([run.exemplars for run in runs]).distinct()
        self._outliers = OutlierDetector(
            self._known.features, is_exact=all(has_exact_features(run) for run in runs)
        )
        calibrations = [run.calibration for run in runs if run.calibration is not None]
        self.calibration = merged(calibrations) if len(calibrations) == len(runs) else None
        self._intervals = Intervals(self.calibration, coverage) if self.calibration else None

    @property
    def any_run(self) -> Run:
        """One of the runs, for what all of them agree in, such as the protocol."""
        return self.runs[0]

    def key(self, metadata: ClipMetadata) -> Key:
        """Values of the exemplar key's columns.

        Raises
        ------
        MissingFactError
            If one is missing, or the difficulty that the label is scaled by.
        UsageError
            If the category has no score range.
        """
        names, labels = self.any_run.protocol.exemplar_key, self.any_run.labels
        if metadata.difficulty is None and ("difficulty" in names or labels.transform == "raw"):
            found = self._known.difficulty
            raise MissingFactError(
                "this run scores by difficulty, which is not given (its training clips have "
                f"{np.nanmin(found):g} to {np.nanmax(found):g})",
                fact="difficulty",
            )
        category = self.category(metadata)
        if labels.transform == "range" and category not in labels.ranges:
            there = f"there are {', '.join(labels.ranges)}"
            if category:
                raise UsageError(
                    f"this run knows no category {category!r} ({there})", fact="category"
                )
            raise MissingFactError(
                f"this run scores by category, which is not given ({there})", fact="category"
            )
        given = {**metadata.columns, "category": category}
        for i, name in enumerate(names):
            if name != "difficulty" and not given.get(name):
                known = sorted({str(key[i]) for key in self._known.key})
                shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
                raise MissingFactError(
                    f"this run compares by {name}, which is not given (there are {shown})",
                    fact="category" if name == "category" else "columns",
                )
        # Rounded as aqa_pipeline.datasets.manifest.exemplar_keys rounds.
        return tuple(
            round(float(metadata.difficulty or 0.0), 6) if name == "difficulty" else given[name]
            for name in names
        )

    def category(self, metadata: ClipMetadata) -> str:
        """The clip's category, or the only one there is."""
        known = set(self._known.category)
        return metadata.category or (next(iter(known)) if len(known) == 1 else "")

    def score(
        self,
        features: npt.NDArray[np.float32],
        metadata: ClipMetadata,
        clip: ClipFrames | None = None,
    ) -> ScoredClip:
        """Score one clip.

        Parameters
        ----------
        features : ndarray of float32, shape=(S, D)
        metadata : ClipMetadata
        clip : ClipFrames or None
            What the features were made from, for the record.

        Raises
        ------
        UsageError
            As :meth:`key`.
        CacheError
            If the features have another shape than those the heads were trained on.
        """
        key, category = self.key(metadata), self.category(metadata)
        difficulty = np.nan if metadata.difficulty is None else metadata.difficulty
        scale, offset = (
            float(value[0])
            for value in self.any_run.labels.scale_and_offset(
                difficulty=[difficulty], categories=[category]
            )
        )
        predictions = [voter.predict(features, key) for voter in self._voters]
        per_head = np.concatenate([offset + scale * own.mean() for own in predictions])
        score = float(per_head.mean())
        half = None
        if self._intervals is not None:
            half = self._intervals.half_width(scale=scale, difficulty=difficulty)
        distance, nearest = self._outliers.nearest(features)
        return ScoredClip(
            video="" if clip is None else str(clip.video),
            start_frame=0 if clip is None else int(clip.frame_index[0]),
            end_frame=0 if clip is None else int(clip.frame_index[-1]) + 1,
            video_frames=0 if clip is None else clip.video_frames,
            num_clamped=0 if clip is None else clip.num_clamped,
            category=category,
            difficulty=metadata.difficulty,
            score=score,
            interval=(score - half.points, score + half.points)
            if half is not None and np.isfinite(half.points)
            else None,
            coverage=self.coverage,
            num_calibrating=0 if half is None else half.num_clips,
            per_head=tuple(per_head.tolist()),
            exemplars=tuple(
                vote
                for run, own in zip(self.runs, predictions, strict=True)
                for vote in _votes(run, own, scale, offset)
            ),
            warnings=(
                *self._warnings(clip, key, predictions[0], distance, nearest),
                *self._without_interval(half),
            ),
            distance=distance,
            usual_distance=self._outliers.limit,
            features=features,
            key=key,
            scale=scale,
            offset=offset,
        )

    def side_by_side(self, a: ScoredClip, b: ScoredClip) -> float | None:
        """How much better the heads find ``a`` than ``b`` when they see both, in points.

        Each is once the query and once the exemplar, with its predicted label as the known one.
        None for heads that do not compare and for clips with different exemplar keys.
        """
        if not self.any_run.head.is_contrastive or a.key != b.key:
            return None
        # Of equal key, but perhaps of another difficulty: the first clip's scale counts.
        label_a, label_b = ((own.score - a.offset) / a.scale for own in (a, b))
        deltas = [
            voter.delta(a.features, b.features, exemplar_label=label_b)
            - voter.delta(b.features, a.features, exemplar_label=label_a)
            for voter in self._voters
        ]
        return float(a.scale * np.concatenate(deltas).mean() / 2)

    def _warnings(
        self,
        clip: ClipFrames | None,
        key: Key,
        prediction: ClipPrediction,
        distance: float,
        nearest: int,
    ) -> Iterator[str]:
        run = self.any_run
        names = " and ".join(run.protocol.exemplar_key)
        if clip is not None and clip.num_clamped:
            yield (
                f"{clip.num_clamped} of the {len(clip.frame_index)} frames of the window lie "
                f"outside the video, which has {clip.video_frames}: its first or last frame stands "
                "in for them"
            )
        asked, found = run.fit_config.num_exemplars, len(prediction.exemplars)
        if prediction.fallback:
            voted = run.exemplars.key[int(prediction.exemplars[0])]
            yield (
                f"no known performance has {names} {_shown(key)}: those with {_shown(voted)} voted"
            )
        elif run.head.is_contrastive and asked is not None and found < asked:
            yield f"only {found} of {asked} exemplars have its {names}"
        if distance < self._outliers.same:
            yield f"it is the training clip {self._known.clip_id[nearest]}: the run knows its score"
        elif distance > self._outliers.limit:
            yield (
                f"it looks unlike the clips the run was trained on (distance {distance:.2f}; 99 in "
                f"100 of these are within {self._outliers.limit:.2f} of another): its score may "
                "mean nothing"
            )

    def _without_interval(self, half: HalfWidth | None) -> Iterator[str]:
        if half is None and any(run.fit_config.model_selection == "test" for run in self.runs):
            yield "no interval: the run's epoch was chosen on the test split and no clip held out"
        elif half is None:
            yield "no interval: the run folder has no calibration.csv, which `aqa fit-head` writes"
        elif not np.isfinite(half.points):
            yield (
                f"no interval: {half.num_clips} clips calibrate, and one of "
                f"{100 * self.coverage:g} % takes {fewest_residuals(self.coverage)}"
            )


def _votes(run: Run, prediction: ClipPrediction, scale: float, offset: float) -> list[ExemplarVote]:
    if not run.head.is_contrastive:
        return []
    part, pool = run.config.part, run.exemplars
    votes = offset + scale * prediction.label.mean(axis=0)  # (M,)
    return [
        ExemplarVote(
            clip_id=pool.clip_id[row],
            score=float(pool.score[row]),
            difficulty=float(pool.difficulty[row]),
            vote=float(vote),
            part="" if part.fold is None else f"fold{part.fold}",
        )
        for row, vote in zip(prediction.exemplars.tolist(), votes, strict=True)
    ]


def _shown(key: Key) -> str:
    return " and ".join(value if isinstance(value, str) else f"{value:g}" for value in key)

"""From the features of one clip to its score, its interval, its votes and its doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aqa_pipeline.core.featureset import FeatureSet, Key
from aqa_pipeline.errors import UsageError
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
    """What must be known of a clip beside its video.

    Attributes
    ----------
    category : str
        Empty where there are no categories.
    difficulty : float or None
    columns : mapping of str to str
        Values of further columns that the run's exemplar key names, such as ``action_type``.
    """

    category: str = ""
    difficulty: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class FeatureScorer:
    """What scores the clips of one category: a run, or one run a fold.

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
        self._familiarity = OutlierDetector(
            self._known.features, is_exact=all(has_exact_features(run) for run in runs)
        )
        calibrations = [run.calibration for run in runs if run.calibration is not None]
        self.calibration = merged(calibrations) if len(calibrations) == len(runs) else None
        self._intervals = Intervals(self.calibration, coverage) if self.calibration else None

    @property
    def protocol_run(self) -> Run:
        """The run whose protocol says how a clip is cut; all agree."""
        return self.runs[0]

    def key(self, facts: ClipMetadata) -> Key:
        """Values of the exemplar key's columns.

        Raises
        ------
        UsageError
            If one is missing, or the difficulty that the label is scaled by.
        """
        names = self.protocol_run.protocol.exemplar_key
        if facts.difficulty is None and (
            "difficulty" in names or self.protocol_run.labels.transform == "raw"
        ):
            known = self._known.difficulty
            raise UsageError(
                "this run scores by difficulty: type --difficulty (its training clips have "
                f"{np.nanmin(known):g} to {np.nanmax(known):g})"
            )
        # Rounded as aqa_pipeline.datasets.manifest.exemplar_keys rounds.
        return tuple(
            round(float(facts.difficulty or 0.0), 6)
            if name == "difficulty"
            else self._text(name, i, facts)
            for i, name in enumerate(names)
        )

    def _text(self, name: str, place: int, facts: ClipMetadata) -> str:
        value = self.category(facts) if name == "category" else facts.columns.get(name, "")
        if value:
            return value
        known = sorted({str(key[place]) for key in self._known.key})
        option = "--category" if name == "category" else f"--key {name}=VALUE"
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        raise UsageError(f"this run compares by {name}: type {option} (there are {shown})")

    def category(self, facts: ClipMetadata) -> str:
        """The clip's category, or the only one there is."""
        known = set(self._known.category)
        return facts.category or (next(iter(known)) if len(known) == 1 else "")

    def score(
        self, features: npt.NDArray[np.float32], clip: ClipFrames | None, facts: ClipMetadata
    ) -> ScoredClip:
        """Score one clip.

        Parameters
        ----------
        features : ndarray of float32, shape=(S, D)
        clip : ClipFrames or None
            What the features were made from, for the record.
        facts : ClipMetadata

        Raises
        ------
        UsageError
            If a fact is missing.
        DataError
            If the category has no score range.
        CacheError
            If the features have another shape than those the heads were trained on.
        """
        key = self.key(facts)
        difficulty = np.nan if facts.difficulty is None else facts.difficulty
        scale, offset = self._label_scale(facts)
        verdicts = [voter.predict(features, key) for voter in self._voters]
        per_head = np.concatenate([offset + scale * predict.mean() for predict in verdicts])
        score = float(per_head.mean())
        half = self._half_width(scale, difficulty)
        distance, nearest = self._familiarity.nearest(features)
        return ScoredClip(
            video="" if clip is None else str(clip.video),
            start_frame=0 if clip is None else int(clip.frame_index[0]),
            end_frame=0 if clip is None else int(clip.frame_index[-1]) + 1,
            video_frames=0 if clip is None else clip.video_frames,
            num_clamped=0 if clip is None else clip.num_clamped,
            category=self.category(facts),
            difficulty=facts.difficulty,
            score=score,
            interval=(score - half.points, score + half.points)
            if half is not None and np.isfinite(half.points)
            else None,
            coverage=self.coverage,
            num_calibrating=0 if half is None else half.num_clips,
            per_head=tuple(per_head.tolist()),
            exemplars=tuple(
                vote
                for run, predict in zip(self.runs, verdicts, strict=True)
                for vote in _votes(run, predict, scale, offset)
            ),
            warnings=(
                *self._doubts(clip, key, verdicts[0], distance, nearest),
                *self._without_interval(half),
            ),
            distance=distance,
            usual_distance=self._familiarity.limit,
            features=features,
        )

    def _label_scale(self, facts: ClipMetadata) -> tuple[float, float]:
        """Scale and offset of a clip's label, see :mod:`aqa_pipeline.core.labels`."""
        scale, offset = self.protocol_run.labels.scale_and_offset(
            difficulty=[np.nan if facts.difficulty is None else facts.difficulty],
            categories=[self.category(facts)],
        )
        return float(scale[0]), float(offset[0])

    def scale(self, facts: ClipMetadata) -> float:
        """Score points that a label point of a clip is worth."""
        return self._label_scale(facts)[0]

    def side_by_side(
        self, a: ScoredClip, b: ScoredClip, facts: tuple[ClipMetadata, ClipMetadata]
    ) -> float | None:
        """How much better the heads find ``a`` than ``b`` when they see both, in points.

        Each is once the query and once the exemplar, with its predicted label as the known one.
        None for heads that do not compare and for clips with different exemplar keys.
        """
        if not self.protocol_run.head.is_contrastive or self.key(facts[0]) != self.key(facts[1]):
            return None
        scale, offset = self._label_scale(facts[0])
        label_a, label_b = ((own.score - offset) / scale for own in (a, b))
        deltas = [
            voter.delta(a.features, b.features, exemplar_label=label_b)
            - voter.delta(b.features, a.features, exemplar_label=label_a)
            for voter in self._voters
        ]
        return float(scale * np.concatenate(deltas).mean() / 2)

    def _half_width(self, scale: float, difficulty: float) -> HalfWidth | None:
        if self._intervals is None:
            return None
        return self._intervals.half_width(scale=scale, difficulty=difficulty)

    def _doubts(
        self,
        clip: ClipFrames | None,
        key: Key,
        predict: ClipPrediction,
        distance: float,
        nearest: int,
    ) -> list[str]:
        run, doubts = self.protocol_run, []
        names = " and ".join(run.protocol.exemplar_key)
        if clip is not None and clip.num_clamped:
            window = len(clip.frame_index)
            doubts.append(
                f"{clip.num_clamped} of the {window} frames of the window lie outside the video, "
                f"which has {clip.video_frames}: its first or last frame stands in for them"
            )
        if predict.fallback:
            voted = run.exemplars.key[int(predict.exemplars[0])]
            doubts.append(
                f"no known performance has {names} {_shown(key)}: those with {_shown(voted)} voted"
            )
        elif run.head.is_contrastive and run.fit_config.num_exemplars is not None:
            asked, found = run.fit_config.num_exemplars, len(predict.exemplars)
            if found < asked:
                doubts.append(f"only {found} of {asked} exemplars have its {names}")
        if distance < self._familiarity.same:
            doubts.append(
                f"it is the training clip {self._known.clip_id[nearest]}: the run knows its score"
            )
        elif distance > self._familiarity.limit:
            doubts.append(
                f"it looks unlike the clips the run was trained on (distance {distance:.2f}; 99 in "
                f"100 of these are within {self._familiarity.limit:.2f} of another): its score may "
                "mean nothing"
            )
        return doubts

    def _without_interval(self, half: HalfWidth | None) -> list[str]:
        if half is None:
            if any(run.fit_config.model_selection == "test" for run in self.runs):
                return [
                    "no interval: the run's epoch was chosen on the test split and no clip held out"
                ]
            return [
                "no interval: the run folder has no calibration.csv, which `aqa fit-head` writes"
            ]
        if not np.isfinite(half.points):
            return [
                f"no interval: {half.num_clips} clips calibrate, and one of "
                f"{100 * self.coverage:g} % takes {fewest_residuals(self.coverage)}"
            ]
        return []


def _votes(run: Run, predict: ClipPrediction, scale: float, offset: float) -> list[ExemplarVote]:
    if not run.head.is_contrastive:
        return []
    part, pool = run.config.part, run.exemplars
    votes = offset + scale * predict.label.mean(axis=0)  # (M,)
    return [
        ExemplarVote(
            clip_id=pool.clip_id[row],
            score=float(pool.score[row]),
            difficulty=float(pool.difficulty[row]),
            vote=float(vote),
            part="" if part.fold is None else f"fold{part.fold}",
        )
        for row, vote in zip(predict.exemplars.tolist(), votes, strict=True)
    ]


def _shown(key: Key) -> str:
    return " and ".join(value if isinstance(value, str) else f"{value:g}" for value in key)

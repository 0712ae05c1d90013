"""Explanation of a score, computed: contributions, heat-map, tree path, exemplars.

The backbone looks at the clip once, and that pass gives both the score and the heat-map
(:mod:`aqa_pipeline.scoring.grad_cam`). Over folds, contributions and heat are the mean over the
folds, as the score is; tree path and exemplars are those of the first.
:mod:`aqa_pipeline.report.explanation` and :mod:`aqa_pipeline.report.explanation_files` show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.backbone.encoder import Encoder, features_of, map_encoder
from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.config import DEVICE, ScoreConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.device import naming_shortage
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import TreeOutput
from aqa_pipeline.heads.tree_path import TreePath, tree_path
from aqa_pipeline.media.clip import (
    ClipFrames,
    ShownClip,
    escape_unprintable,
    read_shown_clip,
    read_shown_frames,
)
from aqa_pipeline.project import Project
from aqa_pipeline.runs.conformal import check_coverage
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.backbone import LESS_MEMORY, find_backbone
from aqa_pipeline.scoring.grad_cam import (
    LAST_LAYER,
    LayerCam,
    last_map_cam,
    require_captum,
    score_gradient,
)
from aqa_pipeline.scoring.heat_map import frame_heat
from aqa_pipeline.scoring.result import ScoredClip
from aqa_pipeline.scoring.scorer import Scorer, load_runs
from aqa_pipeline.scoring.shapley import Contributions, mean_contributions, snippet_contributions
from aqa_pipeline.scoring.similarity import ShownExemplar, StandardizedClips, shown_exemplars

FloatArray = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]

#: Frames a second where a source has no times, such as a folder of pictures; and the fastest
#: and slowest a clip is shown at.
_DEFAULT_RATE, _RATES = 25.0, (2.0, 60.0)

#: Called with the stage of the work that begins: ``decoding``, ``network``, ``explaining``.
Stage = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that is known of one clip's score.

    Attributes
    ----------
    name : str
        To be shown.
    scored : ScoredClip
    run : Run
        The first of the runs that scored.
    clip : ClipFrames
    frames : ndarray of uint8, shape=(window_frames, H, W, 3)
        Large enough to be looked at.
    frames_per_second : float
        At which the window plays in real time.
    contributions : Contributions
    cam : ndarray of float32, shape=(S, T', H', W')
    heat : ndarray of float32, shape=(window_frames, H', W')
    layer : str
        Whose map the heat is on.
    distance : ndarray of float64, shape=(N,)
        To each of the run's exemplars, see :mod:`aqa_pipeline.scoring.similarity`.
    exemplars : tuple of ShownExemplar
    path : TreePath or None
        Of the first head, against the nearest exemplar; None without a tree.
    """

    name: str
    scored: ScoredClip
    run: Run
    clip: ClipFrames
    frames: Frames
    frames_per_second: float
    contributions: Contributions
    cam: FloatArray
    heat: FloatArray
    layer: str
    distance: npt.NDArray[np.float64]
    exemplars: tuple[ShownExemplar, ...]
    path: TreePath | None


class Explainer:
    """A scorer that also says why; a context manager.

    Parameters
    ----------
    scorer : Scorer
    encoder : Encoder
        The backbone of the scorer, giving whole maps.
    project : Project
        Where the exemplars' videos are looked for.
    layer_cam : LayerCam or None
        Grad-CAM on an earlier layer; None: on the last map.
    """

    def __init__(
        self,
        scorer: Scorer,
        encoder: Encoder,
        *,
        project: Project,
        layer_cam: LayerCam | None = None,
    ) -> None:
        self.scorer, self._encoder, self._project = scorer, encoder, project
        self._layer_cam = layer_cam
        scorer.start()

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        project: Project | None = None,
        weights: str | Path | None = None,
        device: str = DEVICE,
        coverage: float = ScoreConfig.coverage,
        decode_seconds: float = ScoreConfig.decode_seconds,
        layer: str = LAST_LAYER,
    ) -> Explainer:
        """Load a run folder and its backbone; the latter once, for scores and heat alike.

        Parameters
        ----------
        run, weights, device, coverage, decode_seconds
            As for :meth:`aqa_pipeline.scoring.scorer.Scorer.load`, with its errors.
        project : Project or None
            None: that of the current folder.
        layer : str
            Whose map the heat is on; before the last one it takes captum and about four passes'
            time.

        Returns
        -------
        Explainer

        Raises
        ------
        SetupError
            If captum is missing that an earlier layer takes; else as :meth:`.Scorer.load`.
        """
        if layer != LAST_LAYER:
            require_captum()
        check_coverage(coverage)
        project = project or Project.find()
        runs, found = load_runs(project.run_path(run), device)
        with naming_shortage(found, LESS_MEMORY):
            backbone = find_backbone(runs, weights, device=str(found))
            encoder = map_encoder(
                backbone.weights, runs[0].protocol, found, precision=backbone.precision
            )
            layer_cam = None
            if layer != LAST_LAYER:
                layer_cam = LayerCam(load_i3d(backbone.weights)[0].to(found), encoder, layer)
        config = ScoreConfig(coverage=coverage, decode_seconds=decode_seconds)
        return cls(
            Scorer(runs, encoder, config=config), encoder, project=project, layer_cam=layer_cam
        )

    def explain(
        self,
        video: str | Path,
        metadata: ClipMetadata = ClipMetadata(),  # noqa: B008 - frozen
        *,
        name: str | None = None,
        stage: Stage = lambda name: None,
    ) -> Explanation:
        """Score one clip of a video and find the reasons.

        Parameters
        ----------
        video : str or Path
            A video file, or a folder of numbered pictures.
        metadata : ClipMetadata
        name : str or None
            To be shown; None: the video's.
        stage : callable
            Called with each stage as it begins.

        Returns
        -------
        Explanation

        Raises
        ------
        ClipError
            If the video cannot be read.
        UsageError
            If the run needs a category or difficulty that is not given.
        """
        scorer = self.scorer
        scorer.check(metadata)
        stage("decoding")
        request = scorer.request(video, metadata)
        shown: ShownClip = scorer.read(read_shown_clip, request)
        stage("network")
        with naming_shortage(scorer.any_run.head.device, LESS_MEMORY):
            return self._explain(
                shown, metadata, name=name or escape_unprintable(request.video.name), stage=stage
            )

    def _explain(
        self, shown: ShownClip, metadata: ClipMetadata, *, name: str, stage: Stage
    ) -> Explanation:
        scorer = self.scorer
        frames = np.ascontiguousarray(shown.clip.frames)
        maps = self._encoder.maps(frames)
        features = features_of(maps)
        scored = scorer.score_features(features, metadata, shown.clip)
        stage("explaining")
        runs = scorer.runs(metadata.category)
        own = [_own_clip(run, scored) for run in runs]
        rows = [_voting_rows(run, scored) for run in runs]
        contributions = mean_contributions(
            [snippet_contributions(*part) for part in zip(runs, own, rows, strict=True)]
        )
        if self._layer_cam is None:
            gradient = np.mean(
                [score_gradient(*part) for part in zip(runs, own, rows, strict=True)], axis=0
            )
            cam, layer = last_map_cam(maps.float().cpu().numpy(), gradient), LAST_LAYER
        else:
            cam, layer = self._layer_cam(frames, runs, own, rows), self._layer_cam.layer
        run = runs[0]
        protocol = run.protocol
        (distance,) = StandardizedClips(run.exemplars.features).distances(features[None])
        exemplars = shown_exemplars(
            run,
            distance,
            rows[0] if len(rows[0]) else np.arange(len(run.exemplars)),
            score=scored.score,
            project=self._project,
            read=lambda wanted: scorer.read(read_shown_frames, wanted),
        )
        return Explanation(
            name=name,
            scored=scored,
            run=run,
            clip=shown.clip,
            frames=shown.shown,
            frames_per_second=_rate(shown.clip.pts_seconds),
            contributions=contributions,
            cam=cam,
            heat=frame_heat(
                cam,
                snippet_starts=protocol.snippet_starts,
                snippet_frames=protocol.snippet_frames,
                window_frames=protocol.window_frames,
            ),
            layer=layer,
            distance=distance,
            exemplars=tuple(exemplars),
            # Without an exemplar to show, the only one that votes is the clip itself.
            path=run_tree_path(run, features, exemplars[0].row if exemplars else None),
        )

    def close(self) -> None:
        """End the decoding process."""
        self.scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _own_clip(run: Run, scored: ScoredClip) -> FeatureSet:
    """The scored clip as a run's heads see it; its score is not known."""
    difficulty = np.nan if scored.difficulty is None else scored.difficulty
    scale, offset = run.labels.scale_and_offset(
        difficulty=[difficulty], categories=[scored.category]
    )
    return FeatureSet(
        clip_id=(scored.video,),
        features=scored.features[None],
        score=np.array([np.nan]),
        scale=scale,
        offset=offset,
        difficulty=np.array([difficulty]),
        category=(scored.category,),
        key=((),),
    )


def _voting_rows(run: Run, scored: ScoredClip) -> npt.NDArray[np.int64]:
    """Positions of the exemplars that voted, in a run's exemplars; none for a direct head."""
    fold = run.config.part.fold
    part = "" if fold is None else f"fold{fold}"
    row = {name: i for i, name in enumerate(run.exemplars.clip_id)}
    return np.array(
        [row[vote.clip_id] for vote in scored.exemplars if vote.part == part], dtype=np.int64
    )


def run_tree_path(
    run: Run, features: npt.NDArray[np.float32], exemplar: int | None
) -> TreePath | None:
    """The way of a clip through the tree of a run's first head; None where there is none.

    Parameters
    ----------
    run : Run
    features : ndarray of float32, shape=(S, D)
    exemplar : int or None
        Its position in the run's exemplars; a direct head needs none.
    """
    head = run.head
    if not (isinstance(head, Head) and isinstance(head.output, TreeOutput)):
        return None
    query = torch.from_numpy(features).to(head.device)
    if not head.is_contrastive:
        return tree_path(head, query)
    if exemplar is None:
        return None
    return tree_path(
        head,
        query,
        exemplar=torch.from_numpy(run.exemplars.features[exemplar]).to(head.device),
        exemplar_label=float(run.exemplars.label[exemplar]),
    )


def _rate(seconds: npt.NDArray[np.float64]) -> float:
    """Frames a second at which a window plays in real time."""
    steps = np.diff(seconds)
    steps = steps[np.isfinite(steps) & (steps > 0)]  # a repeated frame takes no time
    rate = 1 / float(np.median(steps)) if steps.size else _DEFAULT_RATE
    return float(np.clip(rate, *_RATES))

"""Why a clip got its score: the parts of one explanation, computed.

The backbone looks at the clip once, and that pass gives both the score and the heat-map
(:mod:`aqa_pipeline.scoring.grad_cam`). Over folds, contributions and heat are the mean over the
folds, as the score is; tree path and exemplars are those of the first.
:mod:`aqa_pipeline.report.explanation` and :mod:`aqa_pipeline.report.explanation_files` show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.backbone.maps import MapEncoder, features_of, map_encoder
from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.config import DEVICE, ScoreConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.device import find_device
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import TreeOutput
from aqa_pipeline.heads.tree_path import TreePath, tree_path
from aqa_pipeline.media.clip import (
    ClipFrames,
    ClipRequest,
    ShownClip,
    escape_unprintable,
    prefix_errors_with,
    read_shown_clip,
    read_shown_frames,
)
from aqa_pipeline.media.sandbox import LimitedProcess
from aqa_pipeline.project import Project
from aqa_pipeline.runs.conformal import check_coverage
from aqa_pipeline.runs.folder import Run, read_run, run_folders
from aqa_pipeline.scoring.backbone import find_backbone
from aqa_pipeline.scoring.grad_cam import (
    LAST_LAYER,
    LayerCam,
    last_map_cam,
    require_captum,
    score_gradient,
)
from aqa_pipeline.scoring.heat_map import frame_heat
from aqa_pipeline.scoring.result import ScoredClip
from aqa_pipeline.scoring.scorer import Scorer
from aqa_pipeline.scoring.shapley import Contributions, mean_contributions, snippet_contributions
from aqa_pipeline.scoring.similarity import ShownExemplar, distances, shown_exemplars

FloatArray = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]

#: Frames a second where a source has no times, such as a folder of pictures; and the fastest
#: and slowest a clip is shown at.
_DEFAULT_RATE, _RATES = 25.0, (2.0, 60.0)

#: Told the stage of the work that begins: ``decoding``, ``network``, ``explaining``.
Tell = Callable[[str], None]


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
    encoder : MapEncoder
        The backbone of the scorer, giving whole maps.
    project : Project
        Where the exemplars' videos are looked for.
    layer_cam : LayerCam or None
        Grad-CAM on an earlier layer; None: on the last map.
    """

    def __init__(
        self,
        scorer: Scorer,
        encoder: MapEncoder,
        *,
        project: Project,
        layer_cam: LayerCam | None = None,
    ) -> None:
        self.scorer, self._encoder, self._project = scorer, encoder, project
        self._layer_cam = layer_cam
        self._reader = LimitedProcess(
            memory_bytes=scorer.config.decode_memory_bytes, seconds=scorer.config.decode_seconds
        )
        self._reader.start()

    def explain(
        self,
        video: str,
        *,
        name: str | None = None,
        start_frame: int | None = None,
        end_frame: int | None = None,
        category: str = "",
        difficulty: float | None = None,
        columns: Mapping[str, str] | None = None,
        tell: Tell = lambda stage: None,
    ) -> Explanation:
        """Score one clip of a video and find the reasons.

        Parameters
        ----------
        video : str
            A video file, or a folder of numbered pictures.
        name : str or None
            To be shown; None: the video's.
        start_frame, end_frame, category, difficulty, columns
            As for :meth:`aqa_pipeline.scoring.scorer.Scorer.score`.
        tell : callable
            Told each stage as it begins.

        Raises
        ------
        ClipError
            If the video cannot be read.
        UsageError
            If the run needs a category or difficulty that is not given.
        """
        scorer = self.scorer
        scorer.check_facts(category=category, difficulty=difficulty, columns=columns)
        tell("decoding")
        request = scorer.request(
            video, start_frame=start_frame, end_frame=end_frame, category=category
        )
        shown = self._read(video, request)
        tell("network")
        frames = np.ascontiguousarray(shown.clip.frames)
        maps = self._encoder.maps(frames)
        features = features_of(maps)
        scored = scorer.score_features(
            features, shown.clip, category=category, difficulty=difficulty, columns=columns
        )
        tell("explaining")
        runs = scorer.runs(category)
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
        distance = distances(run.exemplars, features)
        exemplars = shown_exemplars(
            run,
            distance,
            rows[0] if len(rows[0]) else np.arange(len(run.exemplars)),
            score=scored.score,
            project=self._project,
            read=lambda wanted: self._reader.call(read_shown_frames, wanted),
        )
        return Explanation(
            name=name or escape_unprintable(Path(video).name),
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
            path=_path(run, own[0], exemplars),
        )

    def _read(self, video: str, request: ClipRequest) -> ShownClip:
        with prefix_errors_with(video):
            shown: ShownClip = self._reader.call(read_shown_clip, request)
        return shown

    def close(self) -> None:
        """End the decoding processes."""
        self._reader.close()
        self.scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load_explainer(
    folder: Path,
    *,
    project: Project,
    weights: Path | None = None,
    device: str = DEVICE,
    coverage: float = ScoreConfig.coverage,
    decode_seconds: float = ScoreConfig.decode_seconds,
    layer: str = LAST_LAYER,
) -> Explainer:
    """Load a run folder and its backbone; the latter once, for scores and heat alike.

    Parameters
    ----------
    folder : Path
    project : Project
    weights, device, coverage, decode_seconds
        As for :meth:`aqa_pipeline.scoring.scorer.Scorer.load`.
    layer : str
        Whose map the heat is on; before the last one it takes captum and about four passes'
        time.

    Raises
    ------
    DataError
        If it is no run folder.
    CacheError
        If the run was fitted on features that no video can be turned into here.
    SetupError
        If the weights, or captum, are missing.
    """
    config = ScoreConfig(coverage=coverage, decode_seconds=decode_seconds)
    check_coverage(coverage)
    found = find_device(device)
    runs = [read_run(own, device=found) for own in run_folders(folder)]
    backbone = find_backbone(runs, weights, device=str(found))
    encoder = map_encoder(backbone.weights, runs[0].protocol, found, precision=backbone.precision)
    layer_cam = None
    if layer != LAST_LAYER:
        require_captum()
        layer_cam = LayerCam(load_i3d(backbone.weights)[0].to(found), encoder, layer)
    scorer = Scorer(runs, encoder, config=config)
    return Explainer(scorer, encoder, project=project, layer_cam=layer_cam)


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


def _path(run: Run, clip: FeatureSet, exemplars: Sequence[ShownExemplar]) -> TreePath | None:
    head = run.head
    if not (isinstance(head, Head) and isinstance(head.output, TreeOutput)):
        return None
    query = torch.from_numpy(clip.features[0]).to(head.device)
    if not head.is_contrastive:
        return tree_path(head, query)
    if not exemplars:  # the only one that votes is the clip itself
        return None
    row = exemplars[0].row
    return tree_path(
        head,
        query,
        exemplar=torch.from_numpy(run.exemplars.features[row]).to(head.device),
        exemplar_label=float(run.exemplars.label[row]),
    )


def _rate(seconds: npt.NDArray[np.float64]) -> float:
    """Frames a second at which a window plays in real time."""
    steps = np.diff(seconds)
    steps = steps[np.isfinite(steps) & (steps > 0)]  # a repeated frame takes no time
    rate = 1 / float(np.median(steps)) if steps.size else _DEFAULT_RATE
    return float(np.clip(rate, *_RATES))

"""A project, a run and an explainer whose network is a few averages: no weights, no waiting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_pipeline.backbone.encoder import Encoder
from aqa_pipeline.config import FitConfig, Protocol
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.media.reader import VideoReader
from aqa_pipeline.project import Project
from aqa_pipeline.runs.config import RunConfig
from aqa_pipeline.runs.folder import Run
from aqa_pipeline.scoring.explainer import Explainer
from aqa_pipeline.scoring.scorer import Scorer
from tests.support.drawn_run import drawn_run
from tests.support.small_project import make_project

PROTOCOL = Protocol(
    name="small",
    window_rule="last",
    window_frames=18,
    snippet_frames=9,
    snippet_starts=(0, 4, 9),
    pixels="demo",
    exemplar_key=("difficulty",),
    label_transform="raw",
    score_range=30.0,
    epsilon=30.0,
)
#: Another video than those of the project, of the same kind.
QUERY = "query.mp4"


class Averages:
    """In place of I3D: means over parts of the picture, six channels, maps of 2 x 4 x 4."""

    def feature_map(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool3d(x, (2, 4, 4))  # (S, 3, 2, 4, 4)
        return torch.cat([pooled, pooled.flip(3).square()], dim=1)

    def features_of_parts(self, parts: Iterable[Tensor]) -> Tensor:
        return self.feature_map(torch.cat(list(parts))).mean(dim=(2, 3, 4))


def project_of(root: Path) -> tuple[Project, Manifest]:
    """Videos and manifest ``small`` with this module's protocol."""
    manifest = make_project(root)
    write_protocol(manifest.path.with_suffix(".toml"), PROTOCOL)
    return Project(root), dataclasses.replace(manifest, protocol=PROTOCOL)


def run_of(manifest: Manifest, encoder: Encoder, **config: object) -> Run:
    """Drawn heads over the training clips of the manifest."""
    from aqa_pipeline.config import PIXEL_PRESETS
    from aqa_pipeline.datasets.locate import clip_positions
    from aqa_pipeline.media.snippets import clamp_positions

    rows = manifest.clips[manifest.clips["split"] == "train"]
    clips = {clip.clip_id: clip for clip in manifest.clip_list()}
    features = []
    for clip_id in rows["clip_id"]:
        clip = clips[clip_id]
        with VideoReader(clip.video, PIXEL_PRESETS["demo"]) as reader:
            wanted = clip_positions(PROTOCOL, clip, video_frames=None)
            wanted, _ = clamp_positions(wanted, video_frames=reader.index.num_frames)
            features.append(encoder(np.ascontiguousarray(reader.read(wanted).frames)))
    difficulty = rows["difficulty"].to_numpy(dtype=float)
    pool = FeatureSet(
        clip_id=tuple(rows["clip_id"]),
        features=np.stack(features),
        score=rows["score"].to_numpy(dtype=float),
        scale=difficulty,
        offset=np.zeros(len(rows)),
        difficulty=difficulty,
        category=("",) * len(rows),
        key=tuple((float(d),) for d in difficulty),
    )
    run = drawn_run(pool=pool, **config)  # type: ignore[arg-type]
    return dataclasses.replace(
        run,
        folder=manifest.path.parent.parent / "runs" / "small",
        protocol=PROTOCOL,
        fit_config=FitConfig(num_seeds=2, num_exemplars=None),
        config=RunConfig(dataset="small"),
    )


def explainer_of(root: Path, **config: object) -> Explainer:
    """Everything put together below ``root``; the query is ``root / QUERY``."""
    from tests.support.videos import write_video

    project, manifest = project_of(root)
    encoder = Encoder.of(Averages(), PROTOCOL, torch.device("cpu"))  # type: ignore[arg-type]
    run = run_of(manifest, encoder, **config)
    write_video(root / QUERY, 40, size=(160, 128))
    return Explainer(Scorer([run], encoder), encoder, project=project)

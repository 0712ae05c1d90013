"""The smallest fine-tuning: a thin network, one snippet of 9 frames of 64 x 64 pixels a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from aqa_pipeline.backbone.i3d import I3D
from aqa_pipeline.backbone.weights import WeightsInfo, weights_sha256, write_weights
from aqa_pipeline.config import PIXEL_PRESETS, HeadConfig, Protocol, Unfreeze
from aqa_pipeline.datasets.manifest import Manifest, read_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.finetune.model import PairModel, unfreeze
from aqa_pipeline.finetune.start import fresh_head
from aqa_pipeline.heads.head import Head
from tests.support.planted import planted_clips
from tests.support.random_i3d import THIN_DIM, thin_i3d
from tests.support.small_project import PROTOCOL, make_project

SMALL_HEAD = HeadConfig(num_groups=4, hidden=16, reduced_dim=4)
TINY = PIXEL_PRESETS["tiny"]
SNIPPETS = np.arange(9, dtype=np.int64)[None]


def small_model(
    *, first: Unfreeze = "all", checkpointing: bool = False, clips: int = 8, seed: int = 0
) -> tuple[PairModel, npt.NDArray[np.uint8], torch.Tensor]:
    """A model, the frames of some clips, uint8 (clips, 9, 64, 64, 3), and their labels."""
    backbone: I3D = thin_i3d(seed=seed)
    unfreeze(backbone, first)
    rng = np.random.default_rng(seed)
    known = planted_clips(clips, difficulties=(2.0,))
    head: Head = fresh_head(
        SMALL_HEAD,
        known,
        np.arange(clips),
        rng.normal(1, 0.3, size=(clips, 1, THIN_DIM)).astype(np.float32),
        score_range=None,
        epsilon=30.0,
        seed=seed,
    )
    model = PairModel(backbone, head, snippets=SNIPPETS, pixels=TINY, checkpointing=checkpointing)
    frames = rng.integers(0, 256, size=(clips, 9, 64, 64, 3), dtype=np.uint8)
    return model, frames, torch.from_numpy(known.label)


def write_thin_weights(path: Path, *, seed: int = 0) -> Path:
    """A file of weights of the thin network, which only :func:`load_thin_i3d` can load."""
    state = thin_i3d(seed=seed).state_dict()
    info = WeightsInfo(path, "aqa", weights_sha256(state), 0, 0, source="a test")
    write_weights(state, path, info)
    return path


def load_thin_i3d(path: Path) -> tuple[I3D, WeightsInfo]:
    """:func:`aqa_pipeline.backbone.weights.load_i3d` for the thin network."""
    state = load_file(path)
    model = thin_i3d()
    model.load_state_dict(state)
    return model, WeightsInfo(path, "aqa", weights_sha256(state), 0, 0, source="a test")


def make_tuning_project(root: Path, **sizes: Any) -> Manifest:
    """A project of tiny clips with the protocol at 64 pixels, and ``w.safetensors``."""
    manifest = make_project(root, **sizes)
    protocol: Protocol = replace(PROTOCOL, pixels="tiny", shift_frames=1)
    write_protocol(manifest.path.with_suffix(".toml"), protocol)
    write_thin_weights(root / "w.safetensors")
    (root / "aqa.toml").touch()
    return read_manifest(manifest.path)

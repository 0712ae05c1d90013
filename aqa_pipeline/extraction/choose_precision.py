"""``--precision auto``: on a GPU the quickest precision whose features are still the same.

First the precision of the cache that is there, so that a second run goes on where the
first one stopped; without a cache, the quickest one that agrees with float32 on snippets
of the data set itself. A CPU computes in float32.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.backbone.precision import (
    FLOAT32,
    LEAST_COSINE,
    PRECISIONS,
    Array,
    choose,
    supported_precisions,
)
from aqa_pipeline.cache.fingerprint import FILE_NAME, cache_folder, fingerprint_of
from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.datasets.locate import locate, video_index_folder
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import ClipError, SetupError, UsageError

_log = logging.getLogger(__name__)

_SAMPLE_CLIPS = 2


def find_precision(
    asked: str,
    *,
    device: str,
    manifest: Manifest,
    cache_root: Path,
    weights: Path,
    weights_sha256: str,
    compares: bool = True,
) -> str:
    """What ``asked``, which may be ``auto``, means on a device for a data set.

    Parameters
    ----------
    compares : bool
        Off: expect that the quickest agrees with float32, instead of computing some clips;
        for a plan that is only shown.

    Raises
    ------
    UsageError
        Anything but float32 on a CPU, or no such precision.
    SetupError
        The GPU has no hardware for it, or the weights are damaged.
    """
    if asked not in ("auto", *PRECISIONS):
        raise UsageError(f"precision {asked!r} is none of auto, {', '.join(PRECISIONS)}")
    if device == "cpu":
        if asked not in ("auto", FLOAT32):
            raise UsageError(
                f"--precision {asked} needs a GPU: on a CPU it is tens of times slower than "
                "float32, and the device here is the CPU"
            )
        return FLOAT32
    import torch

    supported = supported_precisions(torch.device(device))
    if asked != "auto":
        if asked not in supported:
            raise SetupError(
                f"{device} has no hardware for {asked}; type --precision {supported[0]}, or auto"
            )
        return asked
    there = cached_precision(
        supported, manifest=manifest, cache_root=cache_root, weights_sha256=weights_sha256
    )
    if there is not None:
        _log.info("precision %s, as in the cache that is there", there)
        return there
    if not compares:
        _log.info("precision %s, if its features agree with float32", supported[0])
        return supported[0]
    windows = sample_windows(manifest, index_folder=video_index_folder(cache_root))
    if not windows:
        _log.warning("no clip could be decoded to compare precisions with: float32")
        return FLOAT32

    def features(precision: str) -> Array:
        encode = i3d_backbone(weights, manifest.protocol, device=device, precision=precision)()
        return np.concatenate([encode(window) for window in windows])

    choice = choose(supported, features)
    tried = ", ".join(f"{name} {cosine:.5f}" for name, cosine in choice.cosines.items())
    fell_back = choice.precision != supported[0]
    _log.log(
        logging.WARNING if fell_back else logging.INFO,
        "precision %s (cosine to float32: %s; at least %g is asked for)",
        choice.precision,
        tried,
        LEAST_COSINE,
    )
    return choice.precision


def cached_precision(
    supported: Sequence[str], *, manifest: Manifest, cache_root: Path, weights_sha256: str
) -> str | None:
    """The precision of the cache that a data set has with these weights; None: no cache."""
    for precision in supported:
        fingerprint = fingerprint_of(
            manifest.protocol, weights_sha256=weights_sha256, precision=precision
        )
        if (cache_folder(cache_root, manifest.name, fingerprint) / FILE_NAME).exists():
            return precision
    return None


def sample_windows(manifest: Manifest, *, index_folder: Path) -> list[npt.NDArray[np.uint8]]:
    """Frames of the first few clips that can be decoded, each (window, crop, crop, 3)."""
    from aqa_pipeline.media.clip import DecodeTask, read_clip  # brings the video decoder
    from aqa_pipeline.media.sandbox import LimitedProcess

    located, _ = locate(manifest, index_folder=index_folder)
    windows: list[npt.NDArray[np.uint8]] = []
    with LimitedProcess() as process:
        for item in located:
            task = DecodeTask(
                clip_id=item.clip.clip_id,
                video=item.clip.video,
                positions=item.positions,
                pixels=PIXEL_PRESETS[manifest.protocol.pixels],
                index_folder=index_folder,
                strict_window=False,
            )
            with contextlib.suppress(ClipError):
                windows.append(process.call(read_clip, task).frames)
            if len(windows) == _SAMPLE_CLIPS:
                break
    return windows

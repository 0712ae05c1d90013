"""Encoders: from the frames of a clip to the features of its snippets.

On a CPU the batch is exactly one clip's snippets, so that no feature depends on which
clips were extracted beside it; on a GPU several clips share one
(:mod:`aqa_pipeline.backbone.gpu_encoder`). Nothing is loaded before the first clip needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.media.snippets import snippet_index

if TYPE_CHECKING:
    import torch

    from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
    from aqa_pipeline.backbone.i3d import I3D

#: Frames of one clip, uint8 (window_frames, crop, crop, 3), to snippet features, float32
#: (snippets, dim).
Encode = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

#: Loads the network; called only when there is a clip to extract.
Backbone = Callable[[], Encode]


def i3d_backbone(
    weights: Path,
    protocol: Protocol,
    *,
    device: str = "cpu",
    precision: str = "float32",
    num_clips: int = 0,
) -> Backbone:
    """The fast form of I3D for a protocol's clips.

    Parameters
    ----------
    weights : Path
    protocol : Protocol
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    precision : str
        One of ``float32``, ``tf32``, ``bf16``, ``fp16``; all but the first need a GPU, see
        :mod:`aqa_pipeline.backbone.precision`.
    num_clips : int
        How many there are to extract, as far as known: for many, a GPU tries out how it
        computes the network best.

    Returns
    -------
    callable
        Raises SetupError when called and the weights are missing or damaged, or the GPU
        has too little memory. What it returns takes one clip at a time; on a GPU it is a
        :class:`~aqa_pipeline.backbone.gpu_encoder.BatchedEncoder`.
    """

    def load() -> Encode:
        import torch

        from aqa_pipeline.backbone.weights import load_i3d

        model, _ = load_i3d(weights)
        where = torch.device(device)
        if where.type == "cpu":
            return _on_cpu(model, protocol)
        return _on_gpu(model, protocol, where, precision, num_clips)

    return load


def _on_cpu(model: I3D, protocol: Protocol) -> Encode:
    import torch

    from aqa_pipeline.backbone.fast import fast_form, snippets_at_once
    from aqa_pipeline.backbone.i3d import normalise

    network = fast_form(model)
    pixels = PIXEL_PRESETS[protocol.pixels]
    index = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)

    at_once = snippets_at_once(protocol.snippet_frames, pixels.crop, pixels.crop)
    parts = [index[first : first + at_once] for first in range(0, len(index), at_once)]

    def encode(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # Each part (n, snippet_frames, crop, crop, 3): all at once would be 100 MB of floats.
        snippets = (normalise(torch.from_numpy(frames[part]), pixels) for part in parts)
        features: npt.NDArray[np.float32] = network.features_of_parts(snippets).numpy()
        return features

    return encode


#: Full batches from which on trying out pays, which takes some seconds.
_BATCHES_WORTH_A_TRIAL = 100


def _on_gpu(
    model: I3D, protocol: Protocol, device: torch.device, precision: str, num_clips: int
) -> BatchedEncoder:
    import torch

    from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
    from aqa_pipeline.backbone.gpu_form import gpu_form
    from aqa_pipeline.backbone.gpu_network import GpuNetwork
    from aqa_pipeline.backbone.precision import dtype_of

    dtype = dtype_of(precision)
    pixels = PIXEL_PRESETS[protocol.pixels]
    network = GpuNetwork(gpu_form(model, pixels).to(device=device, dtype=dtype), precision)
    num_snippets = len(protocol.snippet_starts)
    encoder = BatchedEncoder(
        network,
        pixels=pixels,
        index=snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames),
        window_frames=protocol.window_frames,
        device=device,
        dtype=dtype,
        batch=num_snippets,
        facts={
            "device": str(device),
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        },
    )
    if num_clips > 1:  # else one clip is a batch
        encoder.find_batch()
        num_batches = num_clips * num_snippets / encoder.batch
        network.tries_out = num_batches >= _BATCHES_WORTH_A_TRIAL
    return encoder

"""Encoders: from the frames of a clip to the features of its snippets.

On a CPU the batch is exactly one clip's snippets, so that no feature depends on which
clips were extracted beside it; on a GPU several clips share one
(:mod:`aqa_pipeline.backbone.gpu_encoder`). The score needs the mean over a map's positions, a
heat-map needs the map: one pass gives both, on a CPU with the same features to the bit; a GPU
rounds otherwise in batches of another size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aqa_pipeline.backbone.precision import FLOAT32
from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset, Protocol
from aqa_pipeline.media.snippets import snippet_index

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aqa_pipeline.backbone.fast import FastI3D
    from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
    from aqa_pipeline.backbone.i3d import I3D

Frames = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

#: Frames of one clip, uint8 (window_frames, crop, crop, 3), to snippet features, float32
#: (snippets, dim).
Encode = Callable[[Frames], FloatArray]

#: Loads the network; called only when there is a clip to extract.
Backbone = Callable[[], Encode]

#: Full batches from which on trying out pays, which takes some seconds.
_BATCHES_WORTH_A_TRIAL = 100


class Encoder:
    """A network that takes one clip at a time.

    Parameters
    ----------
    network : FastI3D
        On the device.
    pixels : PixelPreset
    index : ndarray of int64, shape=(S, snippet_frames)
        Frames of every snippet, as indices into the window.
    device : torch.device
    precision : str
        Of the network, whose weights have its type.
    """

    def __init__(
        self,
        network: FastI3D,
        *,
        pixels: PixelPreset,
        index: npt.NDArray[np.int64],
        device: torch.device,
        precision: str = FLOAT32,
    ) -> None:
        self._network, self._device, self._precision = network, device, precision
        self._pixels, self._index = pixels, index

    @classmethod
    def of(
        cls,
        network: FastI3D,
        protocol: Protocol,
        device: torch.device,
        precision: str = FLOAT32,
    ) -> Encoder:
        """The encoder for a protocol's clips."""
        index = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)
        pixels = PIXEL_PRESETS[protocol.pixels]
        return cls(network, pixels=pixels, index=index, device=device, precision=precision)

    def __call__(self, frames: Frames) -> FloatArray:
        """Snippet features of a clip, (window_frames, crop, crop, 3) to (S, D)."""
        if self._device.type != "cpu":
            return features_of(self.maps(frames))
        from aqa_pipeline.backbone.fast import snippets_at_once

        # Each part (n, 3, T, crop, crop): all at once would be 100 MB of floats.
        length, crop = self._index.shape[1], self._pixels.crop
        step = snippets_at_once(length, crop, crop)
        parts = (self._index[first : first + step] for first in range(0, len(self._index), step))
        snippets = (self._input(frames, part) for part in parts)
        features: FloatArray = self._network.features_of_parts(snippets).numpy()
        return features

    def snippets(self, frames: Frames) -> Tensor:
        """The network's input, shape=(S, 3, T, H, W); frames (window_frames, H, W, 3)."""
        return self._input(frames, self._index)

    def maps(self, frames: Frames) -> Tensor:
        """Last map of each snippet, shape=(S, D, T', H', W')."""
        from aqa_pipeline.backbone.precision import computing_in

        with computing_in(self._precision) as dtype:
            return self._network.feature_map(self.snippets(frames).to(dtype))

    def _input(self, frames: Frames, index: npt.NDArray[np.int64]) -> Tensor:
        import torch

        from aqa_pipeline.backbone.i3d import normalise

        return normalise(torch.from_numpy(frames[index]).to(self._device), self._pixels)


def features_of(maps: Tensor) -> FloatArray:
    """Snippet features from their maps, (S, D, T', H', W') -> (S, D)."""
    import torch

    # Summed in float32 also where the map is in half precision, as the backbone does.
    features: FloatArray = maps.mean(dim=(2, 3, 4), dtype=torch.float32).cpu().numpy()
    return features


def i3d_backbone(
    weights: Path,
    protocol: Protocol,
    *,
    device: str = "cpu",
    precision: str = FLOAT32,
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

        where = torch.device(device)
        if where.type == "cpu":
            return map_encoder(weights, protocol, where)
        from aqa_pipeline.backbone.weights import load_i3d

        return _on_gpu(load_i3d(weights)[0], protocol, where, precision, num_clips)

    return load


def map_encoder(
    weights: Path, protocol: Protocol, device: torch.device, *, precision: str = FLOAT32
) -> Encoder:
    """Load the encoder that gives whole maps too; parameters as :func:`i3d_backbone`.

    Raises
    ------
    SetupError
        If the weights are missing or damaged.
    """
    from aqa_pipeline.backbone.fast import fast_form
    from aqa_pipeline.backbone.precision import dtype_of
    from aqa_pipeline.backbone.weights import load_i3d

    network = fast_form(load_i3d(weights)[0], winograd=device.type == "cpu")
    if device.type != "cpu":
        network.to(device=device, dtype=dtype_of(precision))
    return Encoder.of(network, protocol, device, precision)


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

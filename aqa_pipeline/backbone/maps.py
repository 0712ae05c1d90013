"""The last feature map of every snippet of a clip, where an encoder gives only its mean.

The score needs the mean over the map's positions, the heat-map needs the map: one pass gives
both, and the features are those that :func:`aqa_pipeline.backbone.encoder.i3d_backbone` gives: on a
CPU to the bit; a GPU rounds otherwise in batches of another size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol as TypingProtocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.backbone.fast import fast_form
from aqa_pipeline.backbone.i3d import normalise
from aqa_pipeline.backbone.precision import FLOAT32, computing_in, dtype_of
from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.media.snippets import snippet_index

FloatArray = npt.NDArray[np.float32]


Frames = npt.NDArray[np.uint8]


class HasMaps(TypingProtocol):
    """A backbone in its inference form, such as :class:`aqa_pipeline.backbone.fast.FastI3D`."""

    def feature_map(self, x: Tensor) -> Tensor: ...


class MapEncoder:
    """A backbone for a protocol's clips.

    Parameters
    ----------
    network : HasMaps
        On the device.
    protocol : Protocol
    device : torch.device
    precision : str
        Of the network, whose weights have its type.
    """

    def __init__(
        self,
        network: HasMaps,
        protocol: Protocol,
        device: torch.device,
        precision: str = FLOAT32,
    ) -> None:
        self._network, self._device, self._precision = network, device, precision
        self._pixels = PIXEL_PRESETS[protocol.pixels]
        self._index = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)

    def snippets(self, frames: Frames) -> Tensor:
        """The network's input, shape=(S, 3, T, H, W); frames (window_frames, H, W, 3)."""
        return normalise(torch.from_numpy(frames[self._index]).to(self._device), self._pixels)

    def maps(self, frames: Frames) -> Tensor:
        """Last map of each snippet, shape=(S, D, T', H', W')."""
        with computing_in(self._precision) as dtype:
            return self._network.feature_map(self.snippets(frames).to(dtype))

    def __call__(self, frames: Frames) -> FloatArray:
        """Snippet features, shape=(S, D): what :data:`.Encode` asks for."""
        return features_of(self.maps(frames))


def features_of(maps: Tensor) -> FloatArray:
    """Snippet features from their maps, (S, D, T', H', W') -> (S, D)."""
    # Summed in float32 also where the map is in half precision, as the backbone does.
    features: FloatArray = maps.mean(dim=(2, 3, 4), dtype=torch.float32).cpu().numpy()
    return features


def map_encoder(
    weights: Path, protocol: Protocol, device: torch.device, *, precision: str = FLOAT32
) -> MapEncoder:
    """The quick form of I3D; parameters as :func:`aqa_pipeline.backbone.encoder.i3d_backbone`.

    Raises
    ------
    SetupError
        If the weights are missing or damaged.
    """
    model, _ = load_i3d(weights)
    if device.type == "cpu":
        return MapEncoder(fast_form(model), protocol, device)
    network = fast_form(model, winograd=False)
    network.to(device=device, dtype=dtype_of(precision))
    return MapEncoder(network, protocol, device, precision)

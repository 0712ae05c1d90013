"""The I3D network, its weights, and frames to features."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.backbone.encoder import Encoder as Encoder
    from aqa_pipeline.backbone.i3d import I3D as I3D
    from aqa_pipeline.backbone.weights import fetch_weights as fetch_weights
    from aqa_pipeline.backbone.weights import load_i3d as load_i3d
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        encoder="Encoder",
        i3d="I3D",
        weights="fetch_weights load_i3d",
    )

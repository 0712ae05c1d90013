"""I3D with drawn weights, for the tests that need the network but not what it learned.

The thin form has an eighth of the channels everywhere and costs a thirtieth.
"""

from __future__ import annotations

import torch
from torch import nn

from aqa_pipeline.backbone.i3d import FEATURE_DIM, I3D, MIXED_CHANNELS, NUM_CLASSES, Mixed, Unit

THIN_DIM = FEATURE_DIM // 8


def random_i3d(*, seed: int = 0, unit_scale: bool = False) -> I3D:
    """Kernels of size one over fan-in, every BatchNorm tensor drawn.

    ``unit_scale`` leaves the scales at one, as all published layouts have them.
    """
    with torch.device("meta"):
        model = I3D()
    return _drawn(model, seed=seed, unit_scale=unit_scale)


def thin_i3d(*, seed: int = 0) -> I3D:
    """The same network with an eighth of the channels."""
    with torch.device("meta"):
        model = I3D()
        model.conv_1a = Unit(3, 8, size=7, stride=2)
        model.conv_2b = Unit(8, 8)
        model.conv_2c = Unit(8, 24, size=3)
        for name, channels in MIXED_CHANNELS.items():
            setattr(model, name, Mixed(*(c // 8 for c in channels)))
        model.classifier = nn.Conv3d(THIN_DIM, NUM_CLASSES, 1)
    return _drawn(model, seed=seed, unit_scale=True)


def _drawn(model: I3D, *, seed: int, unit_scale: bool) -> I3D:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, meta in model.state_dict().items():
        noise = torch.randn(meta.shape, generator=generator)
        if name.endswith("weight"):
            state[name] = noise * (2.0 / meta[0].numel()) ** 0.5
        elif name.endswith(("variance", "scale")):
            one = unit_scale and name.endswith("scale")
            state[name] = torch.ones(meta.shape) if one else 0.5 + noise.abs()
        else:
            state[name] = 0.2 * noise
    model.load_state_dict(state, assign=True)
    return model.eval()

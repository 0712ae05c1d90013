"""I3D with drawn weights, for the tests that need the network but not what it learned."""

from __future__ import annotations

import torch

from aqa_pipeline.i3d import I3D


def random_i3d(*, seed: int = 0, unit_scale: bool = False) -> I3D:
    """Kernels of size one over fan-in, every BatchNorm tensor drawn.

    ``unit_scale`` leaves the scales at one, as all published layouts have them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = I3D()
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

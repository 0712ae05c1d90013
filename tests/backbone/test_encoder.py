"""The network as stage one uses it: the same features, however it takes its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_pipeline.backbone.encoder import i3d_backbone
from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
from aqa_pipeline.backbone.gpu_form import gpu_form
from aqa_pipeline.backbone.gpu_network import GpuNetwork
from aqa_pipeline.backbone.i3d import I3D, normalise
from aqa_pipeline.backbone.precision import dtype_of
from aqa_pipeline.backbone.weights import convert_weights
from aqa_pipeline.config import PIXEL_PRESETS, Protocol
from aqa_pipeline.errors import SetupError
from tests.support.random_i3d import random_i3d

PROTOCOL = Protocol(
    "x", window_frames=14, snippet_frames=9, snippet_starts=(0, 2, 5), pixels="demo"
)


@pytest.fixture(scope="module")
def model() -> I3D:
    return random_i3d(seed=3, unit_scale=True)


@pytest.fixture(scope="module")
def weights(model: I3D, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    save_file(model.state_dict(), folder / "raw.safetensors")
    return convert_weights(folder / "raw.safetensors", folder / "w.safetensors")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (14, 112, 112, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(model: I3D, frames: np.ndarray) -> np.ndarray:
    snippets = torch.from_numpy(np.stack([frames[start : start + 9] for start in (0, 2, 5)]))
    with torch.inference_mode():
        return model.features(normalise(snippets, PIXEL_PRESETS["demo"])).numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_cpu_form_gives_the_plain_features(
    weights: Path, frames: np.ndarray, expected: np.ndarray
) -> None:
    encode = i3d_backbone(weights, PROTOCOL)()
    found = encode(frames)
    assert found.dtype == np.float32
    assert relative_error(found, expected) < 1e-4
    assert encode(frames).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("tf32", 1e-4), ("fp16", 0.01), ("bf16", 0.05)]
)
def test_the_form_for_a_gpu_gives_them_too(
    model: I3D, frames: np.ndarray, expected: np.ndarray, precision: str, tolerance: float
) -> None:
    """On a CPU, slowly: the arithmetic is what is tested."""
    dtype = dtype_of(precision)
    network = GpuNetwork(gpu_form(model, PIXEL_PRESETS["demo"]).to(dtype=dtype), precision)
    encoder = BatchedEncoder(
        network,
        pixels=PIXEL_PRESETS["demo"],
        index=np.array([[start + i for i in range(9)] for start in (0, 2, 5)]),
        window_frames=14,
        device=torch.device("cpu"),
        dtype=dtype,
        batch=2,
    )
    assert relative_error(encoder(frames), expected) < tolerance


def test_nothing_is_read_before_it_is_called(tmp_path: Path) -> None:
    load = i3d_backbone(tmp_path / "none.safetensors", PROTOCOL)
    with pytest.raises(SetupError, match=r"none\.safetensors"):
        load()

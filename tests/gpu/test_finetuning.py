"""A step of fine-tuning on a GPU has the CPU's gradients, in each precision and however cut."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aqa_pipeline.backbone.i3d import I3D
from aqa_pipeline.backbone.precision import agreement, computing_in
from aqa_pipeline.config import PIXEL_PRESETS, FinetuneConfig, FitConfig, HeadConfig
from aqa_pipeline.finetune.draws import PLAIN_VIEW, StepDraw
from aqa_pipeline.finetune.model import PairModel, unfreeze
from aqa_pipeline.finetune.start import fresh_head
from aqa_pipeline.finetune.step import TrainStep
from tests.gpu.conftest import REHEARSAL, Reading
from tests.support.planted import planted_clips

pytestmark = pytest.mark.gpu

Precision = Literal["float32", "bfloat16", "float16"]
CASES: list[tuple[Precision, bool, int]] = [
    ("float32", False, 4),
    ("float32", False, 1),
    ("float32", True, 4),
    ("bfloat16", False, 4),
    ("bfloat16", True, 1),
    ("float16", False, 2),
]
Gradients = list[npt.NDArray[np.float32]]


def gradients(
    device: torch.device,
    precision: Precision = "float32",
    checkpoints: bool = False,
    at_once: int = 4,
) -> tuple[float, Gradients]:
    """Loss of a step of four pairs, and the gradients of three layers."""
    data = planted_clips(6, snippets=2, dim=1024)
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 64, 64, 3), dtype=np.uint8)
    pairs = np.array([[0, 1], [1, 2], [3, 4], [4, 5]])
    draw = StepDraw(pairs, dict.fromkeys(range(6), PLAIN_VIEW))
    torch.manual_seed(0)
    backbone = I3D()
    for parameter in backbone.parameters():
        if parameter.ndim == 5:
            torch.nn.init.kaiming_normal_(parameter)
    unfreeze(backbone, "all")
    known = np.random.default_rng(1).normal(size=(6, 2, 1024)).astype(np.float32)
    head = fresh_head(
        HeadConfig(), data, np.arange(6), known, score_range=30.0, epsilon=30.0, seed=0
    )
    model = PairModel(
        backbone.to(device),
        head.to(device),
        snippets=np.arange(32).reshape(2, 16),
        pixels=PIXEL_PRESETS["kinetics"],
        precision=precision,
        checkpointing=checkpoints,
    ).to(device)
    stepper = TrainStep(
        model,
        label=torch.from_numpy(data.label).to(device),
        fit_config=FitConfig(),
        config=FinetuneConfig(),
        micro_batch_pairs=at_once,
    )
    with computing_in("float32"):
        outcome = stepper.backward(draw, lambda rows: torch.from_numpy(frames[rows]).to(device))
    scale = stepper.scaler.get_scale() if precision == "float16" else 1.0
    layers = (
        model.backbone.conv_1a.conv.weight,
        model.backbone.mixed_5c.b0.conv.weight,
        model.head.query_weight,
    )
    grads = [layer.grad for layer in layers if layer.grad is not None]
    assert len(grads) == len(layers)
    loss = float(outcome.regression) + float(outcome.classification)
    return loss, [(grad / scale).float().cpu().flatten().numpy() for grad in grads]


@pytest.fixture(scope="module")
def on_cpu() -> tuple[float, Gradients]:
    return gradients(torch.device("cpu"))


@pytest.mark.parametrize("case", CASES[1:2] if REHEARSAL else CASES, ids=str)
def test_gradients_are_the_cpus(
    on_cpu: tuple[float, Gradients],
    device: torch.device,
    reading: Reading,
    case: tuple[Precision, bool, int],
) -> None:
    loss, found = gradients(device, *case)
    cosine = min(agreement(a[None], b[None]) for a, b in zip(found, on_cpu[1], strict=True))
    reading(f"fine-tuning {case}", f"loss off by {loss - on_cpu[0]:.1e}, cosine {cosine:.5f}")
    assert cosine > {"float32": 0.9999, "float16": 0.95, "bfloat16": 0.9}[case[0]]

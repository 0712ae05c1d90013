"""One step of fine-tuning: its gradients are those of a plain loop, however it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from aqa_pipeline.backbone.i3d import normalise
from aqa_pipeline.config import FinetuneConfig, FitConfig, Unfreeze
from aqa_pipeline.finetune.draws import PLAIN_VIEW, StepDraw
from aqa_pipeline.finetune.model import PairModel
from aqa_pipeline.finetune.step import TrainStep, learning_rate_factor
from tests.support.tuning_data import TINY, small_model

pytestmark = pytest.mark.usefixtures("one_thread")

#: Clip 3 is in two pairs, 5 is paired with itself.
PAIRS = np.array([[0, 3], [5, 5], [3, 1]], dtype=np.int64)


def draw_of(pairs: npt.NDArray[np.int64]) -> StepDraw:
    return StepDraw(pairs, dict.fromkeys(np.unique(pairs).tolist(), PLAIN_VIEW))


def stepper_of(
    model: PairModel, label: Tensor, *, micro_batch_pairs: int, **config: float
) -> TrainStep:
    return TrainStep(
        model,
        label=label,
        fit_config=FitConfig(learning_rate=1e-3, weight_decay=0.0),
        config=FinetuneConfig(**config),  # type: ignore[arg-type]
        micro_batch_pairs=micro_batch_pairs,
    )


def gradients(model: PairModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def plain_gradients(
    model: PairModel, frames: npt.NDArray[np.uint8], label: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """The loop one would write by hand: every pair, both orders, each clip encoded anew."""
    head = model.head
    model.zero_grad(set_to_none=True)
    total = 0.0
    for a, b in PAIRS.tolist():
        for query, exemplar in ((a, b), (b, a)):
            features = [
                model.backbone.features(normalise(torch.from_numpy(frames[row : row + 1]), TINY))
                for row in (query, exemplar)
            ]
            of_query, of_exemplar = (head.embed(f.view(1, 1, -1)) for f in features)
            hidden = (
                torch.bmm(of_query, head.query_weight.mT)
                + torch.bmm(of_exemplar, head.exemplar_weight.mT)
                + head.label_weight.mT * (label[exemplar] / head.epsilon).float()
                + head.bias.mT
            )
            (labels,) = head.output.labels((label[query] - label[exemplar]).view(1, 1, 1))
            loss = head.output.losses(hidden.relu(), labels).sum() / (2 * len(PAIRS))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    return total, gradients(model)


@pytest.fixture(scope="module")
def by_hand() -> tuple[float, dict[str, Tensor]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, frames, label = small_model()
    found = plain_gradients(model, frames, label)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize(
    ("micro_batch_pairs", "checkpointing"), [(3, False), (2, True), (1, False)]
)
def test_a_steps_gradients_equal_a_plain_loops(
    by_hand: tuple[float, dict[str, Tensor]], micro_batch_pairs: int, checkpointing: bool
) -> None:
    loss, wanted = by_hand
    model, frames, label = small_model(checkpointing=checkpointing)
    asked: list[int] = []

    def frames_of(rows: Sequence[int]) -> Tensor:
        asked.extend(rows)
        return torch.from_numpy(frames[list(rows)])

    stepper = stepper_of(model, label, micro_batch_pairs=micro_batch_pairs)
    outcome = stepper.backward(draw_of(PAIRS), frames_of)
    assert sorted(asked) == [0, 1, 3, 5], "each clip is encoded once a step"
    assert outcome.num_clips == 4
    assert outcome.classification + outcome.regression == pytest.approx(loss, rel=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    assert any(name.endswith("norm.scale") for name in found), "the affine part learns"
    for name, gradient in wanted.items():
        error, size = float((found[name] - gradient).norm()), float(gradient.norm())
        # Rounding tips a ReLU or a max pool over here and there, which the layers below feel.
        near = name.startswith(("head", "backbone.mixed_5"))
        assert error <= (1e-4 if near else 2e-2) * size, name


def test_statistics_of_batch_norm_and_frozen_layers_stay() -> None:
    model, frames, label = small_model(first="mixed_5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stepper = stepper_of(model, label, micro_batch_pairs=4)
    stepper.step(draw_of(PAIRS), lambda rows: torch.from_numpy(frames[rows]))
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    of_backbone = {name.split(".")[1] for name in changed if name.startswith("backbone.")}
    assert of_backbone == {"mixed_5b", "mixed_5c"}
    assert not any(name.endswith((".mean", ".variance", "standardise.std")) for name in changed)
    assert "backbone.mixed_5c.b0.norm.shift" in changed
    assert "head.query_weight" in changed


@pytest.mark.parametrize("first", ["mixed_3", "mixed_5"])
def test_frozen_layers_do_not_change_the_loss(
    by_hand: tuple[float, dict[str, Tensor]], first: Unfreeze
) -> None:
    model, frames, label = small_model(first=first)
    outcome = stepper_of(model, label, micro_batch_pairs=4).backward(
        draw_of(PAIRS), lambda rows: torch.from_numpy(frames[rows])
    )
    assert outcome.classification + outcome.regression == pytest.approx(by_hand[0], rel=1e-4)
    wanted = {name for name in by_hand[1] if name in gradients(model)}
    for name in wanted & {"backbone.mixed_5c.b3.conv.weight", "head.bias"}:
        torch.testing.assert_close(gradients(model)[name], by_hand[1][name], rtol=1e-3, atol=1e-6)


def test_a_long_gradient_is_cut() -> None:
    model, frames, label = small_model(first="mixed_5")
    stepper = stepper_of(model, label, micro_batch_pairs=4, clip_norm=1e-3)
    stepper.step(draw_of(PAIRS), lambda rows: torch.from_numpy(frames[rows]))
    norm = torch.cat([g.flatten() for g in gradients(model).values()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_head_and_the_backbone_have_their_own_learning_rate() -> None:
    model, _, label = small_model(first="mixed_5")
    stepper = stepper_of(model, label, micro_batch_pairs=4, backbone_learning_rate=1e-4)
    assert stepper.learning_rates == (1e-3, 1e-4)
    stepper.set_rates(0.5)
    assert stepper.learning_rates == (5e-4, 5e-5)


def test_learning_rates_rise_and_fall() -> None:
    constant = FinetuneConfig(warmup_steps=4)
    factors = [learning_rate_factor(constant, step=s, total=20) for s in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = FinetuneConfig(warmup_steps=2, schedule="cosine")
    factors = [learning_rate_factor(cosine, step=s, total=12) for s in range(12)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(factors[2:]))
    assert 0 < factors[-1] < 0.03

"""Layers as a GPU trains them, run on a CPU: the same numbers and gradients, less kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aqa_pipeline.backbone.i3d import I3D, LAYERS, max_pool_same, normalise
from aqa_pipeline.finetune import folded
from aqa_pipeline.finetune.folded import folded_layer, lay_out_channels_last, max_pool
from aqa_pipeline.finetune.model import PairModel
from tests.support.random_i3d import thin_i3d
from tests.support.tuning_data import TINY, small_model

pytestmark = pytest.mark.usefixtures("one_thread")


def by_layers(backbone: I3D, x: Tensor, *, is_folded: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The last map, and the gradients of a weighted sum of it."""
    backbone.zero_grad(set_to_none=True)
    for name, _ in LAYERS:
        x = folded_layer(backbone, name, x) if is_folded else backbone.layer(name, x)
    x = x.float()
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)
    (x * weights).mean().backward()  # type: ignore[no-untyped-call]
    named = backbone.named_parameters()
    return x.detach(), {name: p.grad for name, p in named if p.grad is not None}


def clip(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 9, 64, 64, 3), generator=draw, dtype=torch.uint8)
    return normalise(frames, TINY)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_numbers_are_those_of_the_plain_layers(channels_last: bool) -> None:
    backbone = thin_i3d(seed=1).double()
    plain, wanted = by_layers(backbone, clip().double(), is_folded=False)
    if channels_last:
        lay_out_channels_last(backbone)
        assert backbone.mixed_3b.b1b.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    found, gradients = by_layers(backbone, clip().double(), is_folded=True)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)
    assert gradients.keys() == wanted.keys()
    assert any(name.endswith("norm.scale") for name in gradients)
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-9 * float(gradient.norm()), name
        assert gradients[name].stride() == backbone.get_parameter(name).stride()


def cosine(a: dict[str, Tensor], b: dict[str, Tensor], kind: str) -> float:
    """Of the gradients of all parameters of a kind."""
    one, other = (
        torch.cat([g.flatten() for name, g in of.items() if name.endswith(kind)]) for of in (a, b)
    )
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


KINDS = ("conv.weight", "norm.scale", "norm.shift")


def test_in_bfloat16_gradients_are_as_near_to_float32_as_the_plain_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A CPU's own padding of tiny maps in bfloat16 now and then gives NaN as weight gradient.
    monkeypatch.setattr(folded, "_both_sides", lambda *_, **__: None)
    backbone = thin_i3d(seed=1)
    _, wanted = by_layers(backbone, clip(), is_folded=False)
    errors: dict[bool, dict[str, float]] = {}
    for is_folded in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, found = by_layers(backbone, clip(), is_folded=is_folded)
        errors[is_folded] = {kind: 1 - cosine(wanted, found, kind) for kind in KINDS}
    for kind, error in errors[True].items():
        assert error < max(2 * errors[False][kind], 1e-3), (kind, errors)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3), (2, 2, 2)])
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("size", [(2, 7, 8), (3, 2, 5), (1, 1, 4), (5, 9, 6)])
def test_the_pool_is_the_padded_one(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) - 5
    wanted = max_pool_same(x, kernel=kernel, stride=stride)
    assert torch.equal(max_pool(x, kernel=kernel, stride=stride), wanted)


def test_less_is_kept_for_the_way_back() -> None:
    def kept(model: PairModel, *, is_folded: bool) -> int:
        model._is_folded = is_folded
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, int] = {}
        alive = []

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            alive.append(tensor)
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.encode(torch.zeros(4, 9, 64, 64, 3, dtype=torch.uint8))
        return sum(found.values())

    model, _, _ = small_model()
    assert kept(model, is_folded=True) < 0.75 * kept(model, is_folded=False)

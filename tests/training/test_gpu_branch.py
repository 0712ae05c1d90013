"""The GPU branch of stage two without a GPU: on ``meta``, and forced on a CPU."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSettings
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.heads.gart import Value
from aqa_pipeline.heads.outputs import LeafLabels, TreeOutput
from aqa_pipeline.training.adam import side_by_side
from aqa_pipeline.training.stack import Stack
from tests.support.planted import planted_clips

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: list[dict[str, Any]] = [
    {"kind": "gart"},
    {"kind": "gart", "recipe": "official"},
    {"kind": "gart", "recipe": "paper"},
    {"kind": "gart", "mode": "direct"},
    {"kind": "mlp"},
    {"kind": "mlp", "mode": "direct"},
    {"kind": "usdl", "mode": "direct"},
    {"kind": "musdl", "mode": "direct"},
]
HEADS = [
    HeadConfig(**kind, aggregation=aggregation, dropout=dropout, num_groups=4, hidden=8,
               reduced_dim=4, score_bins=7)
    for kind, aggregation, dropout in itertools.product(
        KINDS, ("mean", "ordered", "attention", "lstm"), (0.0, 0.3)
    )
]  # fmt: skip


def name(head: HeadConfig) -> str:
    return "-".join((head.kind, head.mode, head.recipe, head.aggregation, str(head.dropout)))


def judged_clips(count: int = 30) -> FeatureSet:
    """Clips whose scores are the sums of three judges' marks, times the difficulty."""
    clips = planted_clips(count)
    marks = np.round(2 * clips.label / 6)[:, None] / 2 + np.array([-0.5, 0.0, 0.5])
    return dataclasses.replace(clips, score=marks.sum(axis=1) * clips.scale, judges=marks)


CLIPS = judged_clips()
MEMBERS = [
    ModelSettings(1e-3, 0.0, 0.0),
    ModelSettings(3e-3, 0.1, 0.3),
    ModelSettings(1e-3, 0.0, 0.3),
]


def stack(
    head: HeadConfig, device: str, members: Sequence[ModelSettings] | None = None, **config: Any
) -> Stack:
    return Stack(
        CLIPS, members or [ModelSettings(1e-3, 0.0, head.dropout)], head_config=head,
        config=FitConfig(**{"batch_size": 8, "seed": 5, **config}), score_range=None,
        epsilon=30.0, device=torch.device(device),
    )  # fmt: skip


# --- on meta -------------------------------------------------------------------------


class OnDeviceAlone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where the host reads from the device, or an operation mixes both.

    Copies to the device are allowed, as are numbers (tensors of no dimension) of the host.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        devices = {t.device.type for t in given if t.ndim or t.device.type == "meta"}
        of_device = "meta" in devices
        self.operations += of_device
        packet = func._overloadpacket
        aten = torch.ops.aten
        if of_device and packet in (aten._local_scalar_dense, aten.nonzero, aten.equal):
            raise AssertionError(f"the host waits for {func}")
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            target = args[0].device if packet is aten.copy_ else (kwargs or {}).get("device")
            if source.device.type == "meta" and torch.device(target or "meta").type != "meta":
                raise AssertionError(f"the host reads through {func}")
        elif len(devices) > 1:
            raise AssertionError(f"{func} mixes {sorted(devices)}")
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_reads_and_mixtures() -> None:
    there, here = torch.ones(3, device="meta"), torch.ones(3)
    with OnDeviceAlone() as watch:
        _ = here.to("meta") + there * 2 + torch.tensor(2.0)
        assert watch.operations >= 2
        for wrong, words in (
            (lambda: float(there[0]), "waits"),
            (lambda: there.to("cpu"), "reads"),
            (lambda: here.copy_(there), "reads"),
            (lambda: there[here.long()], "mixes"),
        ):
            with pytest.raises(AssertionError, match=words):
                wrong()


@pytest.mark.parametrize("head", HEADS, ids=name)
def test_an_epoch_and_its_votes_stay_on_the_device(head: HeadConfig) -> None:
    own = stack(head, "meta", num_seeds=2)
    with OnDeviceAlone() as watch:
        losses = own._loop.epoch()
        label = own.selection.labels_on_device()
    assert watch.operations > 100
    assert losses.device.type == label.device.type == "meta"
    assert losses.shape == (2, 2)
    assert label.shape == (1, 2, own.held_out.shape[1])


def test_a_stack_of_different_members_stays_on_the_device_when_it_is_cut() -> None:
    head = HeadConfig(num_groups=4, hidden=8, aggregation="mean")
    own = stack(head, "meta", MEMBERS)
    with OnDeviceAlone():
        own._loop.epoch()
        own.keep([0, 2])
        own._loop.epoch()
        assert own.selection.labels_on_device().shape[1] == 2


# --- forced on a CPU -----------------------------------------------------------------


def force(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a CPU take the ways of a GPU; what it took is listed."""
    taken: list[str] = []

    def whole_labels(self: TreeOutput, target: Tensor) -> list[LeafLabels]:
        taken.append("labels")
        return [LeafLabels(*own) for own in zip(*self.groups.leaf_and_offset(target), strict=True)]

    def whole_value(self: TreeOutput, root: Tensor) -> Value:
        taken.append("value")
        return self.groups.delta(self.tree(root))

    def not_taken(device: torch.device) -> bool:
        taken.append("gradients")
        return False

    def not_on_host(device: torch.device) -> bool:
        taken.append("votes")
        return False

    monkeypatch.setattr(TreeOutput, "labels", whole_labels)
    monkeypatch.setattr(TreeOutput, "value", whole_value)
    monkeypatch.setattr("aqa_pipeline.training.adam.takes_gradients", not_taken)
    for module in ("heads.batch_voting", "training.selection"):
        monkeypatch.setattr(f"aqa_pipeline.{module}.votes_on_host", not_on_host)
    return taken


@pytest.mark.parametrize("head", HEADS, ids=name)
@pytest.mark.parametrize("count", [1, 4])
def test_the_gpu_branch_computes_what_the_cpu_branch_does(
    head: HeadConfig, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[list[Any], Stack]:
        own = stack(head, "cpu", num_seeds=count)
        return [own.run_epoch() for _ in range(3)], own

    expected, by_cpu = run()
    taken = force(monkeypatch)
    found, by_gpu = run()
    assert {"gradients", "votes"} <= set(taken)
    assert ({"labels", "value"} <= set(taken)) == (head.kind == "gart")
    for (losses, _), (own_losses, _) in zip(found, expected, strict=True):
        np.testing.assert_allclose(losses, own_losses, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(
        np.stack(by_gpu.selection.validation_scores), np.stack(by_cpu.selection.validation_scores),
        rtol=1e-4,
    )  # fmt: skip
    for (key, value), other in zip(
        by_gpu.head.state_dict().items(), by_cpu.head.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("counts", [[[1, 3, None], [2], [10]], [[None]] * 3])
def test_several_m_and_a_cut_stack_vote_on_the_device_as_on_the_host(
    counts: list[list[int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[list[float], list[np.ndarray]]:
        own = Stack(
            CLIPS, MEMBERS, head_config=HeadConfig(num_groups=4, hidden=8, dropout=0.3),
            config=FitConfig(batch_size=8), score_range=None, epsilon=30.0, num_exemplars=counts,
            device=torch.device("cpu"), keep_states=False,
        )  # fmt: skip
        own.run_epoch()
        own.keep([0, 2])
        own.run_epoch()
        return own.selection.best_relative_l2, own.selection.validation_scores

    error, scores = run()
    force(monkeypatch)
    own_error, own_scores = run()
    assert len(error) == sum(len(own) for own in counts) - len(counts[1])
    np.testing.assert_allclose(own_error, error, rtol=1e-4)
    np.testing.assert_allclose(np.stack(own_scores), np.stack(scores), rtol=1e-5)


def test_the_best_weights_are_kept_alike_by_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    own = stack(HeadConfig(num_groups=4, hidden=8), "cpu", num_seeds=3)
    own.run_epoch()
    before = {key: value.clone() for key, value in own.selection._best.items()}
    own._loop.epoch()
    own.selection._pool = own.selection._pool.to("meta")  # what is not a CPU copies by index
    index, real = [2, 0], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, device: real(data))
    own.selection._copy(index)
    for key, value in own.head.state_dict().items():
        kept = own.selection._best[key]
        assert torch.equal(kept[index], value[index]), key
        assert torch.equal(kept[1], before[key][1]), key


# --- streams -------------------------------------------------------------------------


class Device:
    """Streams that run their work as late as they may: only when somebody waits."""

    def __init__(self) -> None:
        self.current: Stream | None = None


class Stream:
    def __init__(self, device: Device, label: str) -> None:
        self.device, self.label = device, label
        self.queue: list[Any] = []

    def wait_stream(self, other: Stream) -> None:
        mark = len(other.queue)
        self.queue.append(lambda: other.run(mark))

    def run(self, until: int | None = None) -> None:
        for place in range(len(self.queue) if until is None else until):
            work, self.queue[place] = self.queue[place], lambda: None
            work()


def test_runs_move_after_the_backward_pass_and_before_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, told = Device(), []
    main = Stream(device, "main")
    sides = [Stream(device, f"side{i}") for i in range(3)]

    class Current:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            device.current = self.stream

        def __exit__(self, *error: object) -> None:
            device.current = None

    def launch(word: str) -> Any:
        def call() -> None:
            assert device.current is not None
            device.current.queue.append(lambda: told.append(word))

        return call

    monkeypatch.setattr(torch.cuda, "stream", Current)
    main.queue.append(lambda: told.append("backward"))
    calls = [launch(f"move{i}") for i in range(5)]
    side_by_side(calls, main, sides)  # type: ignore[arg-type]
    main.queue.append(lambda: told.append("next"))
    for side in reversed(sides):  # a GPU may begin anywhere
        side.run(1)
    main.run()
    assert told[0] == "backward"
    assert sorted(told[1:-1]) == [f"move{i}" for i in range(5)]
    assert told[-1] == "next"
    assert len({len(side.queue) for side in sides}) == 2, "five runs on three streams"

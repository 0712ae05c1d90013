"""Fine-tuning as a GPU runs it, where there is none: devices on meta, shortages by their words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aqa_pipeline.backbone.fast import FastI3D
from aqa_pipeline.config import FinetuneConfig, FitConfig
from aqa_pipeline.device import naming_shortage
from aqa_pipeline.errors import SetupError
from aqa_pipeline.finetune.distributed import DistributedContext
from aqa_pipeline.finetune.folded import lay_out_channels_last
from aqa_pipeline.finetune.frames import FrameStore
from aqa_pipeline.finetune.model import PairModel, resolve_precision
from aqa_pipeline.finetune.step import TrainStep
from aqa_pipeline.finetune.validation import ClipFeatures
from tests.finetune.test_step import PAIRS, draw_of
from tests.support.random_i3d import thin_i3d
from tests.support.tuning_data import SNIPPETS, TINY, small_model

pytestmark = pytest.mark.usefixtures("one_thread")
META, CPU = torch.device("meta"), torch.device("cpu")

#: What torch 2.11 with cuDNN 9 says when memory runs out, and in which class.
SHORTAGES: list[Callable[[], RuntimeError]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("GET was unable to find an engine to execute this computation"),
    lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts reads of the host, and operations on tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_meta = [t for t in tensors if t.device.type == "meta"]
        name = str(func)
        to = kwargs.get("device")
        if on_meta and "_local_scalar_dense" in name:
            self.reads.append(name)
            return 0.5
        if on_meta and "_to_copy" in name and to is not None and torch.device(to) == CPU:
            self.reads.append(name)
            return torch.full(on_meta[0].shape, 0.5, dtype=on_meta[0].dtype)
        # A number that torch wrapped may meet any device; copying is what crosses them.
        mixes = any(t.device.type != "meta" and t.ndim for t in tensors) and on_meta
        if mixes and "copy" not in name:
            self.mixed.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("micro_batch_pairs", [3, 2, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_mixes_no_devices_and_reads_once(
    micro_batch_pairs: int, checkpointing: bool
) -> None:
    on_cpu, frames, label = small_model()
    lay_out_channels_last(on_cpu.backbone)
    model = PairModel(
        on_cpu.backbone.to(META),
        on_cpu.head.to(META),
        snippets=SNIPPETS,
        pixels=TINY,
        checkpointing=checkpointing,
    ).to(META)
    stepper = TrainStep(
        model,
        label=label.to(META),
        fit_config=FitConfig(),
        config=FinetuneConfig(clip_norm=1.0),
        micro_batch_pairs=micro_batch_pairs,
    )
    with Watch() as watch:
        for _ in range(2):
            outcome = stepper.step(
                draw_of(PAIRS), lambda rows: torch.from_numpy(frames[rows]).to(META)
            )
    assert outcome.classification == 0.5
    assert watch.mixed == []
    assert len(watch.reads) == 2, watch.reads


class Boxes(FrameStore):
    """Clips that are decoded already."""

    def __init__(self, frames: npt.NDArray[np.uint8]) -> None:
        from tests.finetune.test_frames import named

        tasks = named(*"01234")
        for task in tasks:
            object.__setattr__(task, "positions", np.arange(9))
        super().__init__(tasks, pool=None, memory_bytes=0)  # type: ignore[arg-type]
        self._kept = dict(enumerate(frames))


def encoder_of(frames: npt.NDArray[np.uint8]) -> ClipFeatures:
    return ClipFeatures(
        Boxes(frames),
        snippets=SNIPPETS,
        pixels=TINY,
        jitter=0,
        device=CPU,
        ranks=DistributedContext(),
    )


def by_gpu_form(encoder: ClipFeatures, rows: Sequence[int]) -> npt.NDArray[np.float32]:
    encoder._network = encoder._batched  # type: ignore[method-assign]
    return encoder.encode(thin_i3d(), rows)


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_shortage_halves_the_banks_batch_and_changes_nothing(
    shortage: Callable[[], RuntimeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 9, 64, 64, 3), dtype=np.uint8)
    encoder = encoder_of(frames)
    wanted = encoder.encode(thin_i3d(), range(5))
    sizes: list[int] = []
    real = FastI3D.features

    def features(self: FastI3D, x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise shortage()
        return real(self, x)

    monkeypatch.setattr(FastI3D, "features", features)
    found = by_gpu_form(encoder, range(5))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert sizes == [5, 2, 2, 1]
    del sizes[:]
    by_gpu_form(encoder, range(5))
    assert max(sizes) == 2, "the smaller batch is kept"


def test_no_memory_for_one_snippet_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def features(self: FastI3D, x: Tensor) -> Tensor:
        raise SHORTAGES[0]()

    monkeypatch.setattr(FastI3D, "features", features)
    with pytest.raises(SetupError, match="no memory for a single snippet"):
        by_gpu_form(encoder_of(np.zeros((5, 9, 64, 64, 3), np.uint8)), range(5))


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_shortage_is_one_sentence_and_other_errors_pass(
    shortage: Callable[[], RuntimeError],
) -> None:
    said = str(shortage()).split("\n")[0]
    with pytest.raises(SetupError) as told, naming_shortage("cuda:0", "lower --pairs-at-once"):
        raise shortage()
    assert str(told.value) == f"cuda:0: out of memory ({said}); lower --pairs-at-once"
    with pytest.raises(RuntimeError, match="device-side assert"), naming_shortage("cuda:0", ""):
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_validation_and_training_are_true_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the flags are outside; and they are put back."""
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    seen: list[tuple[str, bool]] = []
    real = FastI3D._feature_map

    def feature_map(self: FastI3D, parts: Iterable[Tensor]) -> Tensor:
        seen.append((conv.fp32_precision, torch.backends.cudnn.benchmark))
        return real(self, parts)

    monkeypatch.setattr(FastI3D, "_feature_map", feature_map)
    before = conv.fp32_precision
    encoder = encoder_of(np.zeros((5, 9, 64, 64, 3), np.uint8))
    try:
        conv.fp32_precision = "tf32"
        torch.backends.cudnn.benchmark = True
        encoder.encode(thin_i3d(), [0])
        assert seen == [("ieee", False)]
        assert (conv.fp32_precision, torch.backends.cudnn.benchmark) == ("tf32", True)
    finally:
        conv.fp32_precision = before
        torch.backends.cudnn.benchmark = False


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(SetupError, match="--precision bfloat16 needs a GPU"):
        resolve_precision("bfloat16", CPU)

"""Batches of several clips, on a CPU: networks that see frame numbers or run out of memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder, fitting_batch
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import SetupError

WINDOW = 6
INDEX = np.array([[0, 1, 2], [2, 3, 4], [3, 4, 5]])  # three snippets of three frames
PIXELS = PixelPreset("tiny", crop=2, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def window(clip: int) -> npt.NDArray[np.uint8]:
    """Frame i of clip c is grey level 10 c + i."""
    levels = 10 * clip + np.arange(WINDOW, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (WINDOW, 2, 2, 3)).copy()


def expected(clip: int) -> npt.NDArray[np.float32]:
    """First and last frame number of each snippet."""
    return (10 * clip + INDEX[:, [0, 2]]).astype(np.float32)


class Network:
    """Sees the frame numbers; has memory for ``room`` snippets."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.batches: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        self.batches.append(len(x))
        return x[:, 0, [0, -1], 0, 0]


def encoder(network: Network, *, batch: int, dtype: torch.dtype = torch.float32) -> BatchedEncoder:
    return BatchedEncoder(
        network,
        pixels=PIXELS,
        index=INDEX,
        window_frames=WINDOW,
        device=torch.device("cpu"),
        dtype=dtype,
        batch=batch,
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 9, 100])
def test_clips_come_back_whole_and_in_order_whatever_the_batch(batch: int) -> None:
    found = encoder(Network(), batch=batch).start([window(1), window(2), window(3)])()
    assert [np.round(features).tolist() for features in found] == [
        expected(clip).tolist() for clip in (1, 2, 3)
    ]
    assert found[0].dtype == np.float32


def test_one_clip_is_a_call() -> None:
    assert np.round(encoder(Network(), batch=3)(window(4))).tolist() == expected(4).tolist()


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = Network(room=3)
    several = encoder(network, batch=9)
    found = several.start([window(1), window(2), window(3)])()
    assert (
        np.round(np.concatenate(found)).tolist()
        == np.concatenate([expected(1), expected(2), expected(3)]).tolist()
    )
    # 9 and 4 do not fit, 2 does, and stays.
    assert network.batches == [2, 2, 2, 2, 1]
    assert several.batch == 2
    assert "out of memory; 4 snippets at once now" in caplog.text
    network.batches.clear()
    several(window(1))
    assert network.batches == [2, 1]


@pytest.mark.parametrize(
    "message",
    [
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: out of memory\nCUDA kernel errors might be reported later",
    ],
)
def test_every_library_words_its_shortage_otherwise(message: str) -> None:
    network = Network()
    several = encoder(network, batch=3)

    def fails(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError(message)
        return network(x)

    several.network = fails
    assert np.round(several(window(1))).tolist() == expected(1).tolist()
    assert several.batch == 1


@pytest.mark.parametrize(
    "message",
    [
        "expected 4 channels",
        "CUDA error: an illegal memory access",
        "CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_other_errors_are_no_shortage(message: str) -> None:
    several = encoder(Network(), batch=3)

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError(message)

    several.network = fails
    with pytest.raises(RuntimeError, match=message):
        several(window(1))


class FramesNetwork:
    """As :class:`Network`, from frames; knows which shapes it saw and what it forgot."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.shapes: list[tuple[int, bool]] = []
        self.num_forgotten = 0
        self.peak = 0

    def features_of_frames(self, frames: Tensor, index: Tensor, *, is_full: bool) -> Tensor:
        if len(index) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert index.is_contiguous()
        # The first pass tries algorithms out in all the memory there is.
        self.peak = max(self.peak, 10 * len(index) if self.shapes else 100_000)
        self.shapes.append((len(index), is_full))
        return frames[index][:, [0, -1], 0, 0, 0].float()

    def forget(self) -> None:
        self.num_forgotten += 1


def filling(network: FramesNetwork, *, batch: int) -> BatchedEncoder:
    return BatchedEncoder(
        network,
        pixels=PIXELS,
        index=INDEX,
        window_frames=WINDOW,
        device=torch.device("cpu"),
        batch=batch,
        fills=True,
    )


@pytest.mark.parametrize(
    ("batch", "clips", "shapes"),
    [
        (6, 2, [(6, True)]),
        (6, 3, [(6, True), (3, False)]),  # what is left over is one clip
        (9, 5, [(9, True), (9, True)]),  # or is filled up
        (7, 3, [(7, True), (3, False)]),
        (3, 2, [(3, True), (3, True)]),
        (2, 1, [(2, True), (2, True)]),  # a clip does not fit
    ],
)
def test_on_a_gpu_batches_have_two_shapes(
    batch: int, clips: int, shapes: list[tuple[int, bool]]
) -> None:
    network = FramesNetwork()
    found = filling(network, batch=batch).start([window(clip) for clip in range(clips)])()
    assert [features.tolist() for features in found] == [
        expected(clip).tolist() for clip in range(clips)
    ]
    assert network.shapes == shapes


def test_what_the_network_keeps_is_given_up_when_memory_runs_out() -> None:
    network = FramesNetwork(room=2)
    found = filling(network, batch=9).start([window(1), window(2)])()
    assert np.concatenate(found).tolist() == [*expected(1).tolist(), *expected(2).tolist()]
    assert network.num_forgotten == 2  # 9, then 4
    assert network.shapes == [(2, True)] * 3


def test_the_batch_is_measured_when_nothing_is_tried_out_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = FramesNetwork()
    several = filling(network, batch=1)
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(
        cuda, "reset_peak_memory_stats", lambda device: vars(network).update(peak=0)
    )
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: network.peak)
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (400, 1000))
    several.find_batch()
    assert several.batch == 27  # 0.7 * 400 bytes at 10 a snippet, in whole clips of three
    assert network.shapes == [(3, False)] * 2


def test_memory_that_runs_out_in_the_middle_of_a_group() -> None:
    network = Network()
    several = encoder(network, batch=4)
    plain = network.__call__

    def shrinking(x: Tensor) -> Tensor:
        features = plain(x)
        network.room = 2  # another program took the rest
        return features

    several.network = shrinking
    found = several.start([window(1), window(2), window(3)])()
    assert np.round(np.concatenate(found)[:, 0]).tolist() == [10, 12, 13, 20, 22, 23, 30, 32, 33]
    assert network.batches == [4, 2, 2, 1]


def test_no_memory_for_a_single_snippet_is_one_sentence() -> None:
    with pytest.raises(SetupError, match=r"no memory for a single snippet \(CUDA out .* 2 GiB\.\)"):
        encoder(Network(room=0), batch=8)(window(1))


def test_half_precision_reaches_the_network_and_features_are_float32() -> None:
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x[:, 0, :1, 0, 0]

    half = encoder(Network(), batch=3, dtype=torch.bfloat16)
    half.network = network
    assert half(window(1)).dtype == np.float32
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize(
    ("free", "snippet", "snippets_a_clip", "batch"),
    [
        (10e9, 0.1e9, 10, 70),  # 70 % of what is free
        (10e9, 0.096e9, 10, 70),  # whole clips only
        (80e9, 0.1e9, 10, 90),  # more keep no GPU busier
        (1.2e9, 0.1e9, 10, 8),  # part of a clip
        (0.05e9, 0.1e9, 10, 1),  # try, and see
        (800e9, 0.1e9, 200, 200),  # a clip of many snippets goes in one batch
        (1e9, 0.0, 10, 90),  # nothing was measured
    ],
)
def test_the_batch_is_found_from_free_memory(
    free: float, snippet: float, snippets_a_clip: int, batch: int
) -> None:
    found = fitting_batch(free_bytes=free, snippet_bytes=snippet, snippets_a_clip=snippets_a_clip)
    assert found == batch


def test_a_batch_smaller_than_a_clip_still_takes_a_clip_at_once() -> None:
    assert [encoder(Network(), batch=b).clips_at_once for b in (1, 3, 5, 6, 9)] == [1, 1, 1, 2, 3]

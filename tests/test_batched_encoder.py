"""Batches of several clips, on a CPU: networks that see frame numbers or run out of memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from aqa_pipeline.batched_encoder import BatchedEncoder, fitting_batch
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.encode_stream import TakesSeveral
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


def test_cudnn_words_its_shortage_otherwise_and_other_errors_are_no_shortage() -> None:
    network = Network()
    several = encoder(network, batch=3)
    message = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"

    def fails(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError(message)
        return network(x)

    several.network = fails
    assert np.round(several(window(1))).tolist() == expected(1).tolist()
    message = "expected 4 channels"
    several.batch = 3
    with pytest.raises(RuntimeError, match="expected 4 channels"):
        several(window(1))


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
    assert half.example(5).shape == (5, 3, 3, 2, 2)


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
    assert isinstance(encoder(Network(), batch=1), TakesSeveral)

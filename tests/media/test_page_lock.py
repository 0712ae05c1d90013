"""Page-locked frames on their way to the GPU, with streams and events that a test decides about."""

from __future__ import annotations

import contextlib
import weakref

import numpy as np
import pytest
import torch

from aqa_pipeline.backbone import gpu_encoder as batched_encoder
from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.media import page_lock

WINDOW = 4
PIXELS = PixelPreset("tiny", crop=2, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


class Event:
    """An upload that is over when the test says so."""

    is_over = False

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return Event.is_over


class Stream:
    def wait_stream(self, other: object) -> None:
        pass


def test_page_locked_windows_go_up_as_they_are_and_are_kept_until_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(batched_encoder, "_event", Event)
    monkeypatch.setattr(Event, "is_over", False)
    locked: dict[int, int] = {}
    monkeypatch.setattr(page_lock, "_locked", locked)
    encoder = BatchedEncoder(
        lambda x: x[:, 0, :, 0, 0],
        pixels=PIXELS,
        index=np.array([[0, 1], [2, 3]]),
        window_frames=WINDOW,
        device=torch.device("cpu"),
        batch=4,
    )
    encoder._copies = Stream()  # type: ignore[assignment]
    monkeypatch.setattr(encoder, "_download", lambda features: lambda: list(features.numpy()))

    def window(first: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        levels = np.arange(first, first + WINDOW, dtype=np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (WINDOW, 2, 2, 3)).copy()
        locked[frames.__array_interface__["data"][0]] = frames.nbytes
        return frames

    windows = [window(10), window(20)]
    alive = [weakref.ref(one) for one in windows]
    features = encoder.start(windows)()
    assert np.round(features).tolist() == [[[10, 11], [12, 13]], [[20, 21], [22, 23]]]
    assert not encoder._buffers, "nothing was copied on the way"
    del windows
    encoder.start([window(30)])()
    assert all(one() is not None for one in alive), "the GPU is still reading"
    monkeypatch.setattr(Event, "is_over", True)
    encoder.start([window(40)])()
    assert all(one() is None for one in alive)


def test_a_torch_without_cuda_says_so_and_locks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("this one has CUDA")
    frames = np.zeros(4096, np.uint8)
    assert not page_lock.page_lock(frames.__array_interface__["data"][0], frames.nbytes)
    assert "not page-locked (" in caplog.text
    assert page_lock.pinned_tensor_of(frames) is None

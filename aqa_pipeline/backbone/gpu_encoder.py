"""Encoder of several clips per batch on a GPU.

Frames go up as uint8, each once however many snippets share it, and are cut into snippets
and normalised there. While one group of clips is computed, the next is copied: two page-
locked buffers take turns. Batches are as large as free memory lets them be; should it run
out all the same, they are halved and the work goes on where it stopped. On a GPU they have
two shapes only, a full batch and one clip: what is left over is filled up with repeats.

Everything but the copying runs alike on a CPU, where the tests run it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqa_pipeline.backbone.i3d import normalise
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.device import is_shortage
from aqa_pipeline.errors import SetupError
from aqa_pipeline.media.page_lock import pinned_tensor_of

_log = logging.getLogger(__name__)

Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

#: Gives the features of a group of clips once they are computed.
Pending = Callable[[], list[Features]]

#: Of the memory that is free, how much a batch may take: the rest is for the frames, and
#: for what the library tries out.
_MEMORY_SHARE = 0.7
#: More snippets at once keep no GPU busier, and cost memory on both sides.
_MAX_BATCH = 96
_SIDE = "type --device cpu, or end what else uses the GPU"


@runtime_checkable
class TakesFrames(Protocol):
    """A network that makes its own input, as :class:`.GpuNetwork`."""

    def features_of_frames(self, frames: Tensor, index: Tensor, *, is_full: bool) -> Tensor:
        """Features, float32, shape=(n, dim), of frames (F, H, W, 3) by index (n, T).

        ``is_full`` says that this is the shape that most batches have.
        """
        ...

    def forget(self) -> None:
        """Give up all memory but the weights'."""
        ...


@dataclass
class _Buffer:
    """Page-locked memory for one group of clips, and when it may be written again."""

    frames: Tensor
    is_free: torch.cuda.Event


class BatchedEncoder:
    """A network that takes several clips at once; called, it takes one.

    Parameters
    ----------
    network : callable or TakesFrames
        (N, 3, T, H, W) in ``dtype`` to (N, dim); or frames to features.
    pixels : PixelPreset
    index : ndarray of int64, shape=(snippets, snippet_frames)
        Frames of every snippet, as indices into the window.
    window_frames : int
    device : torch.device
    dtype : torch.dtype
        Of the network's weights.
    batch : int
        Snippets the network takes at once; see also :meth:`find_batch`.
    fills : bool or None
        Whether what is left over is filled up to a full batch, or to one clip; None: on a GPU.
    facts : dict
        What to record of the machine.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor] | TakesFrames,
        *,
        pixels: PixelPreset,
        index: npt.NDArray[np.int64],
        window_frames: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        batch: int = 1,
        fills: bool | None = None,
        facts: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None:
        self.network = network
        self.batch = batch
        self.facts = dict(facts or {})
        self._pixels = pixels
        self._index = torch.from_numpy(index).to(device)
        self._window_frames = window_frames
        self._device = device
        self._dtype = dtype
        self._fills = device.type == "cuda" if fills is None else fills
        self._buffers: list[_Buffer] = []
        self._uploading: list[tuple[torch.cuda.Event, list[Tensor]]] = []
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def uploads_frames(self) -> bool:
        """Whether frames in page-locked memory are spared a copy."""
        return self._copies is not None

    @property
    def clips_at_once(self) -> int:
        """Clips that fill a batch."""
        return max(1, self.batch // len(self._index))

    def __call__(self, frames: Frames) -> Features:
        """Features of one clip, (window, crop, crop, 3) to (snippets, dim)."""
        return self.start([frames])()[0]

    def start(self, windows: Sequence[Frames]) -> Pending:
        """Begin with a group of clips, each (window, crop, crop, 3); return at once.

        Raises
        ------
        SetupError
            There is not memory enough for a single snippet.
        """
        frames = self._upload(windows)  # (clips * window, crop, crop, 3)
        clips = torch.arange(len(windows), device=self._device)
        index = clips[:, None, None] * self._window_frames + self._index
        features = self._features(frames, index.flatten(0, 1))  # (clips * snippets, dim)
        return self._download(features.reshape(len(windows), len(self._index), -1))

    def find_batch(self) -> None:
        """Choose the batch from the memory that is free, after trying one clip.

        Raises
        ------
        SetupError
            There is not memory enough for a single snippet.
        """
        self.batch = len(self._index)
        cuda = torch.cuda
        frames = torch.zeros(self._frames_shape(1), dtype=torch.uint8, device=self._device)
        # The first pass also tries algorithms out, with workspaces up to all that is free.
        self._features(frames, self._index, measured=True)
        before = cuda.memory_allocated(self._device)
        cuda.reset_peak_memory_stats(self._device)
        self._features(frames, self._index, measured=True)
        taken = cuda.max_memory_allocated(self._device) - before
        if isinstance(self.network, TakesFrames):
            self.network.forget()  # these two were no batches
        cuda.empty_cache()
        free, _ = cuda.mem_get_info(self._device)
        self.batch = fitting_batch(
            free_bytes=free, snippet_bytes=taken / self.batch, snippets_a_clip=len(self._index)
        )
        _log.info("%d snippets at once (%.1f GB free)", self.batch, free / 1e9)

    def _frames_shape(self, clips: int) -> tuple[int, int, int, int]:
        crop = self._pixels.crop
        return clips * self._window_frames, crop, crop, 3

    def _input(self, frames: Tensor, index: Tensor) -> Tensor:
        """(n, snippet_frames) of frames to (n, 3, snippet_frames, crop, crop)."""
        return normalise(frames[index], self._pixels).to(self._dtype)

    def _features(self, frames: Tensor, index: Tensor, *, measured: bool = False) -> Tensor:
        done: list[Tensor] = []
        first = 0
        while first < len(index):
            part = index[first : first + self.batch]
            shape = self._shape_of(len(part))
            is_full = shape == self.batch and not measured
            try:
                with torch.inference_mode():
                    features = self._computed(frames, filled(part, shape), is_full=is_full)
                    done.append(features[: len(part)])
            except RuntimeError as error:
                if not is_shortage(error):
                    raise
                shortage = str(error).split("\n", 1)[0]
            else:
                first += len(part)
                continue
            # Outside the handler, which keeps the tensors of the failed batch alive.
            self._halve(shape, shortage)
        return torch.cat(done)

    def _shape_of(self, snippets: int) -> int:
        """Snippets that the network is given for so many: few shapes, each known to cuDNN."""
        one_clip = len(self._index)
        if not self._fills:
            return snippets
        return one_clip if snippets <= one_clip <= self.batch else self.batch

    def _computed(self, frames: Tensor, index: Tensor, *, is_full: bool) -> Tensor:
        if isinstance(self.network, TakesFrames):
            return self.network.features_of_frames(frames, index, is_full=is_full)
        return self.network(self._input(frames, index)).float()

    def _halve(self, tried: int, shortage: str) -> None:
        if tried == 1:
            raise SetupError(
                f"{self._device}: no memory for a single snippet ({shortage}); {_SIDE}"
            )
        self.batch = tried // 2
        _log.warning("%s: out of memory; %d snippets at once now", self._device, self.batch)
        if isinstance(self.network, TakesFrames):
            self.network.forget()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _upload(self, windows: Sequence[Frames]) -> Tensor:
        if self._copies is None:
            return torch.from_numpy(np.concatenate(windows)).to(self._device)
        locked = [tensor for window in windows if (tensor := pinned_tensor_of(window)) is not None]
        if len(locked) == len(windows):
            return self._upload_locked(locked, self._copies)
        shape = self._frames_shape(len(windows))
        buffer = self._buffer(shape)
        for number, window in enumerate(windows):
            first = number * self._window_frames
            buffer.frames[first : first + self._window_frames].numpy()[:] = window
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            frames = buffer.frames[: shape[0]].to(self._device, non_blocking=True)
            buffer.is_free.record(self._copies)
        computing.wait_stream(self._copies)
        frames.record_stream(computing)
        return frames

    def _upload_locked(self, windows: list[Tensor], copies: torch.cuda.Stream) -> Tensor:
        """Frames that the GPU fetches by itself; they are kept until it has."""
        self._uploading = [
            one
            for one in self._uploading
            if not one[0].query()  # type: ignore[no-untyped-call]
        ]
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(copies):
            shape = self._frames_shape(len(windows))
            frames = torch.empty(shape, dtype=torch.uint8, device=self._device)
            for number, window in enumerate(windows):
                first = number * self._window_frames
                frames[first : first + self._window_frames].copy_(window, non_blocking=True)
            is_there = _event()
            is_there.record(copies)
        self._uploading.append((is_there, windows))
        computing.wait_stream(copies)
        frames.record_stream(computing)
        return frames

    def _buffer(self, shape: tuple[int, int, int, int]) -> _Buffer:
        """The buffer that was used longest ago, large enough, once it is free."""
        if len(self._buffers) < 2:
            self._buffers.append(_new_buffer(shape))
        else:
            self._buffers.append(self._buffers.pop(0))
        self._buffers[-1].is_free.synchronize()
        if len(self._buffers[-1].frames) < shape[0]:
            self._buffers[-1] = _new_buffer(shape)
        return self._buffers[-1]

    def _download(self, features: Tensor) -> Pending:
        if self._copies is None:
            return lambda: list(features.numpy())
        host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        host.copy_(features, non_blocking=True)
        is_there = _event()
        is_there.record(torch.cuda.current_stream(self._device))

        def wait() -> list[Features]:
            is_there.synchronize()
            return list(host.numpy())

        return wait


def filled(index: Tensor, snippets: int) -> Tensor:
    """Rows of an index, (n, T), and its last one again up to a number: (snippets, T), dense."""
    if len(index) == snippets:
        return index.contiguous()
    return torch.cat([index, index[-1:].expand(snippets - len(index), -1)])


def _new_buffer(shape: tuple[int, int, int, int]) -> _Buffer:
    return _Buffer(torch.empty(shape, dtype=torch.uint8, pin_memory=True), _event())


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def fitting_batch(*, free_bytes: float, snippet_bytes: float, snippets_a_clip: int) -> int:
    """Snippets that fit in free memory: whole clips where one fits, else part of one.

    Returns
    -------
    int
        At least 1, at most 96 or one clip, whichever is more.
    """
    fitting = int(_MEMORY_SHARE * free_bytes / max(snippet_bytes, 1.0))
    if fitting < snippets_a_clip:
        return max(1, fitting)
    most = max(_MAX_BATCH, snippets_a_clip)
    return min(fitting, most) // snippets_a_clip * snippets_a_clip

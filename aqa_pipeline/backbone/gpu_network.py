"""The network on a GPU: its form chosen by a trial, its launches gathered in CUDA graphs.

The trial is made once per process for a device, type and shape, on the first full batch of
an extraction: of the forms of :mod:`aqa_pipeline.backbone.gpu_form` whose features agree with
those of
the plain one, the quickest. A shape that comes a third time is captured in a graph, which
is used if it gives what the network gave. What fails is left out, with a line in the log.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aqa_pipeline.backbone import fast as i3d_fast
from aqa_pipeline.backbone.gpu_form import PLAIN, Form, GpuI3D, pooled_by, triton_kernels
from aqa_pipeline.backbone.precision import Array, agreement, computing_in
from aqa_pipeline.errors import first_line

_log = logging.getLogger(__name__)

#: Least cosine between the features of two forms, or of a graph and the network.
_SAME = {torch.float32: 0.99999}
_SAME_HALF = 0.9999
#: After so many seconds no further form is tried.
_TRIAL_SECONDS = 6.0
#: cuDNN compiles its fused convolutions. Where one takes longer than this, 39 take too long.
_FUSED_SECONDS = 0.08
_ROUNDS = 2
_USES_BEFORE_CAPTURE = 2

_Key = tuple[str, torch.dtype, str, tuple[int, ...]]
_chosen: dict[_Key, Form] = {}
_agreeing_kernels: dict[tuple[str, torch.dtype], bool] = {}
#: A capture that failed leaves torch's allocator in doubt: there is no second one.
_capture_failed: list[str] = []


@dataclass
class _Graph:
    """A captured network; ``kept`` is other memory that its kernels read."""

    graph: torch.cuda.CUDAGraph
    input: Tensor
    output: Tensor
    kept: Tensor | None


class GpuNetwork:
    """Frames on a GPU to features, :class:`~aqa_pipeline.backbone.gpu_encoder.TakesFrames`.

    Parameters
    ----------
    network : GpuI3D
        On the device, in the precision's type.
    precision : str
    tries_out : bool
        Choose a form, and let cuDNN try its algorithms out, for full batches: seconds, which
        are for an extraction of many clips. May be changed before the first of them.
    graphs : bool
        Capture shapes that come again and again.
    form : Form or None
        Always this one; None: the plain one, or what a trial finds.
    """

    def __init__(
        self,
        network: GpuI3D,
        precision: str,
        *,
        tries_out: bool = False,
        graphs: bool = True,
        form: Form | None = None,
    ) -> None:
        self.network = network
        self._precision = precision
        self.tries_out = tries_out
        self.captures = graphs and network.stem.weight.is_cuda
        self._form = form
        self._forms: dict[tuple[int, ...], Form] = {}
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._uses: Counter[tuple[int, ...]] = Counter()
        self._pool: Any = None  # torch has no public type for it

    @torch.inference_mode()
    def features_of_frames(self, frames: Tensor, index: Tensor, *, is_full: bool) -> Tensor:
        """Features of snippets, float32, shape=(n, dim).

        Parameters
        ----------
        frames : Tensor of uint8, shape=(F, H, W, 3)
        index : Tensor of int64, shape=(n, T)
            Frames of every snippet.
        is_full : bool
            This is the shape that most batches have.
        """
        shape = *index.shape, *frames.shape[1:]
        with computing_in(self._precision, benchmark=is_full and self.tries_out):
            if shape not in self._forms:
                self._forms[shape] = self._form_for(frames, index, is_full=is_full)
            self.network.form = self._forms[shape]
            graph = self._graphs.get(shape)
            if graph is not None:
                self.network.prepare(frames, index, graph.input)
                graph.graph.replay()
                return graph.output.clone()  # the next replay writes there
            prepared = self.network.prepare(frames, index)
            features = self.network.features_of(prepared)
            self._uses[shape] += 1
            if self.captures and self._uses[shape] == _USES_BEFORE_CAPTURE + 1:
                self._capture(shape, prepared, features)
            return features

    def forget(self) -> None:
        """Give up graphs and their memory, after memory ran out."""
        if self._graphs:
            torch.cuda.synchronize(self.network.stem.weight.device)
        self._graphs.clear()
        self._forms.clear()
        self._uses.clear()
        self._pool = None
        self.network.forget()

    def _form_for(self, frames: Tensor, index: Tensor, *, is_full: bool) -> Form:
        if self._form is not None or not self.tries_out:
            return self._form or PLAIN
        if not is_full:  # the last clips of a run, in the form of those before them
            return next(reversed(self._forms.values()), PLAIN)
        return chosen_form(self.network, frames, index, precision=self._precision)

    def _capture(self, shape: tuple[int, ...], prepared: Tensor, features: Tensor) -> None:
        if _capture_failed:
            return
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        device = prepared.device
        current = torch.cuda.current_stream(device)
        started = time.perf_counter()
        try:
            with torch.cuda.device(device):
                graph = captured(self.network.features_of, prepared, pool=self._pool)
            graph.kept = self.network.kept
            graph.output.fill_(float("nan"))
            graph.graph.replay()
            cosine = agreement(features.cpu().numpy(), graph.output.cpu().numpy())
        except RuntimeError as error:
            _capture_failed.append(first_line(error))
            _log.warning("no CUDA graph of the network: %s", _capture_failed[-1])
            return
        finally:
            # torch leaves its stream set when a capture fails.
            torch.cuda.set_stream(current)
        if cosine < _least_cosine(self.network.dtype):
            _log.warning("the network's CUDA graph gives other features: not used")
            return
        self._graphs[shape] = graph
        seconds = time.perf_counter() - started
        _log.info("CUDA graph for %d snippets, made in %.2f s", shape[0], seconds)


def captured(function: Callable[[Tensor], Tensor], example: Tensor, *, pool: Any) -> _Graph:
    """A graph of ``function`` on a copy of ``example``, which becomes its input.

    Must be called with the example's device as the current one.

    Raises
    ------
    RuntimeError
        Something in it cannot be captured; then the current stream may be another one.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    static = example.clone()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        function(static)  # handles and workspaces of this stream are made outside the graph
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Decoders and page-locked buffers of other threads are no business of this capture.
    with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
        output = function(static)
    return _Graph(graph, static, output, kept=None)


def chosen_form(network: GpuI3D, frames: Tensor, index: Tensor, *, precision: str) -> Form:
    """The quickest form for batches of this shape whose features are the plain form's.

    Raises
    ------
    RuntimeError
        The plain form fails, for want of memory for example.
    """
    key = str(frames.device), network.dtype, precision, (*index.shape, *frames.shape[1:])
    if key not in _chosen:
        kernels = usable_kernels(network, frames, index[:2].contiguous())
        _chosen[key] = _quickest(network, frames, index, candidates(kernels=kernels))
    return _chosen[key]


def candidates(*, kernels: bool) -> list[Form]:
    """The forms that are tried beside the plain one, likeliest first."""
    if not kernels:
        return [Form("plain", blocks=True), Form("cudnn", blocks=True)]
    return [
        Form("epilogue", kernels=True, blocks=True),
        Form("epilogue", kernels=True),
        Form("cudnn", kernels=True, blocks=True),
    ]


def _quickest(network: GpuI3D, frames: Tensor, index: Tensor, forms: Sequence[Form]) -> Form:
    started = time.perf_counter()

    def measured(form: Form) -> tuple[float, Tensor]:
        network.form = form
        features = network.features_of(network.prepare(frames, index))
        _finish(frames)
        before = time.perf_counter()
        for _ in range(_ROUNDS):
            features = network.features_of(network.prepare(frames, index))
        _finish(frames)
        return (time.perf_counter() - before) / _ROUNDS, features

    seconds, plain = measured(PLAIN)
    best, best_seconds = PLAIN, seconds
    told = [f"{PLAIN} {1e3 * seconds:.1f} ms"]
    for form in forms:
        if time.perf_counter() - started > _TRIAL_SECONDS:
            told.append("no time for more")
            break
        try:
            if form.convolution == "cudnn" and not _fused_is_quick_to_start(network, len(index)):
                told.append(f"{form} slow to start")
                continue
            seconds, features = measured(form)
        except Exception as error:  # noqa: BLE001 - whatever fails in a candidate, it is none
            told.append(f"{form} {first_line(error)}")
            continue
        if agreement(_array(plain), _array(features)) < _least_cosine(network.dtype):
            told.append(f"{form} other features")
            continue
        told.append(f"{form} {1e3 * seconds:.1f} ms")
        if seconds < best_seconds:
            best, best_seconds = form, seconds
    if best.convolution != "cudnn":
        network.forget()
    _log.info("%d snippets: %s; used: %s", len(index), ", ".join(told), best)
    return best


def _fused_is_quick_to_start(network: GpuI3D, snippets: int) -> bool:
    """Whether cuDNN finds a fused kernel soon; the first call loads its library."""
    network.form = Form("cudnn")
    seconds = 0.0
    for name in ("mixed_4b_b1b", "mixed_4c_b1b"):
        conv = network.conv(name)
        x = conv.weight.new_zeros(snippets, 4, 14, 14, conv.weight.shape[1])
        started = time.perf_counter()
        network.unit(x.permute(0, 4, 1, 2, 3), conv)
        _finish(x)
        seconds = time.perf_counter() - started
    return seconds < _FUSED_SECONDS


def usable_kernels(network: GpuI3D, frames: Tensor, index: Tensor) -> bool:
    """Whether our own kernels can be compiled here and give what torch gives."""
    key = str(frames.device), network.dtype
    if key not in _agreeing_kernels:
        started = time.perf_counter()
        try:
            wrong = _wrong_kernel(network, frames, index)
        except Exception as error:  # noqa: BLE001 - no compiler, an unknown GPU, ...
            wrong = first_line(error)
        _agreeing_kernels[key] = wrong is None
        if wrong is None:
            _log.info("kernels compiled and compared in %.1f s", time.perf_counter() - started)
        else:
            _log.warning("own kernels are not used here: %s", wrong)
    return _agreeing_kernels[key]


def _wrong_kernel(network: GpuI3D, frames: Tensor, index: Tensor) -> str | None:
    kernels = triton_kernels()
    if kernels is None:
        return "triton is not installed"
    for kernel, stride in (((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 3), (1, 1))):
        x = torch.randn(2, 48, 5, 10, 9, device=frames.device, dtype=network.dtype)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        expected = i3d_fast.max_pool(x, kernel=kernel, stride=stride)
        if not torch.equal(pooled_by(kernels, x, kernel=kernel, stride=stride), expected):
            return f"max_pool {kernel} {stride} is wrong"
    y = torch.randn(75, 144, device=frames.device, dtype=network.dtype)
    out, bias = torch.zeros_like(y), y[-1].clone()
    with kernels.on_device_of(y):
        kernels.bias_relu(y[:, 16:96], bias[16:96], out[:, 32:112])
    expected = torch.zeros_like(y)
    expected[:, 32:112] = (y[:, 16:96].float() + bias[16:96].float()).relu().to(y.dtype)
    if not torch.allclose(out, expected, rtol=1e-3, atol=1e-3):
        return "bias_relu is wrong"
    for blocks in (False, True):
        network.form = Form(blocks=blocks)
        expected = network.prepare(frames, index)
        network.form = Form(kernels=True, blocks=blocks)
        if not torch.allclose(network.prepare(frames, index), expected, rtol=1e-2, atol=1e-2):
            return "cut is wrong"
    return None


def _least_cosine(dtype: torch.dtype) -> float:
    return _SAME.get(dtype, _SAME_HALF)


def _array(features: Tensor) -> Array:
    return features.cpu().numpy()


def _finish(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)

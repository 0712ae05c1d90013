"""Choice of a GPU's form and of a graph, on a CPU, where CUDA's part is a stand-in."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from aqa_pipeline.backbone import gpu_form as i3d_gpu
from aqa_pipeline.backbone import gpu_network as module
from aqa_pipeline.backbone.gpu_form import PLAIN, Form, GpuI3D, gpu_form
from aqa_pipeline.backbone.gpu_network import GpuNetwork, candidates, usable_kernels
from aqa_pipeline.config import PIXEL_PRESETS
from tests.support import plain_kernels
from tests.support.random_i3d import thin_i3d

FRAMES = torch.randint(
    0, 256, (12, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INDEX = torch.stack([torch.arange(first, first + 9) for first in (0, 3)])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing chosen yet in this process, and kernels that work."""
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(module, "_agreeing_kernels", {})
    monkeypatch.setattr(module, "_capture_failed", [])
    for where in (module, i3d_gpu):
        monkeypatch.setattr(where, "triton_kernels", lambda: plain_kernels)


@pytest.fixture
def network() -> GpuI3D:
    return gpu_form(thin_i3d(), PIXEL_PRESETS["demo"])


def features(of: GpuNetwork, *, is_full: bool = True) -> Tensor:
    return of.features_of_frames(FRAMES, INDEX, is_full=is_full)


def clock(seconds: dict[Form, float], network: GpuI3D) -> Callable[[], float]:
    """A clock that passes of a form move on; see :func:`_quickest`."""
    now = [0.0]
    plain = network.features_of

    def features_of(prepared: Tensor) -> Tensor:
        now[0] += seconds.get(network.form, 1.0)
        return plain(prepared)

    network.features_of = features_of  # type: ignore[method-assign]
    return lambda: now[0]


EPILOGUE, BLOCKS = Form("epilogue", kernels=True), Form("epilogue", kernels=True, blocks=True)


def test_the_quickest_form_is_used_and_said(
    network: GpuI3D, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    seconds = {PLAIN: 0.4, EPILOGUE: 0.2, BLOCKS: 0.3}
    monkeypatch.setattr(time, "perf_counter", clock(seconds, network))
    plain = features(GpuNetwork(network, "float32"))
    assert network.form == PLAIN
    several = GpuNetwork(network, "float32", tries_out=True)
    found = features(several)
    assert network.form == EPILOGUE
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert "plain 400.0 ms" in caplog.text
    assert "used: epilogue+kernels" in caplog.text
    # cuDNN's fused convolution is not here: that is said, and no error.
    assert "cudnn+kernels+blocks" in caplog.text
    # Once per process.
    caplog.clear()
    features(GpuNetwork(network, "float32", tries_out=True))
    assert "400.0 ms" not in caplog.text
    assert network.form == EPILOGUE
    # The last clips of a run go as those before them, in a shape of their own.
    several.features_of_frames(FRAMES, INDEX[:1], is_full=False)
    assert network.form == EPILOGUE


def test_a_form_with_other_features_is_never_used(
    network: GpuI3D, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    seconds = {PLAIN: 0.4, EPILOGUE: 0.2, BLOCKS: 0.1}
    monkeypatch.setattr(time, "perf_counter", clock(seconds, network))
    with torch.no_grad():
        network.block_stem.weight.mul_(-1)
    features(GpuNetwork(network, "float32", tries_out=True))
    assert network.form == EPILOGUE
    assert "epilogue+kernels+blocks other features" in caplog.text


def test_trying_ends_when_it_takes_too_long(
    network: GpuI3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {PLAIN: 4.0, EPILOGUE: 0.2, BLOCKS: 0.1}
    monkeypatch.setattr(time, "perf_counter", clock(seconds, network))
    features(GpuNetwork(network, "float32", tries_out=True))
    assert network.form == PLAIN


@pytest.mark.parametrize("wrong", ["bias_relu", "max_pool", "cut"])
def test_a_kernel_that_is_wrong_is_found(
    network: GpuI3D,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    assert usable_kernels(network, FRAMES, INDEX)
    module._agreeing_kernels.clear()
    right = getattr(plain_kernels, wrong)
    monkeypatch.setattr(plain_kernels, wrong, _last_element_off(right, wrong))
    assert not usable_kernels(network, FRAMES, INDEX)
    assert f"own kernels are not used here: {wrong}" in caplog.text


def _last_element_off(right: Callable[..., None], name: str) -> Callable[..., None]:
    place = {"bias_relu": 2, "max_pool": 1, "cut": 4}[name]

    def off(*given: Any, **named: Any) -> None:
        right(*given, **named)
        given[place][(-1,) * given[place].ndim] += 1

    return off


def test_a_compiler_that_is_not_there_is_no_error(
    network: GpuI3D, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*given: object, **named: object) -> None:
        raise FileNotFoundError("gcc")

    monkeypatch.setattr(plain_kernels, "max_pool", fails)
    assert not usable_kernels(network, FRAMES, INDEX)
    assert "FileNotFoundError: gcc" in caplog.text
    assert all(not form.kernels for form in candidates(kernels=False))


def test_memory_that_runs_out_in_the_plain_form_is_for_the_encoder(network: GpuI3D) -> None:
    def no_memory(prepared: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    network.features_of = no_memory  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        features(GpuNetwork(network, "float32", tries_out=True))


@pytest.mark.parametrize("tries_out", [False, True])
def test_the_precision_holds_during_the_pass_and_no_longer(
    network: GpuI3D, monkeypatch: pytest.MonkeyPatch, tries_out: bool
) -> None:
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    seen = []

    def fails(prepared: Tensor) -> Tensor:
        seen.append((conv.fp32_precision, torch.backends.cudnn.benchmark))
        raise KeyError

    before = conv.fp32_precision, torch.backends.cudnn.benchmark
    network.features_of = fails  # type: ignore[method-assign]
    several = GpuNetwork(network, "float32", tries_out=tries_out)
    for is_full in (True, False):
        with pytest.raises(KeyError):
            features(several, is_full=is_full)
    # cuDNN tries algorithms out for the shape that comes often, and only where that pays.
    assert seen == [("ieee", tries_out), ("ieee", False)]
    assert (conv.fp32_precision, torch.backends.cudnn.benchmark) == before


class FakeGraph:
    """Runs the network again when replayed, as a captured graph would."""

    def __init__(self, replay: Callable[[], None]) -> None:
        self.replay = replay


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Captures on a CPU; ``how`` says what becomes of them."""
    state: dict[str, Any] = {"how": "good", "count": 0, "streams": []}

    def captured(
        function: Callable[[Tensor], Tensor], example: Tensor, *, pool: object
    ) -> module._Graph:
        state["count"] += 1
        if state["how"] == "fails":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        static, output = example.clone(), function(example).clone()

        def replay() -> None:
            if state["how"] == "good":
                output.copy_(function(static))

        return module._Graph(FakeGraph(replay), static, output, kept=None)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", state["streams"].append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return state


def graphed(network: GpuI3D) -> GpuNetwork:
    found = GpuNetwork(network, "float32")
    found.captures = True
    return found


def test_a_shape_that_comes_again_becomes_a_graph(
    network: GpuI3D, captures: dict[str, Any]
) -> None:
    several = graphed(network)
    plain = features(several)
    for _ in range(2):
        assert captures["count"] == 0
        assert torch.equal(features(several), plain)
    assert captures["count"] == 1
    replayed = features(several)
    assert torch.equal(replayed, plain)
    # Features of a group stay what they are when the next one is computed.
    other = several.features_of_frames(255 - FRAMES, INDEX, is_full=True)
    assert torch.equal(replayed, plain)
    assert not torch.allclose(other, plain)
    assert captures["count"] == 1
    several.forget()
    for _ in range(2):
        features(several)
    assert captures["count"] == 1
    features(several)
    assert captures["count"] == 2


def test_a_graph_that_computes_nothing_is_not_used(
    network: GpuI3D, captures: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    captures["how"] = "empty"
    several = graphed(network)
    plain = features(several)
    for _ in range(4):
        assert torch.equal(features(several), plain)
    assert captures["count"] == 1
    assert "gives other features: not used" in caplog.text


def test_a_capture_that_fails_is_the_last_one(
    network: GpuI3D, captures: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    captures["how"] = "fails"
    several = graphed(network)
    plain = features(several)
    for _ in range(4):
        assert torch.equal(features(several), plain)
    assert captures["streams"] == ["the stream before"]
    assert "no CUDA graph of the network: RuntimeError: operation not permitted" in caplog.text
    other = graphed(network)
    for _ in range(4):
        features(other)
    assert captures["count"] == 1


def test_a_cpu_captures_nothing(network: GpuI3D) -> None:
    several = GpuNetwork(network, "float32")
    assert not several.captures

"""Stage one on a GPU computes what it computes on a CPU, and takes what memory there is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from aqa_pipeline.backbone.gpu_form import PLAIN, Form, gpu_form
from aqa_pipeline.backbone.gpu_network import (
    GpuNetwork,
    _agreeing_kernels,
    candidates,
    usable_kernels,
)
from aqa_pipeline.backbone.precision import agreement, dtype_of
from aqa_pipeline.backbone.weights import load_i3d
from aqa_pipeline.device import device_name
from aqa_pipeline.extraction.doctor import _device
from aqa_pipeline.extraction.stream import encode_stream
from aqa_pipeline.media.clip import ClipFrames, DecodeTask
from aqa_pipeline.media.decode_pool import Decoded
from tests.gpu.conftest import REHEARSAL, Golden, Reading, largest_error, limited_memory

pytestmark = pytest.mark.gpu

PRECISIONS = ("float32",) if REHEARSAL else ("float32", "tf32", "fp16", "bf16")
#: Least cosine to the CPU's float32 features of real clips.
COSINE = {"float32": 0.999999, "tf32": 0.9999, "fp16": 0.9999, "bf16": 0.999}


def test_the_machine_is_as_doctor_says(device: torch.device, reading: Reading) -> None:
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    reading("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}")
    check = _device()
    reading("doctor", f"{check.status}: {check.found}")
    if device.type == "cuda":
        assert device_name("auto").startswith("cuda")
        assert check.status == "ok"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_a_convolution_is_right(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x, w = torch.randn(4, 64, 8, 28, 28), torch.randn(96, 64, 3, 3, 3) / 40
    exact = F.conv3d(x.double(), w.double(), padding=1)
    a, b = (t.to(device, dtype).contiguous(memory_format=layout) for t in (x, w))
    found = F.conv3d(a, b, padding=1).double().cpu()
    limit = 2e-3 if dtype == torch.float32 else 1e-2  # TF32 is torch's default here
    assert float((found - exact).norm() / exact.norm()) < limit


def test_frames_are_decoded_alike(golden: Golden) -> None:
    assert [int(f.astype(np.uint64).sum()) for f in golden.frames] == golden.sums.tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_the_cpus(
    golden: Golden, device: torch.device, reading: Reading, precision: str
) -> None:
    started = time.perf_counter()
    encode = golden.encoder(device, precision)
    alone = np.stack([encode(f) for f in golden.frames])
    seconds = time.perf_counter() - started
    error, cosine = largest_error(alone, golden.features), agreement(golden.features, alone)
    reading(
        f"{precision}: like the CPU",
        f"{error:.1e}, cosine {cosine:.7f}; start {seconds:.1f} s, "
        f"batch {getattr(encode, 'batch', 1)}",
    )
    if not REHEARSAL:
        groups = [np.stack(encode.start(golden.frames)()) for _ in range(4)]  # the last by a graph
        spread = golden.features.mean(axis=1).std(axis=0)
        far = np.sqrt(np.mean(((groups[0] - alone).mean(axis=1) / spread) ** 2, axis=1)).max()
        again = [largest_error(group, groups[0]) for group in groups[1:]]
        reading(
            f"{precision}: group against alone",
            f"{largest_error(groups[0], alone):.1e}, {far:.1e} spreads; again {max(again):.1e}",
        )
        assert min(agreement(golden.features, group) for group in groups) >= COSINE[precision]
    assert cosine >= COSINE[precision]
    assert error < 1e-4 or precision != "float32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_form_and_the_graph_give_the_plain_forms_features(
    golden: Golden, device: torch.device, reading: Reading, precision: str
) -> None:
    from aqa_pipeline.config import PIXEL_PRESETS
    from aqa_pipeline.media.snippets import snippet_index

    model, _ = load_i3d(golden.weights)
    network = gpu_form(model, PIXEL_PRESETS["demo"]).to(device=device, dtype=dtype_of(precision))
    protocol = golden.protocol
    one = snippet_index(protocol.snippet_starts, snippet_frames=protocol.snippet_frames)
    frames = torch.from_numpy(np.concatenate(golden.frames[:2])).to(device)
    index = torch.from_numpy(np.concatenate([one, one + len(golden.frames[0])])).to(device)

    def features(form: Form, *, graphs: bool = False) -> npt.NDArray[np.float32]:
        runner = GpuNetwork(network, precision, graphs=graphs, form=form)
        for _ in range(5 if graphs else 1):
            found = runner.features_of_frames(frames, index, is_full=True)
        assert not graphs or runner._graphs or device.type == "cpu", "no graph was captured"
        return found.cpu().numpy()

    expected = features(PLAIN)
    wanted = golden.features[:2].reshape(len(index), -1)
    assert agreement(wanted, expected) >= COSINE[precision]
    kernels = usable_kernels(network, frames, index[:2].contiguous())
    reading(f"{precision}: own kernels", f"{kernels} {_agreeing_kernels}")
    assert kernels or device.type == "cpu"
    for form in [PLAIN, *(candidates(kernels=kernels) if device.type == "cuda" else [])]:
        try:
            cosines = [agreement(expected, features(form, graphs=g)) for g in (False, True)]
        except RuntimeError as error:
            if form.convolution != "cudnn":
                raise
            reading(f"{precision}: form {form}", str(error).split("\n", 1)[0][:150])
            continue
        reading(f"{precision}: form {form}, graph", " ".join(f"{c:.7f}" for c in cosines))
        assert min(cosines) >= (0.999 if precision == "bf16" else 0.9999)


def test_every_clip_gets_its_own_features_while_others_are_on_their_way(
    golden: Golden, device: torch.device, reading: Reading
) -> None:
    encode = golden.encoder(device, "float32")
    random = np.random.default_rng(0)
    count = 4 if REHEARSAL else 60
    windows = [
        np.roll(golden.frames[n % len(golden.frames)], int(random.integers(1, 9999)))
        for n in range(count)
    ]
    expected = [encode(w) for w in windows]
    task = DecodeTask("x", golden.weights, np.arange(103), None, golden.weights, False)  # type: ignore[arg-type]

    def decoded() -> Iterator[Decoded]:
        for n, window in enumerate(windows):
            if random.random() < 0.2:
                time.sleep(0.02)
            yield Decoded(
                task, ClipFrames(task.video, window, task.positions, np.zeros(103), n, 103), None, 1
            )

    def windows_of(one: Decoded) -> list[npt.NDArray[np.uint8]]:
        return [one.clip.frames] if one.clip else []

    for turn in range(1 if REHEARSAL else 3):
        errors = [
            largest_error(own, expected[clip.clip.num_clamped])
            for clip, (own,) in encode_stream(decoded(), windows_of, encode)
            if clip.clip is not None
        ]
        reading(f"overlap, turn {turn}", f"{len(errors)} clips, {max(errors):.1e}")
        assert len(errors) == count
        assert max(errors) < 1e-4


def test_starting_a_group_does_not_wait_for_the_one_before(
    golden: Golden, device: torch.device, reading: Reading
) -> None:
    if REHEARSAL:
        pytest.skip("needs a GPU")
    encode = golden.encoder(device, "float32")
    group = golden.frames[:9]
    for _ in range(5):
        encode.start(group)()
    torch.cuda.synchronize()
    at, waits = [time.perf_counter()], []
    for _ in range(3):
        waits.append(encode.start(group))
        at.append(time.perf_counter())
    for wait in waits:
        wait()
    at.append(time.perf_counter())
    taken = np.diff(at) * 1e3
    reading("start of three groups, wait", ", ".join(f"{t:.1f}" for t in taken) + " ms")
    # Two buffers take turns: the third group's upload waits for the first one's.
    assert taken[1] < 0.3 * taken.sum()


@pytest.mark.parametrize("tries_out", [True, False])
def test_a_batch_is_halved_where_memory_is_short(
    golden: Golden, device: torch.device, reading: Reading, tries_out: bool
) -> None:
    if REHEARSAL:
        pytest.skip("needs a GPU")
    encode = golden.encoder(device, "fp16", num_clips=100_000 if tries_out else 20)
    expected = encode.start(golden.frames)()
    batch = encode.batch
    encode.network.forget()
    with limited_memory(4e8, device):
        found = encode.start(golden.frames)()
    cosine = agreement(np.concatenate(expected), np.concatenate(found))
    reading(f"shortage, trial {tries_out}", f"batch {batch} to {encode.batch}, cosine {cosine:.6f}")
    assert encode.batch < batch
    assert cosine > 0.9999

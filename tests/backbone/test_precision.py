"""Precisions: agreement by hand, the first that agrees, what a CPU refuses, what is cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aqa_pipeline.backbone.precision import PRECISIONS, agreement, choose, computing_in
from aqa_pipeline.cache.fingerprint import cache_folder, ensure_cache, fingerprint_of
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import SetupError, UsageError
from aqa_pipeline.extraction import choose_precision as module
from aqa_pipeline.extraction.choose_precision import find_precision, sample_windows
from tests.support.small_project import make_project

FEATURES = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
Array = npt.NDArray[np.float32]


def turned(cosine: float) -> Array:
    """FEATURES, the last row turned away so that its cosine is this."""
    row = FEATURES[-1].astype(np.float64)
    other = np.random.default_rng(1).standard_normal(32)
    other -= row * (other @ row) / (row @ row)
    other *= np.linalg.norm(row) / np.linalg.norm(other)
    rows = FEATURES.copy()
    rows[-1] = 3 * (cosine * row + np.sqrt(1 - cosine**2) * other)  # its length does not matter
    return rows


@pytest.mark.parametrize("cosine", [1.0, 0.9995, 0.99, 0.0])
def test_agreement_is_the_cosine_of_the_worst_row(cosine: float) -> None:
    assert agreement(FEATURES, turned(cosine)) == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_do_not_agree(bad: float) -> None:
    rows = FEATURES.copy()
    rows[2, 3] = bad
    assert agreement(FEATURES, rows) == -1
    assert agreement(np.zeros((2, 3)), np.zeros((2, 3))) == 0


def network(cosines: dict[str, float]) -> Callable[[str], Array]:
    return lambda precision: turned(cosines.get(precision, 1.0))


def test_the_first_that_agrees_is_chosen() -> None:
    candidates = PRECISIONS
    choice = choose(candidates, network({"fp16": 0.9998, "bf16": 0.99992}))
    assert choice.precision == "bf16"
    assert choice.cosines == pytest.approx({"fp16": 0.9998, "bf16": 0.99992}, abs=1e-5)
    assert choose(candidates, network({})).precision == "fp16"
    none = choose(candidates, network(dict.fromkeys(candidates[:3], 0.9)))
    assert (none.precision, len(none.cosines)) == ("float32", 3)


def flags() -> tuple[object, ...]:
    """Everything that :func:`computing_in` may touch, and what it must not."""
    cudnn = torch.backends.cudnn
    return (
        cudnn.allow_tf32,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        cudnn.benchmark,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [
        ("tf32", torch.float32, (True, "tf32")),
        ("float32", torch.float32, (False, "ieee")),
        ("fp16", torch.float16, (False, "ieee")),
        ("bf16", torch.bfloat16, (False, "ieee")),
    ],
)
def test_computing_in_a_precision_leaves_nothing_behind(
    precision: str, dtype: torch.dtype, tf32: tuple[bool, str]
) -> None:
    before = flags()
    with computing_in(precision, benchmark=True) as found:
        assert found == dtype
        # The head's products are no business of the backbone's precision.
        assert flags() == (*tf32, True, *before[3:])
        with computing_in("float32"):
            assert flags() == (False, "ieee", False, *before[3:])
        assert flags() == (*tf32, True, *before[3:])
    assert flags() == before
    with pytest.raises(KeyError), computing_in(precision, benchmark=True):
        raise KeyError
    assert flags() == before


def test_flags_that_contradict_one_another_are_put_right() -> None:
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    conv.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            _ = torch.backends.cudnn.allow_tf32
        with computing_in("tf32"):
            assert torch.backends.cudnn.allow_tf32
        assert conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_project(tmp_path, clips_per_video=2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU without bf16, whose networks agree with float32 as the dict says."""
    cosines: dict[str, float] = {}

    def backbone(weights: Path, protocol: object, *, device: str, precision: str) -> object:
        assert device == "cuda:1"  # and no number of clips: nothing is tried out for a few
        return lambda: lambda frames: turned(cosines.get(precision, 1.0))

    monkeypatch.setattr(module, "i3d_backbone", backbone)
    monkeypatch.setattr(module, "supported_precisions", lambda _: ("fp16", "tf32", "float32"))
    return cosines


def find(asked: str, manifest: Manifest, *, device: str = "cuda:1", compares: bool = True) -> str:
    return find_precision(
        asked,
        device=device,
        manifest=manifest,
        cache_root=manifest.path.parent.parent / "cache",
        weights=Path("w.safetensors"),
        weights_sha256="00" * 32,
        compares=compares,
    )


def test_a_cpu_computes_in_float32(manifest: Manifest) -> None:
    assert find("auto", manifest, device="cpu") == "float32"
    assert find("float32", manifest, device="cpu") == "float32"
    for asked in ("bf16", "fp16", "tf32"):
        with pytest.raises(UsageError, match=f"--precision {asked} needs a GPU"):
            find(asked, manifest, device="cpu")
    with pytest.raises(UsageError, match="'half' is none of auto, fp16, bf16, tf32, float32"):
        find("half", manifest, device="cpu")


def test_auto_compares_on_clips_of_the_data_set_and_says_what_it_chose(
    manifest: Manifest, gpu: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert find("auto", manifest) == "fp16"
    assert "precision fp16 (cosine to float32: fp16 1.00000; at least 0.9999" in caplog.text
    assert caplog.records[-1].levelname == "INFO"
    gpu["fp16"] = 0.99
    assert find("auto", manifest) == "tf32"
    gpu["tf32"] = 0.5
    assert find("auto", manifest) == "float32"
    assert "precision float32 (cosine to float32: fp16 0.99000, tf32 0.50000" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"


def test_a_plan_that_is_only_shown_computes_nothing(
    manifest: Manifest, gpu: dict[str, float]
) -> None:
    gpu["fp16"] = 0.5
    assert find("auto", manifest, compares=False) == "fp16"
    assert find("auto", manifest) == "tf32"


@pytest.mark.usefixtures("gpu")
def test_auto_goes_on_in_the_precision_of_the_cache_that_is_there(manifest: Manifest) -> None:
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32, precision="float32")
    root = manifest.path.parent.parent / "cache"
    ensure_cache(cache_folder(root, "small", fingerprint), fingerprint)
    assert find("auto", manifest) == "float32"
    assert find("tf32", manifest) == "tf32"


@pytest.mark.usefixtures("gpu")
def test_what_is_asked_for_is_used_if_the_gpu_has_it(manifest: Manifest) -> None:
    assert find("fp16", manifest) == "fp16"
    with pytest.raises(SetupError, match=r"cuda:1 has no hardware for bf16; .*--precision fp16"):
        find("bf16", manifest)


@pytest.mark.usefixtures("gpu")
def test_without_a_clip_to_compare_on_it_is_float32(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for video in (tmp_path / "videos").glob("*"):
        video.write_bytes(b"nothing")
    assert find("auto", manifest) == "float32"
    assert "no clip could be decoded" in caplog.text


def test_samples_skip_clips_that_cannot_be_decoded(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "videos" / "v0.mp4").write_bytes(b"nothing")
    windows = sample_windows(manifest, index_folder=tmp_path / "index")
    assert [window.shape for window in windows] == [(9, 112, 112, 3)] * 2

"""Views in the cache: each is the clip extracted apart; missing ones are added later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aqa_pipeline.backbone.encoder import Encode
from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.load import wanted
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import ExtractConfig
from aqa_pipeline.datasets.locate import locate
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.extraction.plan import plan_extraction
from aqa_pipeline.extraction.work import ExtractSummary, extract
from aqa_pipeline.media.views import ViewSet, views_of
from tests.support.small_project import encode_numbers, make_project

CONFIG = ExtractConfig(workers=1, clip_timeout_seconds=60)


def encode_sides(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Frame numbers, and sums over frames that tell left from right: (1, 5)."""
    numbers = encode_numbers(frames)[0]
    half = frames.shape[2] // 2
    weights = np.arange(len(frames), dtype=np.float64)[:, None, None, None]
    sides = [(weights * frames[:, :, part]).sum() for part in (slice(half), slice(half, None))]
    return np.array([[*numbers, *sides]], dtype=np.float32)


def sided_backbone() -> Encode:
    return encode_sides


def mark_right_half(manifest: Manifest) -> None:
    """The pictures of the tests are the same left and right: a dark corner tells them apart."""
    import av

    from tests.support.videos import picture

    for path in sorted({manifest.video_path(video) for video in manifest.clips["video"]}):
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libx264", rate=25, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
            for number in range(40):
                image = picture(number, size=(160, 128))
                image[:, 110:] = number * 3
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                output.mux(stream.encode(frame.reformat(format="yuv420p")))
            output.mux(stream.encode(None))


def run(manifest: Manifest, root: Path, views: ViewSet, *, shift_frames: int = 3) -> ExtractSummary:
    plan = plan_extraction(
        manifest,
        cache_root=root / "cache",
        fingerprint=fingerprint_of(manifest.protocol, weights_sha256="00" * 32),
        views=views_of(views, shift_frames=shift_frames),
    )
    return extract(plan, backbone=sided_backbone, config=CONFIG)


def load(manifest: Manifest, root: Path, names: list[str]) -> npt.NDArray[np.float32]:
    """Features, shape=(clips, views, 5)."""
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    cache = FeatureCache.open(root / "cache" / manifest.name / fingerprint.folder_name)
    located, _ = locate(manifest, index_folder=root / "cache" / "video-index")
    return cache.load(wanted(located), view_names=names).values[:, :, 0]


def shifted(manifest: Manifest, frames: int) -> Manifest:
    """The same clips under a manifest whose windows are moved."""
    path = manifest.path.with_name(f"moved{frames + 9}.csv")
    clips = manifest.clips.assign(end_frame=manifest.clips["end_frame"] + frames)
    write_manifest(path, clips.assign(start_frame=clips["start_frame"] + 0))
    toml = manifest.path.with_suffix(".toml").read_text()
    path.with_suffix(".toml").write_text(toml)
    return read_manifest(path)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    root = tmp_path_factory.mktemp("views")
    manifest = make_project(root, clips_per_video=2, videos=1)
    mark_right_half(manifest)
    summary = run(manifest, root, "full")
    assert (summary.num_extracted, summary.failures) == (2, [])
    return manifest, root


@pytest.mark.parametrize("shift", [-3, -1, 2, 3])
def test_a_shifted_view_is_the_clip_extracted_from_the_shifted_window(
    full: tuple[Manifest, Path], shift: int
) -> None:
    manifest, root = full
    moved = shifted(manifest, shift)
    run(moved, root, "flip")
    apart = load(moved, root, ["plain", "flip"])
    name = f"shift{shift:+d}"
    np.testing.assert_array_equal(load(manifest, root, [name, f"{name}-flip"]), apart)
    assert (load(manifest, root, ["plain"])[:, 0, 0] + shift == apart[:, 0, 0]).all()


def test_a_flipped_view_has_left_and_right_exchanged(full: tuple[Manifest, Path]) -> None:
    plain, flip = load(*full, ["plain", "flip"]).transpose(1, 0, 2)
    assert (plain[:, 3] != plain[:, 4]).all()
    np.testing.assert_array_equal(flip[:, [4, 3]], plain[:, [3, 4]])


def test_positions_stored_are_those_of_the_plain_window(full: tuple[Manifest, Path]) -> None:
    manifest, root = full
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    cache = FeatureCache.open(root / "cache" / "small" / fingerprint.folder_name)
    (segment,) = cache.segments
    assert len(segment.view_names) == 14
    assert segment.frame_index[0].tolist() == list(range(3, 12))


def test_missing_views_are_added_without_extracting_the_plain_one_again(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2, videos=1)
    run(manifest, tmp_path, "none")
    summary = run(manifest, tmp_path, "full", shift_frames=1)
    assert (summary.num_cached, summary.num_extracted) == (0, 2)
    assert run(manifest, tmp_path, "full", shift_frames=1).num_cached == 2
    assert run(manifest, tmp_path, "flip").num_cached == 2
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    cache = FeatureCache.open(tmp_path / "cache" / "small" / fingerprint.folder_name)
    assert [segment.view_names for segment in cache.segments] == [
        ("plain",),
        ("flip", "shift-1", "shift-1-flip", "shift+1", "shift+1-flip"),
    ]


def test_a_shift_past_the_video_repeats_its_frames_even_with_strict_window(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=1, videos=1)  # 25 frames
    clips = manifest.clips.assign(start_frame=[10], end_frame=[25])
    write_manifest(manifest.path, clips)
    manifest = read_manifest(manifest.path)
    plan = plan_extraction(
        manifest,
        cache_root=tmp_path / "cache",
        fingerprint=fingerprint_of(manifest.protocol, weights_sha256="00" * 32),
        views=views_of("full", shift_frames=2),
    )
    config = ExtractConfig(workers=1, strict_window=True)
    summary = extract(plan, backbone=sided_backbone, config=config)
    assert (summary.failures, summary.clamped) == ([], {})
    values = load(manifest, tmp_path, ["plain", "shift+2"])
    assert values[0, :, :2].tolist() == [[16, 24], [18, 24]]

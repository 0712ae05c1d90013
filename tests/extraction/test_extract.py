"""Stage one end to end on tiny videos, with a backbone that reads the frame numbers."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aqa_pipeline.backbone.encoder import Encode
from aqa_pipeline.backbone.gpu_encoder import BatchedEncoder
from aqa_pipeline.cache.failures import Failure, FailureLog
from aqa_pipeline.cache.fingerprint import BACKBONE_DIM, ensure_cache, fingerprint_of
from aqa_pipeline.cache.load import find_cache, wanted
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig
from aqa_pipeline.datasets.locate import locate
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.errors import CacheError
from aqa_pipeline.extraction.leases import Leases
from aqa_pipeline.extraction.plan import estimate, plan_extraction
from aqa_pipeline.extraction.shards import Shard
from aqa_pipeline.extraction.work import ExtractSummary, default_workers, extract
from aqa_pipeline.media.views import views_of
from tests.support.small_project import encode_numbers, fake_backbone, make_project
from tests.support.videos import write_video

CONFIG = ExtractConfig(workers=1, clip_timeout_seconds=60)


def run(manifest: Manifest, root: Path, *, config: ExtractConfig = CONFIG) -> ExtractSummary:
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=root / "cache", fingerprint=fingerprint)
    return extract(plan, backbone=fake_backbone, config=config)


def load(manifest: Manifest, root: Path) -> dict[str, list[float]]:
    cache = find_cache(root / "cache" / manifest.name, manifest.protocol)
    located, _ = locate(manifest, index_folder=root / "cache" / "video-index")
    features = cache.load(wanted(located))
    return dict(zip(features.clip_ids, features.values[:, 0, 0].tolist(), strict=True))


def edit(manifest: Manifest, **changes: Any) -> Manifest:
    write_manifest(manifest.path, manifest.clips.assign(**changes))
    return read_manifest(manifest.path)


def test_every_clip_gets_the_features_of_exactly_its_frames(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=3)
    summary = run(manifest, tmp_path)
    assert (summary.num_wanted, summary.num_cached, summary.num_extracted) == (6, 0, 6)
    assert not summary.failures
    features = load(manifest, tmp_path)
    # Window [end - 9, end); the first clip's end is 12, the next ones' 17 and 22.
    assert features["v0_0"] == [3, 11, 7]
    assert features["v1_2"] == [13, 21, 17]


def test_a_second_run_does_nothing_and_never_loads_the_network(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    run(manifest, tmp_path)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)

    def no_backbone() -> object:
        raise AssertionError("the network was loaded")

    summary = extract(plan, backbone=no_backbone, config=CONFIG)  # type: ignore[arg-type]
    assert (summary.num_cached, summary.num_extracted) == (4, 0)


def test_an_interrupted_run_keeps_what_was_done_and_the_next_does_the_rest(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=4)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(plan, backbone=fake_backbone, config=CONFIG, progress=interrupt)
    summary = run(manifest, tmp_path)
    assert (summary.num_cached, summary.num_extracted) == (3, 5)
    assert len(load(manifest, tmp_path)) == 8


def test_bad_videos_fail_alone_and_are_not_tried_again_unless_asked(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    videos = manifest.clips["video"].tolist()
    (tmp_path / "videos" / "empty.mp4").write_bytes(b"")
    videos[0], videos[3] = "../videos/empty.mp4", "../videos/gone.mp4"
    manifest = edit(manifest, video=videos)
    summary = run(manifest, tmp_path)
    assert summary.num_extracted == 2
    assert {f.clip_id: f.stage for f in summary.failures} == {"v0_0": "open", "v1_1": "open"}
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    again = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)
    assert [f.clip_id for f in again.failed_before] == ["v0_0"]
    assert (len(again.to_do), len(again.missing)) == (0, 1)
    retry = plan_extraction(
        manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint, retry_failed=True
    )
    assert [item.clip.clip_id for item in retry.to_do] == ["v0_0"]
    # Once the videos are right, nothing else is needed.
    shutil.copy(tmp_path / "videos" / "v0.mp4", tmp_path / "videos" / "empty.mp4")
    shutil.copy(tmp_path / "videos" / "v1.mp4", tmp_path / "videos" / "gone.mp4")
    summary = run(manifest, tmp_path)
    assert (summary.num_extracted, summary.failures) == (2, [])


def test_a_changed_video_or_window_is_extracted_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    run(manifest, tmp_path)
    before = load(manifest, tmp_path)
    manifest = edit(manifest, end_frame=[13, *manifest.clips["end_frame"].tolist()[1:]])
    summary = run(manifest, tmp_path)
    assert (summary.num_cached, summary.num_extracted) == (3, 1)
    assert "1 clips are cached for another video file or window: extracted again" in caplog.text
    after = load(manifest, tmp_path)
    assert after["v0_0"] == [4, 12, 8] != before["v0_0"]
    write_video(tmp_path / "videos" / "v1.mp4", 31, size=(160, 128))
    assert run(manifest, tmp_path).num_extracted == 2


def test_windows_past_the_video_are_clamped_or_with_strict_window_failed(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    ends = manifest.clips["end_frame"].tolist()
    manifest = edit(manifest, end_frame=[5, 33, *ends[2:]])
    strict = ExtractConfig(workers=1, strict_window=True)
    summary = run(manifest, tmp_path, config=strict)
    assert {f.clip_id: f.stage for f in summary.failures} == {"v0_0": "window", "v0_1": "window"}
    shutil.rmtree(tmp_path / "cache")
    summary = run(manifest, tmp_path)
    assert summary.clamped == {"v0_0": 4, "v0_1": 3}
    assert not summary.failures
    features = load(manifest, tmp_path)
    assert features["v0_0"][:2] == [0, 4]
    assert features["v0_1"][:2] == [24, 29]


def test_the_length_of_the_video_stands_in_for_a_missing_end_frame(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    manifest = edit(manifest, end_frame=[None] * 4, start_frame=[None] * 4)
    run(manifest, tmp_path)
    assert load(manifest, tmp_path)["v0_0"][:2] == [21, 29]


def test_another_protocol_does_not_find_the_cache_and_says_what_differs(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    run(manifest, tmp_path)
    text = manifest.path.with_suffix(".toml").read_text()
    changed = text.replace('window_rule = "last"', 'window_rule = "first"')
    manifest.path.with_suffix(".toml").write_text(changed)
    protocol = read_manifest(manifest.path).protocol
    with pytest.raises(CacheError, match=r"window_rule: first here, last there"):
        find_cache(tmp_path / "cache" / "small", protocol)
    with pytest.raises(CacheError, match="no features yet; type `aqa extract --dataset other`"):
        find_cache(tmp_path / "cache" / "other", protocol)


def test_a_network_that_gives_nonsense_fails_the_clip(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)

    def sick_backbone() -> object:
        return lambda frames: encode_numbers(frames) * np.nan

    summary = extract(plan, backbone=sick_backbone, config=CONFIG)  # type: ignore[arg-type]
    assert {failure.stage for failure in summary.failures} == {"network"}
    cache = FeatureCache.open(plan.folder)
    assert not cache.clip_ids()


def test_a_missing_video_is_written_down_once(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=1)
    (tmp_path / "videos" / "v0.mp4").unlink()
    for _ in range(2):
        assert len(run(manifest, tmp_path).failures) == 1
    (log,) = (tmp_path / "cache" / "small").glob("*/failures-*.jsonl")
    assert len(log.read_text().splitlines()) == 1


def test_shards_together_are_the_whole_and_share_one_cache(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=3)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    for index in (1, 2):
        plan = plan_extraction(
            manifest,
            cache_root=tmp_path / "cache",
            fingerprint=fingerprint,
            shard=Shard(index, 2),
        )
        assert {item.clip.video.name for item in plan.to_do} == {f"v{index - 1}.mp4"}
        summary = extract(plan, backbone=fake_backbone, config=CONFIG)
        assert (summary.num_wanted, summary.num_cached, summary.num_extracted) == (3, 0, 3)
    assert run(manifest, tmp_path).num_cached == 6


def test_what_another_process_wrote_since_the_plan_is_not_extracted_again(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)
    run(manifest, tmp_path)
    told: list[tuple[int, int]] = []
    summary = extract(
        plan, backbone=fake_backbone, config=CONFIG, progress=lambda *now: told.append(now)
    )
    assert (summary.num_cached, summary.num_elsewhere, summary.num_extracted) == (0, 4, 0)
    assert told[-1] == (4, 4)


def test_clips_in_another_process_hands_are_waited_for_and_its_failures_believed(
    tmp_path: Path,
) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)
    fails, vanishes = plan.to_do[0], plan.to_do[1]
    ensure_cache(plan.folder, fingerprint)
    with Leases(plan.folder) as other:
        assert other.take(fails.key)
        assert other.take(vanishes.key)

        def other_process(done: int, total: int) -> None:
            if done == 2:  # all but the two
                FailureLog(plan.folder).append(
                    Failure("v0_0", fails.source_id, fails.frame_window, "decode", "a bad packet")
                )
                other.release([fails.key, vanishes.key])

        summary = extract(plan, backbone=fake_backbone, config=CONFIG, progress=other_process)
    assert summary.num_extracted == 3
    assert [failure.error for failure in summary.failures] == ["a bad packet"]


def test_the_estimate_counts_bytes_and_takes_the_rate_from_earlier_segments(
    tmp_path: Path,
) -> None:
    manifest = make_project(tmp_path, clips_per_video=4)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(
        manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint, shard=Shard(1, 2)
    )
    first = estimate(plan)
    assert (first.seconds, first.nearest) == (None, None)

    def slow() -> Encode:
        def encode(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            time.sleep(0.2)
            return encode_numbers(frames)

        return encode

    extract(plan, backbone=slow, config=ExtractConfig(workers=1, flush_clips=1))
    flip = plan_extraction(
        manifest,
        cache_root=tmp_path / "cache",
        fingerprint=fingerprint,
        views=views_of("flip", shift_frames=0),
    )
    costs = estimate(flip)
    assert costs.views_per_second == pytest.approx(5, rel=0.5)
    # Half the clips need both views, the others the mirrored one; 3 numbers each.
    assert costs.seconds == pytest.approx(12 / costs.views_per_second)  # type: ignore[operator]
    before = sum(path.stat().st_size for path in plan.folder.glob("*.h5"))
    extract(flip, backbone=fake_backbone, config=CONFIG)
    written = sum(path.stat().st_size for path in plan.folder.glob("*.h5")) - before
    assert costs.num_bytes < written < costs.num_bytes + 2 * 16_000


def test_the_estimate_names_the_settings_that_differ_from_the_nearest_cache(
    tmp_path: Path,
) -> None:
    manifest = make_project(tmp_path, clips_per_video=1)
    run(manifest, tmp_path)
    other = fingerprint_of(manifest.protocol, weights_sha256="11" * 32)
    costs = estimate(plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=other))
    assert costs.nearest is not None
    assert costs.differences == ["weights_sha256: 111111111111 here, 000000000000 there"]


def test_the_size_of_a_feature_is_that_of_the_network() -> None:
    from aqa_pipeline.backbone.i3d import FEATURE_DIM

    assert BACKBONE_DIM == FEATURE_DIM


@pytest.mark.parametrize(
    ("cores", "beside_a_cpu_network", "beside_a_gpu"), [(2, 1, 1), (16, 4, 15), (128, 8, 16)]
)
def test_decoders_leave_the_cores_to_a_network_that_needs_them(
    monkeypatch: pytest.MonkeyPatch, cores: int, beside_a_cpu_network: int, beside_a_gpu: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert default_workers() == beside_a_cpu_network
    assert default_workers("cuda:0") == beside_a_gpu


def test_several_clips_share_a_batch_and_none_is_lost_when_memory_runs_out(tmp_path: Path) -> None:
    """As on a GPU, with a network that reads frame numbers and has room for fewer and fewer."""
    manifest = make_project(tmp_path, clips_per_video=5)
    batches: list[int] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        if len(x) > (4 if len(batches) < 2 else 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        batches.append(len(x))
        levels = (x[:, 0, [0, -1], 10, 56] + 1) * 127.5  # the band that holds the lowest digit
        return levels / 4

    encoder = BatchedEncoder(
        network,
        pixels=PIXEL_PRESETS["demo"],
        index=np.arange(9)[None],
        window_frames=9,
        device=torch.device("cpu"),
        batch=4,
        facts={"gpu": "none"},
    )
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)
    summary = extract(plan, backbone=lambda: encoder, config=CONFIG)
    assert (summary.num_extracted, summary.failures) == (10, [])
    assert batches == [4, 4, 1, 1]
    first = {clip: round(number) for clip, (number, *_) in load(manifest, tmp_path).items()}
    assert first == {f"v{v}_{clip}": 3 + 5 * clip for v in range(2) for clip in range(5)}
    (segment,) = FeatureCache.open(plan.folder).segments
    assert segment.machines[0]["gpu"] == "none"


def test_decoding_begins_while_the_network_is_loaded(tmp_path: Path) -> None:
    manifest = make_project(tmp_path, clips_per_video=2)
    fingerprint = fingerprint_of(manifest.protocol, weights_sha256="00" * 32)
    plan = plan_extraction(manifest, cache_root=tmp_path / "cache", fingerprint=fingerprint)
    claimed: list[Path] = []

    def backbone() -> Encode:
        claimed.extend(plan.folder.glob("claims/*"))
        return encode_numbers

    assert extract(plan, backbone=backbone, config=CONFIG).num_extracted == 4
    assert claimed

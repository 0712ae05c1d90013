"""The demo data: its pictures and its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from aqa_pipeline.datasets.demo import dataset as demo
from aqa_pipeline.datasets.demo.competition import DemoConfig
from aqa_pipeline.datasets.demo.diver import DiveFaults, DiveKind, dive_motion
from aqa_pipeline.datasets.demo.raster import paint_limb, paint_spray, sample_window
from aqa_pipeline.datasets.demo.shots import Shot, render_shot
from aqa_pipeline.datasets.demo.venue import make_venue
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.errors import DataError, SetupError
from tests.datasets.demo.test_competition import SINGLE_FAULTS

TINY = DemoConfig(num_broadcasts=2, num_train=2, num_test=2, width=96, height=64)


# --- pictures ------------------------------------------------------------------------------


def test_limb_covers_its_area_and_stays_inside_the_picture() -> None:
    canvas = np.zeros((40, 60, 3), dtype=np.float32)
    white = np.full(3, 100, dtype=np.float32)
    start, end = np.array([10.0, 20.0]), np.array([40.0, 20.0])
    paint_limb(canvas, start, end, radii=(4, 4), colour=white, shading=0.0)
    area = canvas[..., 0].sum() / 100
    assert area == pytest.approx(30 * 8 + np.pi * 16, rel=0.01)
    before = canvas.copy()
    far_away = np.array([-50.0, -50.0])
    paint_limb(canvas, far_away, far_away, radii=(4, 4), colour=white)
    paint_spray(canvas, far_away[None], np.ones(1), blur=1.0, colour=white)
    np.testing.assert_array_equal(canvas, before)


def test_window_is_bilinear_and_repeats_the_border() -> None:
    panorama = np.zeros((4, 5, 3), dtype=np.float32)
    panorama[:] = (10 * np.arange(4)[:, None] + np.arange(5))[..., None]
    window = sample_window(panorama, np.array([-3.0, 0.5, 9.0]), np.array([1.25]))
    np.testing.assert_allclose(window[0, :, 0], [12.5, 13.0, 16.5])


def _frames(shot: Shot, *, seed: int = 5) -> np.ndarray:
    venue = make_venue(np.random.default_rng(seed), width=176, height=128)
    return np.stack(list(render_shot(shot, venue, width=176, height=128, fps=25)))


#: From 20 frames before the water to 12 after it.
LATE_DIVE = Shot(
    32, (0, 1), kind=DiveKind(1, 5, "C"), faults=DiveFaults(splash=0.1), take_off_frame=-24.0
)


@pytest.mark.parametrize(("fault", "value"), SINGLE_FAULTS.items())
def test_each_fault_alone_is_seen(fault: str, value: float) -> None:
    assert LATE_DIVE.faults is not None
    worse = replace(LATE_DIVE, faults=replace(LATE_DIVE.faults, **{fault: value}))
    difference = np.abs(_frames(LATE_DIVE).astype(int) - _frames(worse)).max(axis=-1)
    # Each shows in the crop that the network is given, for at least half a snippet.
    centre = difference[:, 8:120, 32:144]
    assert ((centre > 40).sum(axis=(1, 2)) > 10).sum() >= 8


def test_larger_splash_is_whiter() -> None:
    def white(splash: float) -> int:
        shot = replace(LATE_DIVE, faults=DiveFaults(splash=splash))
        return int((_frames(shot)[26:, 60:] > 170).all(axis=-1).sum())

    small, middling, large = white(0.1), white(0.5), white(1.0)
    assert 1.5 * small < middling
    assert 1.5 * middling < large


def test_even_the_widest_dive_is_nearly_all_in_the_central_crop() -> None:
    """Where pictures of two such dives differ is inside the crop, but for 3 % of it."""
    kind, faults = DiveKind(3, 7, "C"), DiveFaults(distance_metres=0.6)
    times = (np.arange(78) - 30) / 25
    assert dive_motion(kind, faults, times).entry_seconds < times[-1]
    diver = Shot(78, (0, 9), kind=kind, faults=faults, take_off_frame=30.0)
    slower = replace(diver, faults=replace(faults, rotation_degrees=-40.0))
    moving = np.abs(_frames(diver).astype(int) - _frames(slower)).max(axis=-1) > 30
    outside = moving.copy()
    outside[:, 8:120, 32:144] = False
    assert moving.sum() > 1000
    assert outside.sum() < 0.03 * moving.sum()


def test_equal_seeds_give_equal_pictures_and_others_do_not() -> None:
    plans = [demo.plan_broadcasts(replace(TINY, seed=seed))[0] for seed in (0, 0, 1)]
    first, again, other = (
        [frame for frame, _ in zip(demo.broadcast_frames(plan, TINY), range(60), strict=False)]
        for plan in plans
    )
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    assert np.abs(np.stack(first).astype(int) - np.stack(other)).mean() > 3
    pd.testing.assert_frame_equal(demo.demo_manifest(TINY), demo.demo_manifest(TINY))
    assert not demo.demo_manifest(TINY).equals(demo.demo_manifest(replace(TINY, seed=1)))


# --- broadcasts, manifest, files -----------------------------------------------------------


def test_every_window_holds_the_whole_dive_and_nothing_else() -> None:
    config = DemoConfig()
    broadcasts = demo.plan_broadcasts(config)
    assert len(broadcasts) == 8
    for broadcast in broadcasts:
        edges = np.cumsum([0, *(shot.frames for shot in broadcast.shots)])
        dives = [place for place, shot in enumerate(broadcast.shots) if shot.kind is not None]
        assert len(dives) == len(broadcast.clips)
        for place, clip in zip(dives, broadcast.clips, strict=True):
            shot = broadcast.shots[place]
            assert shot.kind == clip.dive.kind
            assert shot.faults == clip.dive.faults
            assert clip.start_frame == edges[place]
            assert clip.start_frame < clip.end_frame - 103
            # Training may shift a window by three frames.
            assert clip.end_frame + 3 < edges[place + 1]
            assert broadcast.shots[place - 1].filler is not None
            take_off = clip.start_frame + shot.take_off_frame
            entry = take_off + 1.76 * config.fps
            assert clip.end_frame - 103 + 20 < take_off
            assert entry + 20 < clip.end_frame


def test_manifest_rows_follow_from_their_own_marks() -> None:
    rows = demo.demo_manifest()
    assert len(rows) == 264
    assert rows["clip_id"].is_unique
    assert (rows["start_frame"] < rows["end_frame"]).all()
    marks = rows[[f"judge_{number}" for number in range(1, 8)]].to_numpy()
    middle = np.sort(marks, axis=1)[:, 2:5].sum(axis=1)
    np.testing.assert_allclose(rows["score"], middle * rows["difficulty"], atol=1e-9)
    assert set(rows["split"]) == {"train", "test"}


def test_tiny_competition_decodes_to_the_planned_frames(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    rows = demo.render_demo(
        tmp_path, TINY, jobs=1, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(0, 2), (1, 2), (2, 2)]
    pd.testing.assert_frame_equal(rows, demo.demo_manifest(TINY))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("broadcast_01.json", "broadcast_01.mp4", "broadcast_02.json", "broadcast_02.mp4")
    ]
    for broadcast in demo.plan_broadcasts(TINY):
        with av.open(str(tmp_path / broadcast.name)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(decoded) == broadcast.frames
        painted = list(demo.broadcast_frames(broadcast, TINY))
        # Frame k of the file is picture k: neighbours across a cut would be far off.
        error = [np.abs(a.astype(int) - b).mean() for a, b in zip(decoded, painted, strict=True)]
        assert max(error) < 12
        assert rows["end_frame"][rows["video"] == broadcast.name].max() <= len(decoded)


@pytest.fixture
def renders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the broadcasts that were rendered; their pictures are grey, to be quick."""
    names: list[str] = []

    def grey(broadcast: demo.Broadcast, config: DemoConfig) -> Iterator[np.ndarray]:
        names.append(broadcast.name)
        yield from [np.full((config.height, config.width, 3), 90, dtype=np.uint8)] * 5

    monkeypatch.setattr(demo, "broadcast_frames", grey)
    return names


def test_finished_broadcasts_are_kept_and_stale_ones_are_made_again(
    tmp_path: Path, renders: list[str]
) -> None:
    def render(config: DemoConfig = TINY) -> list[str]:
        renders.clear()
        demo.render_demo(tmp_path, config, jobs=1)
        return list(renders)

    both = ["broadcast_01.mp4", "broadcast_02.mp4"]
    assert render() == both
    assert render() == []

    damaged = tmp_path / "broadcast_02.mp4"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    assert render() == ["broadcast_02.mp4"]
    damaged.with_suffix(".json").write_text("{")
    assert render() == ["broadcast_02.mp4"]

    assert render(replace(TINY, seed=3)) == both
    assert render() == both


def test_progress_counts_what_was_found_finished(tmp_path: Path, renders: list[str]) -> None:
    demo.render_demo(tmp_path, TINY, jobs=1)
    (tmp_path / "broadcast_01.mp4").unlink()
    steps: list[tuple[int, int]] = []
    demo.render_demo(
        tmp_path, TINY, jobs=1, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 2), (2, 2)]
    assert len(renders) == 3


def test_written_data_set_reads_back_and_knows_its_ceiling(
    tmp_path: Path, renders: list[str]
) -> None:
    path = tmp_path / "manifests" / "demo.csv"
    manifest = demo.write_demo(path, replace(TINY, num_train=8, num_test=12), jobs=1)
    assert renders == ["broadcast_01.mp4", "broadcast_02.mp4"]
    assert manifest.protocol == demo.PROTOCOL
    assert len(manifest) == 20
    assert all(clip.video.is_file() for clip in manifest.clip_list())
    test = manifest.clips[manifest.clips["split"] == "test"]
    noiseless = test["noiseless_score"].astype(float)
    best = demo.ceiling(manifest)
    assert best["rho"] == pytest.approx(spearmanr(noiseless, test["score"]).statistic)
    assert 0 < best["relative_l2"] < 0.02


def test_ceiling_of_another_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("clip_id,video,score\na,a.mp4,50\n")
    with pytest.raises(DataError, match=r"own.csv: no column noiseless_score"):
        demo.ceiling(read_manifest(path))


def test_folder_that_cannot_be_made_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    config = replace(TINY, num_broadcasts=1, num_train=1, num_test=1)
    with pytest.raises(SetupError, match=r"taken.*could not be written"):
        demo.render_demo(tmp_path / "taken", config, jobs=1)


def test_protocol_is_that_of_mtl_aqa_on_small_pictures() -> None:
    protocol = demo.PROTOCOL
    assert (protocol.window_rule, protocol.window_frames) == ("last", 103)
    assert (protocol.label_transform, protocol.score_range, protocol.epsilon) == ("raw", 30, 30)
    assert (protocol.exemplar_key, protocol.pixels) == (("difficulty",), "demo")

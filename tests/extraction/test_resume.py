"""Resuming a finished cache: quick, without decoding, without torch, PyAV or scipy."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from aqa_pipeline.backbone.weights import weights_identity
from aqa_pipeline.cache.fingerprint import BACKBONE_DIM, fingerprint_of
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets.locate import locate, video_index_folder
from aqa_pipeline.datasets.manifest import read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.media.identity import FileMemo, remember_length
from tests.support.videos import write_video

NUM_CLIPS, NUM_VIDEOS = 1412, 26
PROTOCOL = Protocol(name="many")

#: What `aqa` does, then what it has imported by then.
RESUME = """
import sys
from aqa_cli.main import cli
try:
    cli(["extract", "--dataset", "many", "--weights", "w.safetensors", "--json"])
except SystemExit as stop:
    heavy = {"torch", "av", "scipy", "scipy.stats"} & set(sys.modules)
    assert not heavy, heavy
    raise
"""


def write_weights(path: Path) -> Path:
    """As large as converted weights, and hashed like them; nobody loads them here."""
    arrays = {"weight": np.zeros(12_704_544, np.float32)}
    header = b"weight float32 12704544\n"
    sha256 = hashlib.sha256(header + arrays["weight"].tobytes()).hexdigest()
    save_file(arrays, path, metadata={"weights_sha256": sha256})
    return path


def fill_cache(root: Path, videos: list[str], *, with_end_frames: bool = True) -> None:
    """A manifest of 1412 clips in those videos, and features for all of them."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "clip_id": [f"clip{i}" for i in range(NUM_CLIPS)],
            "video": [videos[i % len(videos)] for i in range(NUM_CLIPS)],
            "score": rng.uniform(10, 90, NUM_CLIPS).round(2),
        }
    )
    if with_end_frames:
        rows["end_frame"] = [110 + i // len(videos) for i in range(NUM_CLIPS)]
    path = root / "manifests" / "many.csv"
    path.parent.mkdir(exist_ok=True)
    write_manifest(path, rows)
    write_protocol(path.with_suffix(".toml"), PROTOCOL)
    manifest = read_manifest(path)
    located, missing = locate(manifest, index_folder=video_index_folder(root / "cache"))
    assert not missing
    fingerprint = fingerprint_of(
        PROTOCOL, weights_sha256=weights_identity(write_weights(root / "w.safetensors"))
    )
    folder = root / "cache" / "many" / fingerprint.folder_name
    pts = np.zeros(PROTOCOL.window_frames)
    features = np.zeros((1, len(PROTOCOL.snippet_starts), BACKBONE_DIM), np.float32)
    with SegmentWriter(folder, fingerprint) as writer:
        for item in located:
            name = item.clip.clip_id
            writer.add(ClipFeatures(name, item.source_id, item.positions, pts, features))


def resume(root: Path) -> float:
    """Processor seconds of a run, which must find everything and import nothing heavy."""
    return min(_resume_once(root) for _ in range(2))


def _resume_once(root: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", RESUME], cwd=root, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["num_cached"], summary["num_extracted"]) == (NUM_CLIPS, 0)
    # Not by the clock: other programs run on this machine too.
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_finished_cache_of_1412_clips_of_video_files_is_recognised_in_two_seconds(
    tmp_path: Path,
) -> None:
    original = write_video(tmp_path / "v0.mp4", 30, size=(64, 48))
    videos = [f"../v{i}.mp4" for i in range(NUM_VIDEOS)]
    for name in videos[1:]:
        (tmp_path / name[3:]).write_bytes(original.read_bytes() + name.encode())
    fill_cache(tmp_path, videos)
    assert resume(tmp_path) < 2


def test_so_is_one_of_frame_folders(tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(b"x")
    names = [f"../f{i}" for i in range(NUM_VIDEOS)]
    for name in names:
        folder = tmp_path / name[3:]
        folder.mkdir()
        for number in range(2000):
            os.link(picture, folder / f"{number:08d}.jpg")  # making files takes ten times longer
    fill_cache(tmp_path, names)
    assert resume(tmp_path) < 2


def test_so_is_one_with_a_video_for_every_clip_and_no_end_frames(tmp_path: Path) -> None:
    original = write_video(tmp_path / "v0.mp4", 30, size=(64, 48))
    videos = [f"../v{i}.mp4" for i in range(NUM_CLIPS)]
    for name in videos[1:]:
        os.link(original, tmp_path / name[3:])
    index_folder = video_index_folder(tmp_path / "cache")
    for name in videos:  # as decoding them would have left it
        remember_length(FileMemo(tmp_path / name[3:], index_folder), 30)
    fill_cache(tmp_path, videos, with_end_frames=False)
    assert resume(tmp_path) < 2

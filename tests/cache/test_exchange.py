"""Features of other programs become a cache that heads can use, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from aqa_pipeline.cache.exchange import (
    ImportedFeatures,
    export_features,
    import_features,
    imported_fingerprint,
    resampled,
)
from aqa_pipeline.cache.foreign_files import read_foreign
from aqa_pipeline.cache.load import find_cache
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FitConfig, HeadConfig, Protocol
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.errors import CacheError, DataError
from aqa_pipeline.training.fit import fit_head
from tests.support.cache_data import FINGERPRINT

CLIPS = 24
SCORES = np.random.default_rng(1).uniform(10, 90, CLIPS).round(2)
IDS = [f"clip_{i:02d}" for i in range(CLIPS)]
#: Three poses a clip; the first number tells the score.
STACK = np.random.default_rng(2).standard_normal((CLIPS, 3, 4)).astype(np.float32)
STACK[:, :, 0] = SCORES[:, None] / 50


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A manifest whose videos do not exist."""
    path = tmp_path / "manifests" / "poses.csv"
    path.parent.mkdir()
    rows = {"clip_id": IDS, "video": "none.mp4", "score": SCORES}
    split = ["test" if i % 3 == 0 else "train" for i in range(CLIPS)]
    write_manifest(path, pd.DataFrame({**rows, "split": split}))
    write_protocol(path.with_suffix(".toml"), Protocol("poses"))
    return read_manifest(path)


def save(folder: Path, stack: object = STACK, ids: object = IDS) -> Path:
    np.savez(folder / "f.npz", features=np.asarray(stack), clip_id=np.asarray(ids))
    return folder / "f.npz"


def take(manifest: Manifest, path: Path, **options: object) -> ImportedFeatures:
    root = manifest.path.parent.parent / "cache"
    return import_features(manifest, path, cache_root=root, backbone="openpose", **options)  # type: ignore[arg-type]


def cached(done: ImportedFeatures) -> np.ndarray:
    cache = FeatureCache.open(done.folder)
    return cache.load(cache.stored(IDS), verify=True).values[:, 0]


def test_import_matches_by_id_in_any_order(manifest: Manifest, tmp_path: Path) -> None:
    done = take(manifest, save(tmp_path, STACK[::-1], IDS[::-1]))
    assert (done.num_clips, done.num_new, done.steps, done.dim) == (CLIPS, CLIPS, 3, 4)
    assert done.matched_by == "clip_id"
    assert done.folder.name == imported_fingerprint("openpose", steps=3, dim=4).folder_name
    np.testing.assert_array_equal(cached(done), STACK)
    np.save(tmp_path / "f.npy", STACK)
    assert take(manifest, tmp_path / "f.npy").matched_by == "order"


def test_a_second_import_adds_what_changed_and_the_newest_counts(
    manifest: Manifest, tmp_path: Path
) -> None:
    assert take(manifest, save(tmp_path), dry_run=True).num_new == CLIPS
    assert not (tmp_path / "cache").exists()
    take(manifest, save(tmp_path))
    assert take(manifest, save(tmp_path)).num_new == 0
    other = STACK.copy()
    other[5] += 1
    done = take(manifest, save(tmp_path, other))
    assert done.num_new == 1
    np.testing.assert_array_equal(cached(done), other)
    assert take(manifest, save(tmp_path)).num_new == 1  # back to the first: newest again
    np.testing.assert_array_equal(cached(done), STACK)


def test_sizes_never_share_a_folder(manifest: Manifest, tmp_path: Path) -> None:
    folders = {
        take(manifest, save(tmp_path, stack)).folder
        for stack in (STACK, STACK[:, :2], STACK[:, :, :2], STACK[:, 0])
    }
    assert len(folders) == 4


def test_heads_run_on_imported_features(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take(manifest, save(tmp_path))
    cache = find_cache(tmp_path / "cache" / "poses", manifest.protocol)
    result = fit_head(
        manifest,
        cache,
        tmp_path / "run",
        head_config=HeadConfig(num_groups=4, hidden=16, reduced_dim=8),
        fit_config=FitConfig(epochs=8, batch_size=8),
        device=torch.device("cpu"),
    )
    assert len(result.predictions.score) == 8
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["num_snippets"], config["feature_dim"]) == (3, 4)
    assert "cannot be reached" not in caplog.text  # nobody expects a video


def test_missing_imported_features_say_to_import(manifest: Manifest, tmp_path: Path) -> None:
    done = take(manifest, save(tmp_path, STACK[:5], IDS[:5]), partial=True)
    assert (done.num_clips, len(done.only_in_manifest)) == (5, 19)
    from aqa_pipeline.cache.load import load_features

    with pytest.raises(CacheError, match=r"19 of 24 clips are missing .*aqa cache import"):
        load_features(manifest, FeatureCache.open(done.folder), IDS)


def test_ids_that_do_not_match_are_counted_both_ways(manifest: Manifest, tmp_path: Path) -> None:
    ids = [*IDS[:-1], "zzz"]
    with pytest.raises(
        DataError,
        match=r"1 \('clip_23'\) only in the manifest, 1 \('zzz'\) only in the file, 23 in both; "
        "--partial takes",
    ):
        take(manifest, save(tmp_path, STACK, ids))
    ids = [f"x{i}" for i in range(CLIPS)]
    for partial in (False, True):
        with pytest.raises(
            DataError, match=r"24 \('clip_00', 'clip_01', 'clip_02', \.\.\.\) .*, 0 in both$"
        ):
            take(manifest, save(tmp_path, STACK, ids), partial=partial)
    np.save(tmp_path / "f.npy", STACK[1:])
    with pytest.raises(DataError, match=r"23 clips without ids, and .*poses\.csv has 24"):
        take(manifest, tmp_path / "f.npy")


def clip_folder(folder: Path, lengths: list[int], dim: int = 2) -> Path:
    folder.mkdir()
    for name, length in zip(IDS, lengths, strict=True):
        np.save(folder / f"{name}.npy", np.arange(length * dim).reshape(length, dim))
    return folder


def test_lengths_that_differ_need_resampling(manifest: Manifest, tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clips", list(range(3, 3 + CLIPS)))
    with pytest.raises(DataError, match=r"clips of 3 to 26 steps, .*--resample N"):
        take(manifest, folder)
    done = take(manifest, folder, resample=5)
    assert done.steps == 5
    # The first clip's steps (0, 1), (2, 3), (4, 5), each half step between them too.
    np.testing.assert_array_equal(cached(done)[0], [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]])


def test_dimensions_that_differ_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clips", [3] * CLIPS)
    np.save(folder / f"{IDS[4]}.npy", np.ones((3, 7)))
    with pytest.raises(DataError, match="2 numbers a step in clip 'clip_00', 7 in clip 'clip_04'"):
        take(manifest, folder)


def test_a_backbone_has_a_name(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a backbone needs a name"):
        import_features(manifest, save(tmp_path), cache_root=tmp_path, backbone=" ")


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_resampling_is_linear_interpolation(steps: int) -> None:
    sequence = STACK[0]
    expected = np.stack(
        [
            np.interp(np.linspace(0, len(sequence) - 1, steps), np.arange(len(sequence)), column)
            for column in sequence.T
        ],
        axis=1,
    )
    np.testing.assert_allclose(resampled(sequence, steps), expected, rtol=1e-6)
    np.testing.assert_array_equal(resampled(sequence, len(sequence)), sequence)
    np.testing.assert_array_equal(resampled(sequence[:1], 3), sequence[[0, 0, 0]])


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_export_is_in_the_manifests_order_and_imports_again(
    manifest: Manifest, tmp_path: Path, suffix: str
) -> None:
    done = take(manifest, save(tmp_path, STACK[::-1], IDS[::-1]))
    path = tmp_path / f"out{suffix}"
    exported = export_features(manifest, FeatureCache.open(done.folder), path)
    assert (exported.shape, exported.left_out) == ((CLIPS, 3, 4), [])
    found = read_foreign(path)
    assert found.clip_ids == IDS
    np.testing.assert_array_equal(np.stack(found.sequences), STACK)
    assert take(manifest, path).num_new == 0


def test_export_of_a_part(manifest: Manifest, tmp_path: Path) -> None:
    done = take(manifest, save(tmp_path, STACK[[9, 2]], [IDS[9], IDS[2]]), partial=True)
    cache = FeatureCache.open(done.folder)
    with pytest.raises(CacheError, match="22 of 24 clips are missing"):
        export_features(manifest, cache, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    exported = export_features(manifest, cache, tmp_path / "x.npz", partial=True)
    assert len(exported.left_out) == 22
    with np.load(tmp_path / "x.npz") as file:
        assert file["clip_id"].tolist() == [IDS[2], IDS[9]]
        np.testing.assert_array_equal(file["score"], SCORES[[2, 9]])
        np.testing.assert_array_equal(file["features"], STACK[[2, 9]])
        assert file["frame_index"].tolist() == [[0, 1, 2]] * 2
        about = json.loads(str(file["about"]))
    assert about["fingerprint"]["backbone"] == "openpose"
    assert about["fingerprint_sha256"] == cache.identity.fingerprint.sha256
    assert FINGERPRINT.pixels is not None
    assert about["fingerprint"]["pixels"] is None

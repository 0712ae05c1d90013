"""``aqa cache``: exit codes, what is printed, and what is imported."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from aqa_pipeline.cache.reader import FeatureCache
from tests.support.cache_data import FINGERPRINT, Clock, damage, make_clip, write
from tests.support.small_project import make_project

CLIPS = [make_clip(f"c{i}") for i in range(5)]


def aqa(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["cache", *(str(arg) for arg in args)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of three segments below cache/dives of the current project."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cache" / "dives" / FINGERPRINT.folder_name
    write(path, CLIPS, flush_clips=2)
    return path


def expect(result: Result, code: int, sentence: str) -> None:
    assert result.exit_code == code, result.output
    assert sentence in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_info_of_every_cache_of_one_and_of_a_folder(folder: Path) -> None:
    write(folder.parent.parent / "other" / "x", CLIPS[:1])
    every = json.loads(aqa("info", "--json").stdout)["caches"]
    assert [item["num_clips"] for item in every] == [5, 1]
    (one,) = json.loads(aqa("info", "--dataset", "dives", "--json").stdout)["caches"]
    assert (one["num_segments"], one["clips_of_view"]) == (3, {"plain": 5})
    assert one["identity"]["fingerprint"]["backbone"] == "i3d"
    assert json.loads(aqa("info", folder, "--json").stdout)["caches"] == [
        {**one, "folder": str(folder)}
    ]
    lines = aqa("info", "--dataset", "dives").stdout.splitlines()
    assert lines[0].startswith(f"cache/dives/{folder.name}")
    assert [line.split() for line in lines[1:4]] == [
        ["backbone", "i3d"],
        ["pixels", "kinetics"],
        ["clips", "5"],
    ]


def test_info_of_nothing_is_2_and_of_no_cache_5(folder: Path) -> None:
    expect(aqa("info", "--dataset", "no"), 2, "cache/no: no feature cache here; `aqa extract`")
    expect(aqa("info", "--dataset", "dives", folder), 2, "either --dataset NAME or folders")
    expect(aqa("info", folder.parent), 5, "no feature cache here (fingerprint.json is missing)")


def test_info_is_light(folder: Path) -> None:
    code = (
        "import sys\n"
        "from aqa_cli.main import cli\n"
        "try:\n    cli(['cache', 'info'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'scipy.stats', 'av', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clips" in done.stdout


def test_verify_moves_damage_away_and_is_3(folder: Path) -> None:
    assert aqa("verify").exit_code == 0
    bad = sorted(folder.glob("segment-*"))[1]
    damage(bad, "c2")
    kept = aqa("verify", "--keep", "--json")
    assert kept.exit_code == 3
    assert bad.exists()
    result = aqa("verify")
    assert result.exit_code == 3
    assert f"{bad.name}: wrong hash in 1 of 2 clips ('c2')" in result.stdout
    assert not bad.exists()
    assert (folder / "quarantine" / bad.name).exists()
    assert "verify" in result.stderr  # progress
    assert aqa("verify").exit_code == 0
    assert FeatureCache.open(folder).clip_ids() == {"c0", "c1", "c4"}


def test_compact_first_says_then_does(folder: Path) -> None:
    planned = json.loads(aqa("compact", "--dry-run", "--json").stdout)["caches"][0]
    assert (len(planned["merged"]), planned["written"]) == (3, [])
    assert len(list(folder.glob("segment-*"))) == 3
    assert aqa("compact").stdout.splitlines()[1].split() == ["merged", "3", "segments"]
    assert len(list(folder.glob("segment-*"))) == 1
    assert FeatureCache.open(folder).clip_ids() == {clip.clip_id for clip in CLIPS}


def test_gc_first_says_then_does(folder: Path) -> None:
    clock = Clock()
    clock.seconds = 60.0
    write(folder, CLIPS, clock=clock)
    planned = json.loads(aqa("gc", "--dry-run", "--json").stdout)["caches"][0]
    assert len(planned["segments"]) == 3
    assert len(list(folder.glob("segment-*"))) == 4
    assert aqa("gc").exit_code == 0
    assert len(list(folder.glob("segment-*"))) == 1


def imported(project: Path) -> tuple[Path, list[str]]:
    manifest = make_project(project, clips_per_video=2)
    ids: list[str] = manifest.clips["clip_id"].tolist()
    path = project / "f.npz"
    np.savez(path, features=np.arange(len(ids) * 6.0).reshape(-1, 2, 3), clip_id=ids)
    return path, ids


def test_import_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, ids = imported(tmp_path)
    command = ("import", path, "--dataset", "small", "--backbone-name", "swin")
    planned = json.loads(aqa(*command, "--dry-run", "--json").stdout)
    assert planned["num_new"] == len(ids)
    assert not (tmp_path / "cache").exists()
    result = aqa(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("imported into cache/small/swin-")
    assert "unknown (imported)" in aqa("info").stdout
    exported = aqa("export", "out.h5", "--dataset", "small", "--json")
    assert json.loads(exported.stdout)["shape"] == [len(ids), 2, 3]
    expect(aqa("export", "out.txt", "--dataset", "small"), 4, "features are written to .npz")


def test_gc_by_manifest_never_takes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, ids = imported(tmp_path)
    command = ("import", path, "--dataset", "small", "--backbone-name", "swin")
    aqa(*command)
    np.savez(path, features=np.ones((len(ids), 2, 3)), clip_id=ids)
    aqa(*command)  # all replaced: the first segment is not wanted any more
    manifest = tmp_path / "manifests" / "small.csv"
    (garbage,) = json.loads(aqa("gc", "--manifest", manifest, "--json").stdout)["caches"]
    assert len(garbage["segments"]) == 1
    manifest.write_text("clip_id,video,score\nzzz,v.mp4,1\n")
    manifest.with_suffix(".toml").unlink()
    expect(aqa("gc", "--manifest", manifest), 5, "not one of its clips is wanted")


def test_import_errors_are_4_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, ids = imported(tmp_path)
    rest = ("--dataset", "small", "--backbone-name", "swin")
    np.savez(path, features=np.full((len(ids), 2), np.nan), clip_id=ids)
    expect(aqa("import", path, *rest), 4, "2 of 2 values are not finite")
    np.savez(path, features=np.ones((2, 2)), clip_id=["a", "b"])
    expect(aqa("import", path, *rest), 4, "0 in both")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": subprocess.run}))
    expect(aqa("import", tmp_path / "x.pkl", *rest), 4, "nothing of this file was run")
    expect(aqa("import", tmp_path / "none.npz", *rest), 4, "no such file")

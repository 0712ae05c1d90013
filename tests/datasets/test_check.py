from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from aqa_pipeline.datasets.check import CheckReport, check_manifest
from aqa_pipeline.datasets.manifest import Manifest, read_manifest
from tests.support.annotations import real_annotations
from tests.support.videos import write_folder, write_video

SMALL = "window_frames = 16\nsnippet_starts = [0]\npixels = 'demo'\n"


def manifest_of(folder: Path, text: str, toml: str = SMALL) -> Manifest:
    path = folder / "m.csv"
    path.write_text(text)
    path.with_suffix(".toml").write_text(toml)
    return read_manifest(path)


def found(report: CheckReport) -> dict[str, list[tuple[str, str]]]:
    return {finding.code: list(finding.rows) for finding in report.findings}


def codes(manifest: Manifest, *, num_exemplars: int = 1) -> dict[str, list[str]]:
    report = check_manifest(manifest, fast=True, num_exemplars=num_exemplars)
    return {
        code: [where for where, _ in rows]
        for code, rows in found(report).items()
        if code != "missing_video"
    }


HEADER = "clip_id,video,start_frame,end_frame,score,split,category,difficulty\n"


def test_every_kind_of_trouble_with_files(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", 40)
    write_folder(tmp_path / "frames", 20)
    write_folder(tmp_path / "short", 20)
    write_folder(tmp_path / "gap", 20)
    (tmp_path / "gap" / "00000007.png").unlink()
    (tmp_path / "bad.mp4").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_folder(tmp_path / "torn", 20)
    (tmp_path / "torn" / "00000015.png").write_bytes(b"")
    manifest = manifest_of(
        tmp_path,
        HEADER
        + "whole,good.mp4,0,30,1,train,,\n"
        + "frames,frames,,,2,train,,\n"
        + "early,good.mp4,0,10,3,train,,\n"
        + "late,good.mp4,0,45,4,train,,\n"
        + "beyond,good.mp4,0,99,5,test,,\n"
        + "gone,gone.mp4,,,6,test,,\n"
        + "gap,gap,,,7,test,,\n"
        + "bad,bad.mp4,,,8,test,,\n"
        + "torn,torn,,,9,test,,\n"
        + "starts late,short,20,,9,test,,\n",
    )
    told: list[tuple[int, int]] = []
    report = check_manifest(manifest, jobs=1, progress=lambda *n: told.append(n), num_exemplars=1)
    rows = found(report)
    assert {code: [where for where, _ in own] for code, own in rows.items()} == {
        "missing_video": ["gone"],
        "unreadable_video": ["gap", "bad"],
        "outside_video": ["beyond", "starts late"],
        "damaged_window": ["torn"],
        "clamped_window": ["early", "late"],
    }
    assert rows["clamped_window"][0][1].startswith("frames -6 to 9 of 40 in ")
    assert rows["clamped_window"][0][1].endswith("good.mp4: 6 of 16 are repeats")
    assert "number 7 missing" in rows["unreadable_video"][0][1]
    told_of_a_picture = "is a picture: give a video, or a folder of numbered pictures"
    assert rows["unreadable_video"][1][1] == f"{tmp_path / 'bad.mp4'} {told_of_a_picture}"
    assert (
        "the video has 20 frames" in rows["outside_video"][1][1]
        or "20" in (rows["outside_video"][1][1])
    )
    assert report.has_errors
    assert (report.num_clips, report.num_videos, report.decoded) == (10, 7, True)
    assert told[-1] == (9, 9)
    values = report.as_dict(max_rows=1)
    assert values["findings"][0] == {
        "code": "missing_video",
        "severity": "error",
        "meaning": "no such video",
        "count": 1,
        "rows": [{"where": "gone", "found": str(tmp_path / "gone.mp4")}],
    }


def test_a_sound_manifest_has_no_finding(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 60)
    text = HEADER + "".join(
        f"c{i},v.mp4,0,{20 + i},{i},{'test' if i == 3 else 'train'},,\n" for i in range(20)
    )
    report = check_manifest(manifest_of(tmp_path, text), jobs=2)
    assert report.findings == ()
    assert not report.has_errors


def test_the_same_window_depends_on_the_rule(tmp_path: Path) -> None:
    text = (
        HEADER
        + "a,v,0,50,1,train,,\n"
        + "b,v,10,50,2,train,,\n"
        + "c,./v,5,50,3,test,,\n"
        + "d,v,0,60,4,test,,\n"
        + "e,w,0,50,5,train,,\n"
    )
    last = codes(manifest_of(tmp_path, text))
    assert last == {"train_test_overlap": ["c"], "duplicate_window": ["b"]}
    first = codes(manifest_of(tmp_path, text, "window_rule = 'first'"))
    assert first == {"train_test_overlap": ["d"]}
    even = codes(manifest_of(tmp_path, text, "window_rule = 'even'"))
    assert even == {}


def test_keys_without_exemplars_or_with_few(tmp_path: Path) -> None:
    text = HEADER + "".join(
        f"{side}{i},v{side}{i},,,{i},{side},x,{difficulty}\n"
        for i, (side, difficulty) in enumerate(
            [("train", 3), ("train", 3), ("train", 2), ("test", 3), ("test", 2), ("test", 1.5)]
        )
    )
    toml = "exemplar_key = ['category', 'difficulty']"
    manifest = manifest_of(tmp_path, text, toml)
    assert codes(manifest, num_exemplars=2) == {"unseen_key": ["test5"], "few_exemplars": ["test4"]}
    rows = found(check_manifest(manifest, fast=True, num_exemplars=2))
    told = "category, difficulty x, 2.0: 1 of 2 exemplars"
    assert rows["few_exemplars"] == [("test4", told)]
    assert "few_exemplars" not in found(check_manifest(manifest, fast=True, num_exemplars=None))


def test_scores_outside_the_range_of_the_protocol(tmp_path: Path) -> None:
    text = HEADER + "a,1,,,90,train,x,3\nb,2,,,93,train,x,3\nc,3,,,-1,test,y,3\n"
    raw = "label_transform = 'raw'\nscore_range = 30\nepsilon = 30"
    assert codes(manifest_of(tmp_path, text, raw)) == {"score_outside_range": ["b", "c"]}
    plain = "score_range = 24\nepsilon = 91"
    assert codes(manifest_of(tmp_path, text, plain)) == {"score_outside_range": ["b", "c"]}
    ranges = "label_transform = 'range'\n[label_ranges]\nx = [90, 92]"
    rows = found(check_manifest(manifest_of(tmp_path, text, ranges), fast=True))
    assert rows["score_outside_range"] == [("b", "score 93 is not within 90 to 92")]
    assert codes(manifest_of(tmp_path, text, "label_transform = 'range'")) == {}


def test_constant_labels_and_empty_sides_of_each_head_and_fold(tmp_path: Path) -> None:
    text = (
        "clip_id,video,score,category,f1,f2\n"
        "a,1,5,x,train,train\nb,2,5,x,train,train\nc,3,5,y,train,train\nd,4,6,y,train,test\n"
    )
    toml = "per_category = true\nfold_columns = ['f1', 'f2']"
    rows = found(check_manifest(manifest_of(tmp_path, text, toml), fast=True, num_exemplars=1))
    assert rows["empty_split"] == [("f1", "no test clip")]
    assert rows["constant_labels"] == [
        ("x", "2 training clips, all with score 5 (f1)"),
        ("x", "2 training clips, all with score 5 (f2)"),
        ("y", "1 training clips, all with score 5 (f2)"),
    ]


def test_the_fast_check_of_1412_clips_takes_no_time_and_no_decoder(tmp_path: Path) -> None:
    rows = [
        f"c{i},v{i % 15},0,{i + 200},{i % 97},{'test' if i % 4 else 'train'},,\n"
        for i in range(1412)
    ]
    manifest_of(tmp_path, HEADER + "".join(rows))
    code = (
        "import sys; from pathlib import Path;"
        "from aqa_pipeline.datasets.manifest import read_manifest;"
        "from aqa_pipeline.datasets.check import check_manifest;"
        f"r = check_manifest(read_manifest(Path({str(tmp_path / 'm.csv')!r})), fast=True);"
        "print(len(r.findings[0].rows), {'av', 'torch', 'scipy.stats'} & set(sys.modules))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1412 set()\n"
    assert time.monotonic() - started < 15  # about one second on an idle machine


def test_facts_of_the_real_mtl_aqa() -> None:
    from aqa_pipeline.datasets.mtl_aqa import import_mtl_aqa

    folder = real_annotations("mtl_aqa")
    imported = import_mtl_aqa(folder)
    manifest = Manifest(folder / "m.csv", imported.clips, imported.protocol)
    assert {code: len(rows) for code, rows in codes(manifest, num_exemplars=10).items()} == {
        "few_exemplars": 14
    }


@pytest.mark.parametrize("stage", ["timeout", "worker"])
def test_a_clip_that_hangs_is_named(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aqa_pipeline.errors import ClipError
    from aqa_pipeline.media.clip import DecodeTask
    from aqa_pipeline.media.decode_pool import Decoded, DecodePool

    write_folder(tmp_path / "v", 20)

    def decode(pool: object, runs: list[list[DecodeTask]]) -> list[Decoded]:
        return [Decoded(task, None, ClipError("stuck", stage=stage), 2) for task in runs[0]]

    monkeypatch.setattr(DecodePool, "decode", decode)
    report = check_manifest(manifest_of(tmp_path, HEADER + "a,v,,,1,train,,\n"), jobs=1)
    assert found(report)["timed_out"] == [("a", "stuck")]

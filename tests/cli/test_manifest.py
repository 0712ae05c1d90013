from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from tests.datasets.test_importing import frames, touch
from tests.support.annotations import (
    Hostile,
    write_aqa7,
    write_jigsaws,
    write_mtl_aqa,
    write_pickle,
)
from tests.support.videos import write_folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aqa.toml").write_text("")
    return tmp_path


def aqa(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["manifest", *map(str, words)])


def aqa_json(*words: str | Path, code: int = 0) -> Any:
    result = aqa(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def import_mtl_aqa(project: Path) -> Result:
    write_mtl_aqa(project / "annotations")
    write_folder(project / "videos" / "01", 430)
    write_folder(project / "videos" / "02", 200)
    words = ("--annotations", "annotations", "--videos", "videos")
    return aqa("import", "mtl_aqa", *words)


def test_from_annotations_to_a_checked_manifest(project: Path) -> None:
    result = import_mtl_aqa(project)
    assert result.stdout == "wrote manifests/mtl_aqa.csv: 4 clips of 2 videos\n"
    assert (project / "manifests" / "mtl_aqa.toml").exists()
    cells = (project / "manifests" / "mtl_aqa.csv").read_text().splitlines()[1].split(",")
    assert cells[:2] == ["01_001", "../videos/01"]

    result = aqa("check", "mtl_aqa", "--jobs", "1", "--num-exemplars", "1")
    assert result.exit_code == 4
    assert [line.split() for line in result.stdout.splitlines()[:3]] == [
        ["manifests/mtl_aqa.csv:", "4", "clips", "of", "2", "videos,", "decoded"],
        ["finding", "severity", "count"],
        ["the", "whole", "window", "lies", "outside", "the", "video", "error", "1"],
    ]
    assert "  02_007: frames 477 to 579 of 200 in " in result.stdout
    assert "check: 4/4 clips" in result.stderr
    report = aqa_json("check", "mtl_aqa", "--fast", "--num-exemplars", "1")
    assert report["ok"]
    assert report["findings"] == []
    assert aqa("check", "mtl_aqa", "--fast", "--num-exemplars", "1").stdout.endswith(
        "looked for, not decoded\nnothing to complain about\n"
    )


def test_an_existing_manifest_is_only_replaced_by_force(project: Path) -> None:
    import_mtl_aqa(project)
    words = ("import", "mtl_aqa", "--annotations", "annotations", "--videos", "videos")
    result = aqa(*words)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "mtl_aqa.csv exists already; --force replaces it, --out writes elsewhere\n"
    )
    assert aqa(*words, "--force").exit_code == 0
    assert aqa(*words, "--out", "other/x.csv").stdout.startswith("wrote other/x.csv: 4 clips")


def test_a_dry_run_writes_nothing(project: Path) -> None:
    write_aqa7(project / "a")
    result = aqa("import", "aqa7", "--annotations", "a", "--dry-run")
    assert result.stdout == "would write manifests/aqa7.csv: 6 clips of 6 videos\n"
    assert "no --videos" in result.stderr
    assert not (project / "manifests").exists()
    told = aqa_json("import", "aqa7", "--annotations", "a", "--dry-run")
    assert (told["clips"], told["written"], told["video_missing"]) == (6, False, None)


def test_jigsaws_and_one_missing_video(project: Path) -> None:
    write_jigsaws(project / "a")
    touch(project / "v" / "Suturing_B001_capture1.avi")
    words = ("import", "jigsaws", "--annotations", "a", "--videos", "v", "--folds", "seeded")
    result = aqa(*words, "--seed", "4")
    assert result.stdout.endswith("24 clips of 24 videos, 23 clips without\n")
    assert "Warning: v: 23 of 24 clips have no video here" in result.stderr
    assert "seed 4" in (project / "manifests" / "jigsaws.toml").read_text()


def test_own_data_in_another_language(project: Path) -> None:
    touch(*(project / f"{i}.mp4" for i in range(4)))
    rows = "".join(f"c{i};{i}.mp4;{i},5\n" for i in range(4))
    (project / "pokal.csv").write_text("Nr;Film;Punkte\n" + rows)
    maps = ("--map", "clip_id=Nr", "--map", "video=Film", "--map", "score=Punkte")
    result = aqa("import", "csv", "pokal.csv", *maps, "--name", "cup")
    assert result.stdout == "wrote manifests/cup.csv: 4 clips of 4 videos\n"
    summary = aqa_json("show", "cup")
    assert summary["splits"] == {"split": {"train": 3, "test": 1}}
    assert sum(summary["score_counts"]) == 4
    result = aqa("import", "csv", "pokal.csv", "--map", "Punkte")
    assert result.exit_code == 2
    assert "--map Punkte: expected OURS=THEIRS" in result.stderr


def test_show_draws_the_scores(project: Path) -> None:
    import_mtl_aqa(project)
    lines = aqa("show", "mtl_aqa").stdout.splitlines()
    assert lines[0] == "mtl_aqa: 4 clips of 2 videos"
    assert "split  train  test  neither" in lines
    assert "3.2             1     1        0" in lines
    assert ["score", "45", "to", "48.5", "2", "#" * 40] in [line.split() for line in lines]


def test_a_split_by_video_beside_the_official_one(project: Path) -> None:
    import_mtl_aqa(project)
    result = aqa("split", "mtl_aqa", "--group-by", "video", "--test-fraction", "0.5")
    told = "manifests/mtl_aqa.csv: column split_by_video, 2 train, 2 test, seed 0\n"
    assert result.stdout == told
    assert 'fold_columns = ["split_by_video"] in mtl_aqa.toml' in result.stderr
    toml = project / "manifests" / "mtl_aqa.toml"
    toml.write_text(
        toml.read_text().replace("fold_columns = []", 'fold_columns = ["split_by_video"]')
    )
    assert aqa_json("show", "mtl_aqa")["splits"] == {"split_by_video": {"train": 2, "test": 2}}
    result = aqa("split", "mtl_aqa", "--group-by", "city")
    assert result.exit_code == 2
    assert "no column 'city' to group by" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("check", "mtl_aqa"), 2, "mtl_aqa.csv: no such manifest (there is none yet); "),
        (("show", "x.csv"), 4, "x.csv: no such manifest; make one with `aqa manifest import`"),
        (("import", "aqa7", "--annotations", "none"), 4, "none: no such folder of annotations"),
        (("import", "csv", "none.csv"), 4, "none.csv: no such file"),
        (("import", "mtl_aqa"), 2, "Missing option '--annotations'"),
    ],
)
def test_errors_are_one_line_with_their_code(
    project: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    result = aqa(*words)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_hostile_pickle_and_a_gap_end_with_4(project: Path) -> None:
    write_mtl_aqa(project / "a")
    frames(project / "v" / "01", [1, 3])
    result = aqa("import", "mtl_aqa", "--annotations", "a", "--videos", "v")
    assert result.exit_code == 4
    assert "number 2 missing" in result.stderr
    write_pickle(project / "a" / "final_annotations_dict.pkl", Hostile(project / "harm"))
    result = aqa("import", "mtl_aqa", "--annotations", "a")
    assert result.exit_code == 4
    assert "refused" in result.stderr
    assert not (project / "harm").exists()

"""`aqa predict` and `aqa compare` on a run fitted with a network that reads frame numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from aqa_pipeline.datasets.manifest import Manifest
from tests.support.bad_videos import good_video
from tests.support.small_project import encode_numbers
from tests.support.small_run import make_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    return make_run(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def _project(made: tuple[Manifest, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made[1].parent.parent)
    monkeypatch.setattr("aqa_pipeline.scoring.backbone.weights_identity", lambda path: "00" * 32)
    monkeypatch.setattr("aqa_pipeline.scoring.backbone.find_weights", lambda: Path("w"))
    monkeypatch.setattr(
        "aqa_pipeline.scoring.backbone.i3d_backbone", lambda *_, **__: lambda: encode_numbers
    )


def aqa(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


CLIP = ("videos/v0.mp4", "--start", "100", "--end", "112", "--difficulty", "2.0")


def test_one_video_is_shown_with_its_interval_and_its_votes() -> None:
    done = aqa("predict", "small", *CLIP)
    assert done.exit_code == 0, done.output
    first, second, header, *rows = done.stdout.splitlines()
    assert first == "videos/v0.mp4: frames 103 to 111 of 120"
    assert second.startswith("score ")
    assert "   90 % interval " in second
    assert header.split("  ")[0] == "compared with"
    assert len(rows) == 11
    assert rows[5].startswith("... 8 more ...")


def test_json_holds_all_digits_of_what_evaluate_predicted(made: tuple[Manifest, Path]) -> None:
    manifest, folder = made
    told = pd.read_csv(folder / "predictions.csv").set_index("clip_id")
    row = manifest.clips[manifest.clips["split"] == "test"].iloc[1]
    done = aqa(
        "predict", "small", f"videos/{Path(row['video']).name}", "--end", row["end_frame"],
        "--difficulty", row["difficulty"], "--json",
    )  # fmt: skip
    value = json.loads(done.stdout)
    assert value["failed"] == []
    assert value["clips"][0]["score"] == told.loc[row["clip_id"], "prediction"]
    assert value["clips"][0]["end_frame"] == row["end_frame"]


def test_a_manifest_scores_all_its_clips(made: tuple[Manifest, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = aqa("predict", "small", "manifests/small.csv", "--csv", out)
    assert done.exit_code == 0, done.output
    assert "judges" in done.stdout.splitlines()[0]
    with out.open() as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(made[0])
    told = pd.read_csv(made[1] / "predictions.csv").set_index("clip_id")
    for clip_id, prediction in told["prediction"].items():
        assert float(rows[str(clip_id)]["prediction"]) == prediction
    assert "v0_0: it is the training clip v0_0" in done.stderr


def test_failed_clips_are_lines_and_exit_code_3(tmp_path: Path) -> None:
    good_video(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").write_text("no video")
    (tmp_path / "c.mp4").touch()
    done = aqa("predict", "small", tmp_path, "--difficulty", "2.5")
    assert done.exit_code == 3
    assert len(done.stdout.splitlines()) == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert "c.mp4 has zero bytes" in errors[1]
    alone = aqa("predict", "small", tmp_path / "b.mp4", "--difficulty", "2.5")
    assert alone.exit_code == 3
    assert alone.stdout == ""
    assert len(alone.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("small", "videos/v0.mp4"), 2, "(its training clips have 2 to 2.5); type --difficulty"),
        (("nothing", "videos/v0.mp4"), 4, "not a run folder"),
        (("small", "runs"), 3, "no video in this folder"),
        (("small", "videos/v0.mp4", "--coverage", "90"), 2, "90.0 is not in the range"),
        (("small", "videos/v0.mp4", "--key", "x"), 2, "'x' is not COLUMN=VALUE"),
        (("small", "https://a.b/c.mp4", "--difficulty", "2"), 3, "is an address, not a file"),
        (("small", "videos", "--slide", "--difficulty", "2"), 2, "--slide takes one video"),
    ],
)
def test_what_cannot_be_scored_is_one_line_with_its_exit_code(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = aqa("predict", *arguments)
    assert done.exit_code == code
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_a_long_video_is_slid_over(tmp_path: Path) -> None:
    table, plot = tmp_path / "w.csv", tmp_path / "w.png"
    done = aqa(
        "predict", "small", "videos/v1.mp4", "--slide", "--stride", "5", "--difficulty", "2.0",
        "--csv", table, "--plot", plot,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("23 windows of 9 frames")
    assert "most like training" in done.stdout
    assert len(pd.read_csv(table)) == 23
    assert plot.stat().st_size > 5000
    value = json.loads(
        aqa("predict", "small", "videos/v1.mp4", "--slide", "--difficulty", "2.0", "--json").stdout
    )
    assert len(value["windows"]) == 12
    wrong = aqa(
        "predict", "small", "videos/v1.mp4", "--slide", "--difficulty", "2", "--plot", "x.y"
    )
    assert wrong.exit_code == 2
    assert "a plot ends in" in wrong.stderr


def test_two_clips_are_compared(made: tuple[Manifest, Path]) -> None:
    done = aqa("compare", "small", "v0_18", "v1_19")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("A  ")
    assert lines[0].endswith("   v0_18")
    assert "judges gave" in lines[1]
    assert " is better by " in lines[2]
    assert "with a confidence of" in lines[2]
    assert len(lines) == 3  # of different difficulty: the heads cannot see them side by side
    value = json.loads(aqa("compare", "small", "v0_18", "v1_18", "--json").stdout)
    assert value["names"] == ["v0_18", "v1_18"]
    assert value["side_by_side"] is not None
    told = pd.read_csv(made[1] / "predictions.csv").set_index("clip_id")
    assert value["a"]["score"] == told.loc["v0_18", "prediction"]


def test_what_cannot_be_compared_is_one_line() -> None:
    gone = aqa("compare", "small", "v0_1", "elsewhere.mp4")
    assert gone.exit_code == 3
    assert "elsewhere.mp4: no such video, and no clip of that id" in gone.stderr
    thrice = aqa("compare", "small", "v0_1", "v0_2", *["--end", "9"] * 3)
    assert thrice.exit_code == 2
    assert "--end is given 3 times" in thrice.stderr

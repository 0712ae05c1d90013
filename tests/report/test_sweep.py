"""The report's part on a sweep: what it says, and what its figures draw."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from aqa_pipeline.errors import DataError
from aqa_pipeline.report import sweep as sweep_figures
from aqa_pipeline.report.sweep import sweep_page


def write_sweep(run: Path, count: int) -> pd.DataFrame:
    """Trials whose score falls with the logarithm of the rate; the last one was stopped."""
    table = pd.DataFrame(
        {
            "number": range(count),
            "state": ["done"] * (count - 1) + ["stopped"],
            "score": [0.9 - 0.05 * n for n in range(count)],
            "learning_rate": [10.0 ** (-2 - n / 4) for n in range(count)],
            "num_exemplars": ["all" if n % 2 else "10" for n in range(count)],
            "best_epoch": 3.5,
            "epochs": 8,
            "stack": 0,
            "seconds": 1.25,
        }
    )
    folder = run / "sweep"
    folder.mkdir()
    table.to_csv(folder / "results.csv", index=False)
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "num_exemplars": [10, None]}
    (folder / "settings.json").write_text(json.dumps({"space": space, "search": "random"}))
    return table


def test_a_run_without_a_sweep_has_no_such_part(tmp_path: Path) -> None:
    assert sweep_page(tmp_path, "run") is None


def test_the_page_has_the_best_trials_and_says_how_they_were_judged(tmp_path: Path) -> None:
    write_sweep(tmp_path, 40)
    page = sweep_page(tmp_path, "run")
    assert page is not None
    assert page.sentence.startswith("40 trials (random), judged on the validation part alone; 1 ")
    assert page.header == ["trial", "learning_rate", "num_exemplars", "validation rho",
                           "best epoch", ""]  # fmt: skip
    assert (page.count, len(page.rows)) == (40, 30)
    assert page.rows[0] == ["0", "0.01", "10", "0.9", "3.5", "done"]
    assert [drawing.title for drawing in page.drawings] == ["Settings and scores", "What matters"]


def test_one_trial_is_a_table_without_figures(tmp_path: Path) -> None:
    write_sweep(tmp_path, 1)
    page = sweep_page(tmp_path, "run")
    assert page is not None
    assert (page.drawings, len(page.rows)) == ([], 1)


@pytest.mark.parametrize("name", ["results.csv", "settings.json"])
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    write_sweep(tmp_path, 3)
    (tmp_path / "sweep" / name).write_bytes(b"\xff{")
    with pytest.raises(DataError, match="damaged"):
        sweep_page(tmp_path, "run")


def test_an_axis_has_its_ends_and_a_logarithmic_one_even_steps() -> None:
    rate = pd.Series([1e-4, 1e-3, 1e-2])
    places, low, high = sweep_figures._axis(rate, log=True)
    assert places.tolist() == pytest.approx([0, 0.5, 1])
    assert (low, high) == ("0.0001", "0.01")
    places, low, high = sweep_figures._axis(pd.Series(["all", "5", "10"]), log=False)
    assert places.tolist() == [1, 0, 0.5], "numbers in order, words after them"
    assert (low, high) == ("5", "all")
    assert sweep_figures._axis(pd.Series([3, 3]), log=False)[0].tolist() == [0.5, 0.5]
    assert sweep_figures._axis(pd.Series([True, False]), log=False)[0].tolist() == [1, 0]


def test_figures_say_in_words_what_they_show(tmp_path: Path) -> None:
    table = write_sweep(tmp_path, 12)
    drawn = sweep_figures.parallel(
        table, ["learning_rate", "num_exemplars"], log=["learning_rate"], key="a"
    )
    assert "Parallel coordinates of 12 trials over learning_rate, num_exemplars" in drawn
    assert len(re.findall("stroke-dasharray: (?!none)", drawn)) >= 1, "the stopped trial is dashed"
    bars = sweep_figures.bars({"learning_rate": 0.75, "num_exemplars": 0.1}, key="b")
    assert "learning_rate 75 %; num_exemplars 10 %" in bars

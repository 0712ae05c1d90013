"""Every regressor goes the same way: fitted, stored, read again, evaluated alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import UsageError
from aqa_pipeline.runs.evaluate import evaluate_run
from aqa_pipeline.runs.folder import read_run
from aqa_pipeline.runs.metrics import Metrics
from aqa_pipeline.training.fit import fit_dataset
from tests.training.test_fit import make_cache

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def judged_cache(root: Path) -> tuple[Manifest, FeatureCache]:
    """Seven judges; the middle three, which all say a third of the label, make the score."""
    clips = make_cache(root)[0].clips
    third = clips["score"] / clips["difficulty"] / 3
    shifts = (1.0, 0.0, -2.0, 0.0, 0.5, 0.0, -1.0)
    marks: dict[str, Any] = {
        f"judge_{n}": (third + shift).round(3) for n, shift in enumerate(shifts, start=1)
    }
    return make_cache(root, **marks)


def fit_and_evaluate(
    root: Path, manifest: Manifest, cache: FeatureCache, seeds: int = 2, **head: Any
) -> Any:
    told: list[tuple[int, int]] = []
    fitted = fit_dataset(
        manifest,
        cache,
        root / "run",
        head_config=HeadConfig(hidden=32, reduced_dim=8, **head),
        fit_config=FitConfig(epochs=8, num_seeds=seeds, batch_size=8, learning_rate=5e-3),
        device=CPU,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1][0] == told[-1][1] == len(told), "the progress bar ends full"
    again = evaluate_run(root / "run", manifest, cache_root=root / "cache", device=CPU)
    assert again == fitted
    return fitted


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("usdl", "I3D + USDL"),
        ("musdl", "I3D + MUSDL"),
        ("svr", "I3D + SVR"),
        ("dct-svr", "DCT + SVR"),
    ],
)
def test_every_method_the_paper_compares_with_fits_and_evaluates_alike(
    tmp_path: Path, kind: str, method: str
) -> None:
    if kind.endswith("svr"):
        pytest.importorskip("sklearn")
    manifest, cache = judged_cache(tmp_path)
    fitted = fit_and_evaluate(tmp_path, manifest, cache, kind=kind, mode="direct")
    assert fitted.method == method
    assert fitted.heads["rho"].mean > fitted.difficulty_alone.rho
    run = read_run(tmp_path / "run", device=CPU)
    assert run.config.method == method
    assert run.exemplars.judges is not None
    assert run.exemplars.judges.shape == (45, 7)
    names = {path.suffix for path in (tmp_path / "run").iterdir()}
    assert names == {".json", ".csv", ".h5", ".safetensors"}


@pytest.mark.parametrize("mode", ["direct", "contrastive"])
@pytest.mark.parametrize("aggregation", ["lstm", "attention"])
@pytest.mark.parametrize("kind", ["mlp", "gart"])
def test_every_aggregation_goes_with_every_output_layer(
    tmp_path: Path, kind: str, aggregation: str, mode: str
) -> None:
    manifest, cache = make_cache(tmp_path)
    fit_and_evaluate(tmp_path, manifest, cache, kind=kind, aggregation=aggregation, mode=mode)


def test_the_lstm_with_an_mlp_is_called_by_its_name(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    fitted = fit_and_evaluate(
        tmp_path, manifest, cache, kind="mlp", aggregation="lstm", mode="direct"
    )
    assert fitted.method == "I3D + LSTM"


def test_the_history_of_a_machine_is_its_grid(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    manifest, cache = make_cache(tmp_path)
    fitted = fit_and_evaluate(tmp_path, manifest, cache, kind="svr", mode="direct")
    assert fitted.selection.startswith("best grid point chosen on a validation part")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["seed"].tolist() == [0] * 12 + [1] * 12
    best = json.loads((tmp_path / "run" / "config.json").read_text())["best_epoch"]
    for seed, point in enumerate(best):
        own = history[history["seed"] == seed].set_index("epoch")["selection_rho"]
        assert own[point] == own.max()


def test_two_equal_machines_are_equal_files(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    files = []
    for name in ("a", "b"):
        manifest, cache = make_cache(tmp_path / name)
        fit_and_evaluate(tmp_path / name, manifest, cache, kind="dct-svr", mode="direct")
        run = tmp_path / name / "run"
        files.append(
            [(run / f).read_bytes() for f in ("head.safetensors", "predictions.csv", "history.csv")]
        )
    assert files[0] == files[1]


def test_machines_choose_on_the_test_split_in_test_set_model_selection(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    manifest, cache = make_cache(tmp_path)
    fitted = fit_dataset(
        manifest,
        cache,
        tmp_path / "run",
        head_config=HeadConfig(kind="svr", mode="direct"),
        fit_config=FitConfig(model_selection="test"),
        device=CPU,
    )
    assert isinstance(fitted, Metrics)
    assert fitted.selection == "best grid point chosen on the test set (as in the literature)"
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert fitted.heads["rho"].mean == pytest.approx(history["selection_rho"].max())
    assert fitted.best_relative_l2_of_any_epoch is not None
    lowest = fitted.best_relative_l2_of_any_epoch[0]
    assert lowest <= fitted.heads["relative_l2"].mean * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["usdl", "musdl", "svr", "dct-svr"])
def test_what_looks_at_one_clip_alone_cannot_compare(tmp_path: Path, kind: str) -> None:
    manifest, cache = make_cache(tmp_path)
    with pytest.raises(UsageError, match=f"^{kind} scores a clip alone .*type --mode direct"):
        fit_and_evaluate(tmp_path, manifest, cache, kind=kind, mode="contrastive")
    assert not (tmp_path / "run").exists()


def test_marks_survive_the_run_folder(tmp_path: Path) -> None:
    manifest, cache = judged_cache(tmp_path)
    fit_and_evaluate(tmp_path, manifest, cache, seeds=1, kind="musdl", mode="direct")
    found = read_run(tmp_path / "run", device=CPU).exemplars
    rows = manifest.clips.set_index("clip_id").loc[list(found.clip_id)]
    expected = rows[[f"judge_{n}" for n in range(1, 8)]].to_numpy(dtype=float)
    np.testing.assert_array_equal(found.judges, expected)

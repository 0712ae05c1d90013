"""Stage two on made-up features: run folder, metrics, and that both can be read again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.config import FitConfig, HeadConfig, Protocol
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.errors import CacheError, DataError, SetupError
from aqa_pipeline.media.snippets import window_positions
from aqa_pipeline.runs.evaluate import (
    difficulty_alone,
    evaluate_run,
    predict_clips,
)
from aqa_pipeline.runs.folder import read_run
from aqa_pipeline.training.fit import FitResult, fit_dataset, fit_head

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PROTOCOL = Protocol(
    name="made-up",
    window_frames=12,
    snippet_frames=9,
    snippet_starts=(0, 3),
    exemplar_key=("difficulty",),
    label_transform="raw",
    score_range=30.0,
    epsilon=30.0,
)
QUICK = FitConfig(epochs=10, num_seeds=2, batch_size=8, learning_rate=5e-3)


def cached_clip(
    number: int,
    features: npt.NDArray[np.float32],
    view_names: tuple[str, ...] = ("plain",),
    *,
    clip_id: str | None = None,
) -> ClipFeatures:
    """Clip ``number`` of :func:`make_cache`, as if extracted; features (views, snippets, dim)."""
    positions = window_positions("last", window_frames=12, start_frame=0, end_frame=100 + number)
    return ClipFeatures(
        clip_id or f"c{number:02d}", "file:1:aa", positions, positions / 25.0, features, view_names
    )


def make_cache(root: Path, *, clips: int = 60, **columns: Any) -> tuple[Manifest, FeatureCache]:
    """Features in which the label is planted, cached as if extracted; the videos do not exist."""
    rng = np.random.default_rng(7)
    difficulty = rng.choice([2.0, 2.4, 3.0], clips)
    label = rng.uniform(10, 28, clips).round(1)
    table = pd.DataFrame(
        {
            "clip_id": [f"c{i:02d}" for i in range(clips)],
            "video": "gone.mp4",
            "end_frame": 100 + np.arange(clips),
            "score": (label * difficulty).round(2),
            "split": ["test" if i % 4 == 0 else "train" for i in range(clips)],
            "difficulty": difficulty,
            **columns,
        }
    )
    path = root / "manifests" / "made-up.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(path, table)
    write_protocol(path.with_suffix(".toml"), PROTOCOL)
    fingerprint = fingerprint_of(PROTOCOL, weights_sha256="00" * 32)
    folder = root / "cache" / "made-up" / fingerprint.folder_name
    features = rng.normal(size=(clips, 1, 2, 8)).astype(np.float32)
    features[:, 0, 1, 0] = (label - 19) / 3
    with SegmentWriter(folder, fingerprint) as writer:
        for i, clip_id in enumerate(table["clip_id"]):
            writer.add(cached_clip(i, features[i], clip_id=clip_id))
    return read_manifest(path), FeatureCache.open(folder)


def fit(
    root: Path, manifest: Manifest, cache: FeatureCache, config: FitConfig = QUICK
) -> FitResult:
    return fit_head(
        manifest,
        cache,
        root / "runs" / "r",
        head_config=HeadConfig(hidden=32, reduced_dim=8),
        fit_config=config,
        device=CPU,
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, FitResult]:
    root = tmp_path_factory.mktemp("project")
    manifest, cache = make_cache(root)
    # As many threads as the tests have: another number is another order of additions.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = fit(root, manifest, cache)
    torch.set_num_threads(threads)
    return root, manifest, result


def test_the_run_folder_is_complete_and_its_numbers_are_the_returned_ones(
    fitted: tuple[Path, Manifest, FitResult],
) -> None:
    root, _, result = fitted
    folder = root / "runs" / "r"
    assert {path.name for path in folder.iterdir()} == {
        "calibration.csv", "config.json", "exemplars.h5", "head.safetensors", "history.csv",
        "metrics.json", "predictions.csv",
    }  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["heads"]["rho"]["mean"] == result.metrics.heads["rho"].mean
    assert (metrics["num_train"], metrics["num_test"], metrics["seeds"]) == (45, 15, [0, 1])
    assert "validation part" in metrics["selection"]
    assert result.run.config.validation_of == "single clips"
    table = pd.read_csv(folder / "predictions.csv")
    assert len(table) == 15
    heads = table[["prediction_seed0", "prediction_seed1"]]
    np.testing.assert_allclose(table["prediction"], heads.mean(axis=1), rtol=1e-12)
    history = pd.read_csv(folder / "history.csv")
    assert history.groupby("seed")["epoch"].apply(list).tolist() == [list(range(1, 11))] * 2
    best = json.loads((folder / "config.json").read_text())["best_epoch"]
    for seed, epoch in enumerate(best):
        own = history[history["seed"] == seed].set_index("epoch")["selection_rho"]
        assert own[epoch] == own.max()


def test_a_planted_label_is_found(fitted: tuple[Path, Manifest, FitResult]) -> None:
    _, _, result = fitted
    assert result.metrics.difficulty_alone is not None
    assert result.metrics.ensemble.rho > result.metrics.difficulty_alone.rho + 0.2


def test_evaluating_a_run_folder_again_gives_its_metrics_to_the_last_digit(
    fitted: tuple[Path, Manifest, FitResult],
) -> None:
    root, manifest, result = fitted
    run = read_run(root / "runs" / "r", device=CPU)
    again = evaluate_run(run, manifest, cache_root=root / "cache")
    assert again == result.metrics


def test_r_l2_by_the_range_of_the_class_counts_the_training_clips_too(
    fitted: tuple[Path, Manifest, FitResult],
) -> None:
    root, manifest, result = fitted
    run = read_run(root / "runs" / "r", device=CPU)
    by_class = evaluate_run(run, manifest, cache_root=root / "cache", range_of="class")
    assert by_class.relative_l2_range == "class, train and test"
    test, every = result.predictions.clips.score, manifest.clips["score"]
    ratio = (np.ptp(test) / np.ptp(every)) ** 2
    assert ratio < 1
    assert by_class.ensemble.relative_l2 == pytest.approx(
        ratio * result.metrics.ensemble.relative_l2
    )
    assert by_class.ensemble.rho == result.metrics.ensemble.rho


def test_where_the_split_is_by_video_so_is_the_validation_part(tmp_path: Path) -> None:
    videos = [f"test{i}.mp4" if i % 4 == 0 else f"train{i % 5}.mp4" for i in range(60)]
    manifest, cache = make_cache(tmp_path, video=videos)
    config = fit(tmp_path, manifest, cache).run.config
    assert config.validation_of == "whole videos"
    video = dict(zip(manifest.clips["clip_id"], videos, strict=True))
    for held_out in config.validation_clips:
        for name in {video[clip] for clip in held_out}:
            same = [clip for clip, other in video.items() if other == name]
            assert set(same) <= set(held_out), "of videos of one size nothing is left over"


def test_a_clip_on_its_own_gets_the_score_it_got_in_the_test_set(
    fitted: tuple[Path, Manifest, FitResult],
) -> None:
    root, _, result = fitted
    run = read_run(root / "runs" / "r", device=CPU)
    for row in (0, 7, 14):
        alone = predict_clips(run, result.predictions.clips.take([row]))
        np.testing.assert_allclose(alone.score, result.predictions.score[[row]], rtol=1e-6)


def test_two_equal_fits_give_equal_files(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        manifest, cache = make_cache(tmp_path / name)
        fit(tmp_path / name, manifest, cache)
        folder = tmp_path / name / "runs" / "r"
        texts.append(
            [
                (folder / f).read_bytes()
                for f in ("predictions.csv", "head.safetensors", "history.csv")
            ]
        )
    assert texts[0] == texts[1]


def test_one_seed_of_several_is_the_head_it_would_be_alone(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    together = fit(tmp_path, manifest, cache)
    alone = fit(tmp_path, manifest, cache, dataclasses.replace(QUICK, num_seeds=1))
    np.testing.assert_allclose(
        alone.predictions.per_head[0], together.predictions.per_head[0], rtol=1e-4
    )


def dataset(root: Path, manifest: Manifest, cache: FeatureCache, **config: Any) -> Any:
    quick = {"epochs": 2, "num_seeds": 2, "batch_size": 8}
    head = HeadConfig(hidden=32, reduced_dim=8, **config.pop("head", {}))
    return fit_dataset(
        manifest,
        cache,
        root / "runs" / "all",
        head_config=head,
        fit_config=FitConfig(**{**quick, **config}),
        device=CPU,
    )


def evaluated(root: Path, manifest: Manifest) -> Any:
    return evaluate_run(root / "runs" / "all", manifest, cache_root=root / "cache", device=CPU)


def test_no_split_or_one_sided_split_says_what_to_type(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path, split="")
    with pytest.raises(DataError, match=r"split = train or test; `aqa manifest split made-up`"):
        dataset(tmp_path, manifest, cache)
    manifest, cache = make_cache(tmp_path, split="train")
    with pytest.raises(DataError, match="no clip has split = test"):
        dataset(tmp_path, manifest, cache)


@pytest.mark.parametrize("kind", ["gart", "mlp"])
@pytest.mark.parametrize("mode", ["direct", "contrastive"])
def test_every_method_of_the_paper_fits_and_evaluates_alike(
    tmp_path: Path, kind: str, mode: str
) -> None:
    manifest, cache = make_cache(tmp_path)
    fitted = dataset(tmp_path, manifest, cache, head={"kind": kind, "mode": mode})
    first = "CoRe" if mode == "contrastive" else "I3D"
    assert fitted.method == f"{first} + {kind.upper()}"
    assert evaluated(tmp_path, manifest) == fitted


@pytest.mark.parametrize("recipe", ["official", "paper"])
def test_every_recipe_fits_and_evaluates_alike(tmp_path: Path, recipe: str) -> None:
    manifest, cache = make_cache(tmp_path)
    fitted = dataset(tmp_path, manifest, cache, head={"recipe": recipe})
    assert evaluated(tmp_path, manifest) == fitted


def test_without_difficulty_any_two_clips_are_compared_by_their_scores(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    fitted = dataset(tmp_path, manifest, cache, use_difficulty=False)
    run = read_run(tmp_path / "runs" / "all", device=CPU)
    assert run.exemplars.key == ((),) * 45
    np.testing.assert_array_equal(run.exemplars.label, run.exemplars.score)
    assert evaluated(tmp_path, manifest) == fitted


def test_test_set_model_selection_says_so(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    fitted = dataset(tmp_path, manifest, cache, model_selection="test", epochs=6)
    assert fitted.selection == "best epoch chosen on the test set (as in the literature)"
    history = pd.read_csv(tmp_path / "runs" / "all" / "history.csv")
    best = history.groupby("seed")["selection_rho"].max()
    np.testing.assert_allclose(fitted.heads["rho"].per_seed, best, rtol=1e-9)
    lowest = fitted.best_relative_l2_of_any_epoch
    # Epochs are judged by all clips at once, the kept one clip by clip: equal but for rounding.
    kept = np.array(fitted.heads["relative_l2"].per_seed)
    assert all(np.array(lowest) <= kept * (1 + 1e-6))
    assert evaluated(tmp_path, manifest) == fitted


def test_categories_and_folds_get_runs_of_their_own_and_averages(tmp_path: Path) -> None:
    folds = {
        f"fold_{k}": ["test" if i % 3 == k - 1 else "train" for i in range(60)] for k in (1, 2, 3)
    }
    task = ["Knot Tying" if i < 30 else "Suturing" for i in range(60)]
    columns: dict[str, Any] = {"category": task, **folds}
    manifest, cache = make_cache(tmp_path, **columns)
    protocol = dataclasses.replace(
        PROTOCOL, per_category=True, fold_columns=tuple(folds), exemplar_key=("category",)
    )
    write_protocol(manifest.path.with_suffix(".toml"), protocol)
    manifest = read_manifest(manifest.path)
    fitted = dataset(tmp_path, manifest, cache)
    assert [(row["category"], row["fold"]) for row in fitted.parts] == [
        (name, fold) for name in ("Knot Tying", "Suturing") for fold in (1, 2, 3)
    ]
    assert {row["num_test"] for row in fitted.parts} == {10}
    by_task = [
        np.mean([row["rho"] for row in fitted.parts if row["category"] == name])
        for name in ("Knot Tying", "Suturing")
    ]
    assert [own.rho for own in fitted.categories.values()] == pytest.approx(by_task)
    assert fitted.average.rho == pytest.approx(np.tanh(np.arctanh(by_task).mean()))
    one = tmp_path / "runs" / "all" / "Knot_Tying" / "fold2"
    assert read_run(one, device=CPU).config.part.split_column == "fold_2"
    assert evaluated(tmp_path, manifest) == fitted


def test_a_clip_is_judged_in_its_own_category_range(tmp_path: Path) -> None:
    sport = ["vault" if i < 30 else "ski" for i in range(60)]
    manifest, cache = make_cache(tmp_path, category=sport)
    protocol = dataclasses.replace(
        PROTOCOL, per_category=True, label_transform="range", exemplar_key=("category",),
        label_ranges={"vault": (0.0, 90.0), "ski": (10.0, 80.0)}, score_range=100.0, epsilon=100.0,
    )  # fmt: skip
    write_protocol(manifest.path.with_suffix(".toml"), protocol)
    manifest = read_manifest(manifest.path)
    dataset(tmp_path, manifest, cache)
    honest = read_run(tmp_path / "runs" / "all" / "vault", device=CPU)
    label = honest.exemplars.label
    assert (label.min(), label.max()) == pytest.approx((0, 100)), "the training scores' range"
    dataset(tmp_path, manifest, cache, model_selection="test")
    published = read_run(tmp_path / "runs" / "all" / "vault", device=CPU)
    np.testing.assert_allclose(published.exemplars.label, published.exemplars.score / 0.9)


def test_constant_labels_are_refused(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path, score=40.0, difficulty=2.0)
    with pytest.raises(DataError, match="all 45 training clips have the same label"):
        fit(tmp_path, manifest, cache)


def test_missing_features_name_the_clips_and_the_command(tmp_path: Path) -> None:
    manifest, cache = make_cache(tmp_path)
    more = pd.concat([manifest.clips, manifest.clips.tail(1).assign(clip_id="new")])
    write_manifest(manifest.path, more)
    with pytest.raises(CacheError, match=r"1 of 61 clips are missing \('new'\).*`aqa extract"):
        fit(tmp_path, read_manifest(manifest.path), cache)


def test_a_folder_that_is_no_run_or_a_damaged_one_is_one_sentence(
    fitted: tuple[Path, Manifest, FitResult], tmp_path: Path
) -> None:
    root, _, _ = fitted
    with pytest.raises(DataError, match=r"not a run folder, it has no config\.json"):
        read_run(tmp_path, device=CPU)
    for name, match in (("head.safetensors", "damaged"), ("exemplars.h5", "train the head again")):
        copy = tmp_path / name
        copy.mkdir()
        for path in (root / "runs" / "r").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        (copy / name).write_bytes((copy / name).read_bytes()[:200])
        with pytest.raises(DataError, match=match):
            read_run(copy, device=CPU)


def test_difficulty_alone_is_the_mean_score_of_the_nearest_difficulty(
    fitted: tuple[Path, Manifest, FitResult],
) -> None:
    _, _, result = fitted
    train, test = result.run.exemplars, result.predictions.clips
    expected = [train.score[train.difficulty == d].mean() for d in test.difficulty]
    np.testing.assert_allclose(difficulty_alone(train, test), expected)  # type: ignore[arg-type]


def test_a_vote_that_memory_does_not_suffice_for_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, cache = make_cache(tmp_path)
    monkeypatch.setattr(
        "aqa_pipeline.training.fit.predict_clips", lambda run, clips: torch.empty(2**60)
    )
    with pytest.raises(SetupError, match="device cpu: out of memory"):
        fit_head(
            manifest, cache, tmp_path / "run", head_config=HeadConfig(hidden=8),
            fit_config=dataclasses.replace(QUICK, epochs=1), device=CPU,
        )  # fmt: skip

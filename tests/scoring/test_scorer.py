"""Scoring videos with a run fitted on tiny videos whose frames say their number."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aqa_pipeline.atomic import as_json
from aqa_pipeline.cache.exchange import imported_fingerprint
from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import CacheError, ClipError, UsageError
from aqa_pipeline.runs.config import Provenance
from aqa_pipeline.runs.evaluate import evaluate_run
from aqa_pipeline.runs.folder import Run, read_run
from aqa_pipeline.scoring.assessor import ClipMetadata, FeatureScorer
from aqa_pipeline.scoring.backbone import load_backbone, own_weights
from aqa_pipeline.scoring.scorer import Scorer
from tests.support.fake_aqa import write_fake_weights
from tests.support.places import ROOT
from tests.support.small_project import PROTOCOL, encode_numbers
from tests.support.small_run import CPU, FIT, load_scorer, make_run
from tests.support.videos import write_folder, write_video

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    return make_run(tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="module")
def manifest(made: tuple[Manifest, Path]) -> Manifest:
    return made[0]


@pytest.fixture(scope="module")
def folder(made: tuple[Manifest, Path]) -> Path:
    return made[1]


@pytest.fixture
def scorer(folder: Path) -> Scorer:
    return load_scorer(folder)


def test_a_test_clip_gets_evaluates_prediction_to_the_bit(
    manifest: Manifest, folder: Path, scorer: Scorer
) -> None:
    told = pd.read_csv(folder / "predictions.csv", dtype={"clip_id": str}).set_index("clip_id")
    clips = manifest.clips[manifest.clips["split"] == "test"]
    assert len(clips) == len(told) == 4
    with scorer:
        for row in clips.to_dict("records"):
            scored = scorer.score(
                manifest.video_path(row["video"]),
                start_frame=row["start_frame"],
                end_frame=row["end_frame"],
                difficulty=row["difficulty"],
            )
            expected = told.loc[row["clip_id"]]
            assert scored.score == expected["prediction"]
            heads = tuple(expected[f"prediction_seed{seed}"] for seed in (0, 1))
            assert scored.per_head == heads
    run = read_run(folder, device=CPU)
    again = evaluate_run(run, manifest, cache_root=folder.parent.parent / "cache")
    assert json.loads(as_json(again.as_dict())) == json.loads((folder / "metrics.json").read_text())


def test_the_clip_ends_where_the_video_ends(scorer: Scorer, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 40, size=(160, 128))
    with scorer:
        scored = scorer.score(video, difficulty=2.0)
    assert (scored.start_frame, scored.end_frame, scored.video_frames) == (31, 40, 40)
    np.testing.assert_array_equal(scored.features, [[31, 39, 35]])


def test_votes_add_up_to_the_score_and_the_interval_lies_around_it(
    scorer: Scorer, folder: Path
) -> None:
    scored = scorer.score_features(np.array([[10, 18, 14]], np.float32), difficulty=2.5)
    assert {vote.difficulty for vote in scored.exemplars} == {2.5}
    assert np.mean([vote.vote for vote in scored.exemplars]) == pytest.approx(scored.score)
    known = read_run(folder, device=CPU).exemplars
    first = scored.exemplars[0]
    assert first.score == known.score[known.clip_id.index(first.clip_id)]
    assert scored.interval is not None
    assert np.mean(scored.interval) == pytest.approx(scored.score)
    assert scored.interval[1] > scored.score
    wider = load_scorer(folder, coverage=0.95).score_features(scored.features, difficulty=2.5)
    assert wider.interval is None or wider.interval[1] >= scored.interval[1]


def test_what_json_gets_is_plain(scorer: Scorer) -> None:
    scored = scorer.score_features(np.array([[10, 18, 14]], np.float32), difficulty=2.5)
    text = json.dumps(scored.as_dict(), allow_nan=False)
    assert json.loads(text)["score"] == scored.score
    assert "features" not in scored.as_dict()


def test_a_training_clip_is_recognised(scorer: Scorer, folder: Path) -> None:
    known = read_run(folder, device=CPU).exemplars
    scored = scorer.score_features(known.features[3], difficulty=float(known.difficulty[3]))
    assert scored.warnings == (
        f"it is the training clip {known.clip_id[3]}: the run knows its score",
    )


def from_cache(run: Run, **changes: str) -> Run:
    """The run, as if fitted on the features of another cache."""
    cache = dataclasses.replace(run.config.cache, **changes)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, cache=cache))


def test_a_training_clip_is_recognised_in_half_precision_and_on_another_device(
    folder: Path,
) -> None:
    """``extract`` used a GPU, groups of clips and fp16; ``predict`` has one clip, in float32."""
    known = read_run(folder, device=CPU).exemplars
    spread = known.features.std(axis=0)
    rounded = known.features[3] + 0.02 * spread
    between = (known.features[3] + known.features[4]) / 2
    difficulty = float(known.difficulty[3])
    sentence = f"it is the training clip {known.clip_id[3]}: the run knows its score"

    def warnings(features: np.ndarray, device: str = "cpu", **cache: str) -> tuple[str, ...]:
        run = from_cache(read_run(folder, device=CPU), **cache)
        provenance = Provenance(device=device)
        run = dataclasses.replace(
            run, config=dataclasses.replace(run.config, provenance=provenance)
        )
        assessor = FeatureScorer([run], 0.9)
        return assessor.score(features, None, ClipMetadata(difficulty=difficulty)).warnings

    made = fingerprint_of(
        read_run(folder, device=CPU).protocol, weights_sha256="00" * 32, precision="fp16"
    )
    of_fp16 = {"fingerprint_sha256": made.sha256, "weights_sha256": "00" * 32}
    assert sentence not in warnings(rounded), "on a CPU a clip's features are always the same"
    for config in (of_fp16, {"device": "cuda:0"}):
        assert sentence in warnings(rounded, **config)
        assert not any("the training clip" in text for text in warnings(between, **config))


def test_another_world_is_warned_of(scorer: Scorer) -> None:
    scored = scorer.score_features(np.full((1, 3), 5000, np.float32), difficulty=2.5)
    assert scored.distance > scored.usual_distance
    assert "looks unlike the clips the run was trained on" in scored.warnings[0]


def test_an_unknown_difficulty_takes_the_nearest_and_says_so(scorer: Scorer) -> None:
    scored = scorer.score_features(np.array([[10, 18, 14.5]], np.float32), difficulty=3.5)
    assert "no known performance has difficulty 3.5: those with 2.5 voted" in scored.warnings
    assert {vote.difficulty for vote in scored.exemplars} == {2.5}


def test_a_short_video_is_warned_of(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 30, size=(160, 128))
    with load_scorer(folder) as scorer:
        scored = scorer.score(video, start_frame=0, end_frame=5, difficulty=2.0)
    assert scored.num_clamped == 4
    assert scored.warnings[0].startswith("4 of the 9 frames of the window lie outside the video")


def test_fewer_exemplars_than_asked_for_are_told(folder: Path) -> None:
    run = read_run(folder, device=CPU)
    run = dataclasses.replace(run, fit_config=dataclasses.replace(run.fit_config, num_exemplars=40))
    scored = Scorer([run], encode_numbers).score_features(
        np.array([[10, 18, 14.5]], np.float32), difficulty=2.0
    )
    assert "only 18 of 40 exemplars have its difficulty" in scored.warnings


def test_a_missing_difficulty_is_asked_for_before_anything_is_read(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match=r"type --difficulty .*2 to 2\.5"):
        scorer.score("nowhere.mp4")


def test_a_frame_folder_is_a_video(scorer: Scorer, tmp_path: Path) -> None:
    frames = write_folder(tmp_path / "frames", 20, size=(160, 128))
    with scorer:
        scored = scorer.score(frames, difficulty=2.0)
    np.testing.assert_array_equal(scored.features, [[11, 19, 15]])


def test_a_relative_path_is_meant_from_where_the_caller_is_by_then(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "v.mp4", 20, size=(160, 128))
    with scorer:
        with pytest.raises(ClipError, match=r"v\.mp4: no such video"):
            scorer.score("v.mp4", difficulty=2.0)
        monkeypatch.chdir(tmp_path)
        assert scorer.score("v.mp4", difficulty=2.0).video == "v.mp4"


def test_a_run_without_calibration_gives_no_interval_and_says_why(
    folder: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "calibration.csv").unlink()
    scored = load_scorer(old).score_features(np.array([[1, 9, 5]], np.float32), difficulty=2.0)
    assert scored.interval is None
    assert "no calibration.csv" in scored.warnings[-1]


def test_too_high_a_coverage_for_the_clips_gives_no_interval(folder: Path) -> None:
    scored = load_scorer(folder, coverage=0.999).score_features(
        np.array([[1, 9, 5]], np.float32), difficulty=2.0
    )
    assert scored.interval is None
    assert "one of 99.9 % takes 999" in scored.warnings[-1]


def test_test_set_model_selection_holds_nothing_out(tmp_path: Path) -> None:
    fit = dataclasses.replace(FIT, model_selection="test", epochs=1)
    _, folder = make_run(tmp_path, fit=fit)
    assert not (folder / "calibration.csv").exists()
    scored = load_scorer(folder).score_features(np.array([[1, 9, 5]], np.float32), difficulty=2.0)
    assert "chosen on the test split" in scored.warnings[-1]
    assert "intervals" not in json.loads((folder / "metrics.json").read_text())


def test_a_direct_head_has_no_exemplars(tmp_path: Path) -> None:
    head = HeadConfig(kind="mlp", mode="direct", hidden=8, reduced_dim=4)
    manifest, folder = make_run(tmp_path, head=head, fit=dataclasses.replace(FIT, epochs=1))
    told = pd.read_csv(folder / "predictions.csv").set_index("clip_id")
    row = manifest.clips[manifest.clips["split"] == "test"].iloc[0]
    with load_scorer(folder) as scorer:
        scored = scorer.score(
            manifest.video_path(row["video"]),
            end_frame=int(row["end_frame"]),
            difficulty=row["difficulty"],
        )
    assert scored.exemplars == ()
    assert scored.score == told.loc[row["clip_id"], "prediction"]


def folds(tmp_path: Path) -> Path:
    """Two categories, each with a run in two folds, all copies of small runs."""
    protocol = dataclasses.replace(PROTOCOL, exemplar_key=())
    _, one = make_run(tmp_path, protocol=protocol, fit=FitConfig(**{**vars(FIT), "seed": 7}))
    parent = tmp_path / "parent"
    for category in ("a", "b"):
        for fold in (1, 2):
            own = shutil.copytree(one, parent / category / f"fold{fold}")
            config = json.loads((own / "config.json").read_text())
            config["part"] |= {"category": category, "fold": fold}
            (own / "config.json").write_text(json.dumps(config))
            calibration = pd.read_csv(own / "calibration.csv")
            calibration.iloc[: len(calibration) // fold].to_csv(
                own / "calibration.csv", index=False
            )
    (parent / "metrics.json").write_text("{}")
    return parent


def test_categories_are_chosen_and_folds_averaged(tmp_path: Path) -> None:
    parent = folds(tmp_path)
    scorer = load_scorer(parent)
    assert scorer.categories == ("a", "b")
    with pytest.raises(UsageError, match="heads for a, b: type --category"):
        scorer.score_features(np.zeros((1, 3), np.float32), difficulty=2.0)
    with pytest.raises(UsageError, match="no heads for the category 'c', only for a, b"):
        scorer.score("v.mp4", category="c", difficulty=2.0)
    features = np.array([[10, 18, 14.5]], np.float32)
    scored = scorer.score_features(features, category="b", difficulty=2.0)
    single = load_scorer(parent / "b" / "fold1").score_features(features, difficulty=2.0)
    assert scored.category == "b"
    assert scored.per_head == single.per_head * 2
    assert scored.score == pytest.approx(single.score)
    assert {vote.part for vote in scored.exemplars} == {"fold1", "fold2"}
    assert scored.num_calibrating == single.num_calibrating


def test_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = write_fake_weights(tmp_path / "w.safetensors")
    with pytest.raises(CacheError, match="not those that made the features"):
        load_backbone([read_run(folder, device=CPU)], weights)


def test_imported_features_cannot_be_made_of_a_video(folder: Path) -> None:
    run = read_run(folder, device=CPU)
    imported = imported_fingerprint("videoswin", steps=1, dim=3)
    run = from_cache(run, weights_sha256=imported.weights_sha256)
    with pytest.raises(CacheError, match="features were imported, not extracted here"):
        load_backbone([run])


def test_a_protocol_that_did_not_make_the_features_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aqa_pipeline.scoring.backbone.weights_identity", lambda path: "00" * 32)
    run = read_run(folder, device=CPU)
    other = dataclasses.replace(run.protocol, pixels="kinetics")
    with pytest.raises(CacheError, match="extracted with other settings than its protocol says"):
        load_backbone([dataclasses.replace(run, protocol=other)], Path("w"))


def test_parts_with_backbones_of_their_own_are_scored_one_by_one(folder: Path) -> None:
    runs = [read_run(folder, device=CPU) for _ in range(2)]
    runs[1] = from_cache(runs[1], weights_sha256="11" * 32)
    with pytest.raises(CacheError, match="of 2 different backbones; name one of them, such as"):
        load_backbone(runs)


def test_features_of_a_gpus_precision_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU they are made in it again, elsewhere in float32."""
    run = read_run(folder, device=CPU)
    made = fingerprint_of(run.protocol, weights_sha256="00" * 32, precision="bf16")
    run = from_cache(run, fingerprint_sha256=made.sha256)
    asked = []
    monkeypatch.setattr("aqa_pipeline.scoring.backbone.weights_identity", lambda path: "00" * 32)
    monkeypatch.setattr(
        "aqa_pipeline.scoring.backbone.i3d_backbone",
        lambda *_, device, precision: lambda: asked.append((device, precision)),
    )
    load_backbone([run], Path("w"), device="cpu")
    assert "made in bf16 on a GPU" in caplog.text
    load_backbone([run], Path("w"), device="cuda:1")
    assert asked == [("cpu", "float32"), ("cuda:1", "bf16")]


def test_a_run_may_bring_weights_of_its_own(folder: Path) -> None:
    run = read_run(folder, device=CPU)
    assert own_weights(run) is None
    run = from_cache(run, weights_file="backbone.safetensors")
    assert own_weights(run) == folder / "backbone.safetensors"


def test_a_script_without_a_main_guard_may_score(
    made: tuple[Manifest, Path], tmp_path: Path
) -> None:
    """A notebook has no ``if __name__ == "__main__"``: the decoding process must not need one."""
    manifest, folder = made
    video = manifest.video_path(manifest.clips["video"].iloc[0])
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tests.support.small_run import load_scorer\n"
        f"scored = load_scorer(Path({str(folder)!r})).score({str(video)!r}, difficulty=2.0)\n"
        "print(scored.score)\n"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, aqa_pipeline; assert 'torch' not in sys.modules; aqa_pipeline.Scorer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

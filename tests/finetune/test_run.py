"""`aqa finetune` for real, on a thin network: what it writes, and how it goes on when stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aqa_pipeline.backbone.weights import weights_identity, weights_info
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.finetune.checkpoint import STATE_FILE, read_state
from aqa_pipeline.finetune.folded import lay_out_channels_last
from aqa_pipeline.finetune.loop import TuningLoop
from aqa_pipeline.finetune.model import PairModel
from aqa_pipeline.finetune.upload import Uploads
from aqa_pipeline.finetune.validation import ClipFeatures
from aqa_pipeline.runs.folder import read_run
from aqa_pipeline.scoring.backbone import own_weights
from tests.support import thin_aqa
from tests.support.tuning_data import make_tuning_project

FINETUNE = (
    "finetune", "--dataset", "small", "--weights", "w.safetensors", "--epochs", "2",
    "--batch-size", "2", "--pairs-at-once", "1", "--num-groups", "4", "--save-every", "2",
    "--workers", "1", "--validation-fraction", "0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos and weights; each test has a run folder of its own."""
    root = tmp_path_factory.mktemp("tuning")
    make_tuning_project(root)
    return root


@pytest.fixture(scope="module")
def finished(project: Path) -> Path:
    """A run that was never disturbed."""
    done = thin_aqa.run(project, *FINETUNE, "--run", "whole", "--then-extract")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "aqa fit-head --dataset small --cache cache/small/i3d-" in done.stderr
    return project / "runs" / "whole"


def learned(run: Path) -> dict[str, bytes]:
    both = {**load_file(run / "backbone.safetensors"), **load_file(run / "head.safetensors")}
    return {name: value.numpy().tobytes() for name, value in both.items()}


def test_it_leaves_a_complete_run_and_its_features(project: Path, finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "backbone.safetensors", "calibration.csv", "config.json", "exemplars.h5",
        "head.safetensors", "history.csv", "metrics.json", "predictions.csv",
    }  # fmt: skip
    config = json.loads((finished / "config.json").read_text())
    sha256 = weights_identity(finished / "backbone.safetensors")
    assert config["cache"]["weights_sha256"] == sha256
    run = read_run(finished, device=torch.device("cpu"))
    assert own_weights(run) == finished / "backbone.safetensors", "aqa predict finds it by itself"
    assert config["finetune"]["parent_weights_sha256"] == weights_identity(
        project / "w.safetensors"
    )
    assert config["finetune"]["parent_weights_sha256"] != sha256
    cache = FeatureCache.open(project / "cache" / "small" / config["cache"]["folder"])
    assert sum(segment.num_clips for segment in cache.segments) == 16
    history = pd.read_csv(finished / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert history["loss"].notna().all()
    assert (history["backbone_learning_rate"] == 1e-4).all()


def test_with_two_caches_the_commands_say_how_to_choose(project: Path, finished: Path) -> None:
    asked = thin_aqa.run(project, "extract", "--dataset", "small", "--weights", "w.safetensors")
    assert asked.returncode == 0, asked.stderr
    done = thin_aqa.run(project, "fit-head", "--dataset", "small")
    assert done.returncode == 5
    found = re.findall(r"--cache (\S+/i3d-\w+) \(weights (\w{12})\)", done.stderr)
    tuned = weights_identity(finished / "backbone.safetensors")[:12]
    assert {tuned, weights_identity(project / "w.safetensors")[:12]} <= {own for _, own in found}
    assert all(Path(folder).is_dir() for folder, _ in found)


def test_a_tuned_run_is_evaluated_as_any_other(project: Path, finished: Path) -> None:
    done = thin_aqa.run(project, "evaluate", "whole", "--json")
    assert done.returncode == 0, done.stderr
    again, stored = json.loads(done.stdout), json.loads((finished / "metrics.json").read_text())
    assert again["heads"] == stored["heads"]
    passes = stored["finetune"]["backbone_passes_of_a_validation"]
    assert passes["drawn_exemplars"] <= passes["whole_bank"] < passes["published_way"]


def test_the_tuned_weights_name_their_parent(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The thin network's shapes are not I3D's; what the header says is what is asked here.
    monkeypatch.setattr("aqa_pipeline.backbone.weight_layouts.convert", lambda tree: (tree, "aqa"))
    info = weights_info(finished / "backbone.safetensors")
    assert info.parent_sha256 == weights_identity(project / "w.safetensors")
    assert info.source == "fine-tuned on small by aqa finetune; before: a test"


def test_a_finished_one_is_not_trained_again_unasked(project: Path, finished: Path) -> None:
    done = thin_aqa.run(project, *FINETUNE, "--run", "whole")
    assert done.returncode == 2
    assert "this fine-tuning is finished" in done.stderr
    done = thin_aqa.run(project, *FINETUNE, "--run", "whole", "--head-lr", "0.01")
    assert done.returncode == 2
    assert "learning_rate: 0.001 there, 0.01 here" in done.stderr
    assert "--again" in done.stderr


def wait_for_step(run: Path, process: subprocess.Popen[str], *, epoch: int, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        state = run / STATE_FILE
        if state.exists():
            at = read_state(state).position
            if (at.epoch, at.step) >= (epoch, step):
                return
        time.sleep(0.02)
    raise AssertionError("it did not get there in time")


def test_killed_and_resumed_it_ends_with_the_same_weights(project: Path, finished: Path) -> None:
    name = "killed"
    run = project / "runs" / name
    process = thin_aqa.start(project, *FINETUNE, "--run", name)
    wait_for_step(run, process, epoch=1, step=2)
    process.kill()
    process.communicate()
    assert not (run / "config.json").exists()
    shown = thin_aqa.run(project, *FINETUNE, "--run", name, "--dry-run", "--json")
    assert json.loads(shown.stdout)["parts"][0]["steps_done"] >= 2
    other = thin_aqa.run(project, *FINETUNE, "--run", name, "--unfreeze", "mixed_5")
    assert other.returncode == 2
    assert "unfreeze: all there, mixed_5 here" in other.stderr
    done = thin_aqa.run(project, *FINETUNE, "--run", name)
    assert done.returncode == 0, done.stderr
    assert learned(run) == learned(finished)
    for file in ("history.csv", "predictions.csv"):
        assert (run / file).read_bytes() == (finished / file).read_bytes()
    assert not (run / STATE_FILE).exists()


def test_frames_cut_ahead_end_with_the_same_weights(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU gets them, on a CPU."""
    use_uploads(monkeypatch)
    done = thin_aqa.run(project, *FINETUNE, "--run", "ahead")
    assert done.returncode == 0, done.stderr
    assert learned(project / "runs" / "ahead") == learned(finished)


def test_a_gpus_ways_give_the_numbers_of_a_cpus(
    project: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that differs but the arithmetic itself: folded layers, clips in batches, uploads."""
    use_uploads(monkeypatch)
    real = PairModel.__init__

    def folded(self: PairModel, *args: Any, **settings: Any) -> None:
        real(self, *args, **settings)
        lay_out_channels_last(self.backbone)
        self._prefix, self._is_folded = [], True

    monkeypatch.setattr(PairModel, "__init__", folded)
    monkeypatch.setattr(ClipFeatures, "_network", ClipFeatures._batched)
    done = thin_aqa.run(project, *FINETUNE, "--run", "gpu-ways")
    assert done.returncode == 0, done.stderr
    one, other = (
        pd.read_csv(run / "history.csv") for run in (finished, project / "runs" / "gpu-ways")
    )
    # Adam's first steps have the gradient's sign: what rounding turns over is a whole step.
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-2)


def use_uploads(patch: pytest.MonkeyPatch) -> None:
    real = TuningLoop.__init__

    def ahead(self: TuningLoop, stepper: Any, encoder: Any, frames: Any, *a: Any, **s: Any) -> None:
        real(self, stepper, encoder, frames, *a, **s)
        jitter = s["augmentation"].jitter
        self._uploads = Uploads(frames.tasks, jitter=jitter, device=torch.device("cpu"))

    patch.setattr(TuningLoop, "__init__", ahead)


def test_a_signal_saves_the_step_and_the_same_command_goes_on(
    project: Path, finished: Path
) -> None:
    run = project / "runs" / "terminated"
    options = (*FINETUNE, "--save-every", "1000", "--run", "terminated")
    process = thin_aqa.start(project, *options)
    wait_for_step(run, process, epoch=2, step=0)  # an epoch's end saves too
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert stderr.splitlines()[-1] == "Error: terminated; the same command resumes where it stopped"
    assert "Traceback" not in stderr
    assert len(pd.read_csv(run / "history.csv")) >= 1
    at = read_state(run / STATE_FILE).position
    assert (at.epoch, at.step) >= (2, 0)
    done = thin_aqa.run(project, *options)
    assert done.returncode == 0, done.stderr
    assert learned(run) == learned(finished)


def test_two_processes_give_the_numbers_of_one(project: Path) -> None:
    """20 steps with gloo; the tolerance is on sums of rounding, in another order."""
    options = [*FINETUNE, "--epochs", "5", "--run"]
    options[options.index("--pairs-at-once") + 1] = "auto"
    alone = thin_aqa.run(project, *options, "alone")
    assert alone.returncode == 0, alone.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2", "-m", "--", "tests.support.thin_aqa"]  # fmt: skip
    both = subprocess.run(
        [*launcher, *options, "both"],
        cwd=project,
        env=thin_aqa.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert both.returncode == 0, both.stderr
    one, two = (pd.read_csv(project / "runs" / n / "history.csv") for n in ("alone", "both"))
    assert len(one) == 5
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    one, two = (pd.read_csv(project / "runs" / n / "predictions.csv") for n in ("alone", "both"))
    np.testing.assert_allclose(two["prediction"], one["prediction"], rtol=2e-4)
    assert both.stdout.count("test clips") == 1, "only the first process prints"
    assert not list((project / "cache" / "small").glob("*/claims/*"))


def test_it_goes_on_with_a_fitted_head(project: Path, finished: Path) -> None:
    cache = json.loads((finished / "config.json").read_text())["cache"]["folder"]
    fitted = thin_aqa.run(
        project, "fit-head", "--dataset", "small", "--cache", f"cache/small/{cache}",
        "--run", "fitted", "--epochs", "2", "--seeds", "2", "--num-groups", "4",
        "--aggregation", "mean", "--validation-fraction", "0.3",
    )  # fmt: skip
    assert fitted.returncode == 0, fitted.stderr
    backbone = str(finished / "backbone.safetensors")
    more = ("finetune", "--dataset", "small", "--from", "fitted", "--run", "more", "--epochs", "1",
            "--unfreeze", "mixed_5", "--workers", "1")  # fmt: skip
    refused = thin_aqa.run(project, *more, "--weights", "w.safetensors")
    assert refused.returncode == 5
    assert "its head was fitted on features of the weights" in refused.stderr
    contradiction = thin_aqa.run(project, *more, "--weights", backbone, "--aggregation", "lstm")
    assert contradiction.returncode == 2
    assert "--aggregation contradicts --from fitted" in contradiction.stderr
    done = thin_aqa.run(project, *more, "--weights", backbone)
    assert done.returncode == 0, done.stderr
    config, before = (
        json.loads((project / "runs" / n / "config.json").read_text()) for n in ("more", "fitted")
    )
    best = int(np.argmax([-2 if r is None else r for r in before["selection_rho"]]))
    assert config["head"]["aggregation"] == "mean"
    assert config["validation_clips"] == [before["validation_clips"][best]]
    assert config["trunk"]["group_edges"] == [before["trunk"]["group_edges"][best]]
    tuned = load_file(project / "runs" / "more" / "backbone.safetensors")
    parent = load_file(finished / "backbone.safetensors")
    changed = {n.split(".")[0] for n in tuned if not tuned[n].equal(parent[n])}
    assert changed == {"mixed_5b", "mixed_5c"}


def test_test_set_model_selection_says_so(project: Path) -> None:
    done = thin_aqa.run(
        project, *FINETUNE, "--run", "literature", "--protocol", "literature",
        "--unfreeze", "mixed_5", "--epochs", "1", "--checkpointing", "--tensorboard",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best epoch chosen on the test set (as in the literature)" in done.stdout
    config = json.loads((project / "runs" / "literature" / "config.json").read_text())
    assert config["validation_clips"] == [[]]
    curves = EventAccumulator(str(project / "runs" / "literature" / "tensorboard"))
    curves.Reload()
    steps = [event.step for event in curves.Scalars("loss/classification")]
    assert steps[:6] == [1, 2, 3, 4, 5, 6]
    assert "learning_rate/backbone" in curves.Tags()["scalars"]


def test_a_video_that_cannot_be_decoded_is_named(project: Path, tmp_path: Path) -> None:
    make_tuning_project(tmp_path, clips_per_video=4)
    video = tmp_path / "videos" / "v0.mp4"
    data = bytearray(video.read_bytes())
    data[2000:] = b"\0" * (len(data) - 2000)
    video.write_bytes(bytes(data))
    options = (*FINETUNE, "--validation-fraction", "0.5")
    done = thin_aqa.run(tmp_path, *options)
    assert done.returncode == 4, done.stderr
    assert "v0" in done.stderr
    assert "Traceback" not in done.stderr
    video.unlink()
    done = thin_aqa.run(tmp_path, *options)
    assert done.returncode == 4
    assert "4 of 8 clips have no readable video" in done.stderr

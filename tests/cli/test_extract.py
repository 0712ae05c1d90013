"""`aqa extract`: what a dry run says, shards of a job array, views."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aqa_cli.main import cli
from click.testing import CliRunner, Result

from tests.support.fake_aqa import use_fake_network, write_fake_weights
from tests.support.small_project import make_project

WEIGHTS = ("--weights", "w.safetensors")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path, clips_per_video=2)
    write_fake_weights(tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    # Both are put back afterwards.
    monkeypatch.setattr("aqa_pipeline.extraction.extract.i3d_backbone", None)
    monkeypatch.setattr("aqa_pipeline.extraction.work._facts", None)
    use_fake_network()
    return tmp_path


def extract(*options: str) -> Result:
    return CliRunner().invoke(cli, ["extract", "--dataset", "small", *WEIGHTS, *options])


def test_a_dry_run_says_what_it_would_cost(project: Path) -> None:
    extract("--shard", "1/2", "--workers", "1")
    result = extract("--dry-run", "--views", "flip")
    assert result.exit_code == 0, result.output
    rows = [line.rsplit("  ", 1) for line in result.stdout.splitlines()[1:]]
    assert {name.strip(): value.strip() for name, value in rows} == {
        "clips": "4",
        "cached": "0",
        "outdated": "0",
        "to extract": "4",
        "failed before": "0",
        "video missing": "0",
        "views of each clip": "2",
        "new data": "0.0 MB",
        "time on this machine": "unknown",
    }
    plan = json.loads(extract("--dry-run", "--json").stdout)
    assert (plan["cached"], plan["to_extract"], plan["views"]) == (2, 2, ["plain"])
    assert plan["new_bytes"] == 2 * (1 * 3 * 4 + 9 * 16 + 200)
    assert plan["seconds"] is None


@pytest.mark.usefixtures("project")
def test_a_dry_run_on_a_gpu_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_clip(*given: object, **named: object) -> None:
        raise AssertionError("a clip was decoded to compare precisions")

    monkeypatch.setattr("aqa_pipeline.extraction.extract.device_name", lambda name: "cuda:0")
    found = "aqa_pipeline.extraction.choose_precision"
    monkeypatch.setattr(f"{found}.supported_precisions", lambda device: ("fp16", "float32"))
    monkeypatch.setattr(f"{found}.sample_windows", no_clip)
    result = extract("--dry-run")
    assert result.exit_code == 0, result.output
    assert "would extract into" in result.output
    with pytest.raises(AssertionError, match="was decoded"):
        CliRunner().invoke(cli, ["extract", "--dataset", "small", *WEIGHTS], catch_exceptions=False)


def test_a_dry_run_names_the_settings_that_changed(project: Path) -> None:
    extract("--workers", "1")
    toml = project / "manifests" / "small.toml"
    toml.write_text(toml.read_text().replace('pixels = "demo"', 'pixels = "kinetics"'))
    result = extract("--dry-run")
    assert "nothing there yet; cache/small/i3d-" in result.stdout
    assert "was made with other settings: pixels crop: 224 here, 112 there" in result.stdout
    plan = json.loads(extract("--dry-run", "--json").stdout)
    assert plan["differences"] == [
        "pixels crop: 224 here, 112 there",
        "pixels short_side: 256 here, 128 there",
    ]


def test_a_job_array_extracts_its_part_and_says_which(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ID": 3, "MIN": 2, "MAX": 3, "COUNT": 2, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    result = extract("--shard", "slurm", "--workers", "1", "--json")
    assert result.exit_code == 0, result.output
    assert "shard 2/2: 2 of 4 clips" in result.stderr
    assert json.loads(result.stdout)["num_extracted"] == 2
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "2")
    result = extract("--shard", "slurm")
    assert result.exit_code == 2
    assert "counts in steps of 2" in result.stderr


@pytest.mark.usefixtures("project")
def test_devices_and_precisions_that_are_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for options, code, sentence in [
        (("--precision", "bf16"), 2, "--precision bf16 needs a GPU"),
        (("--precision", "fp16", "--device", "cpu"), 2, "--precision fp16 needs a GPU"),
        (("--device", "cuda"), 6, "sees no GPUs here; type --device cpu"),
        (("--device", "gpu"), 2, "device 'gpu' is none of auto, cpu, cuda"),
    ]:
        result = extract(*options)
        assert result.exit_code == code
        assert sentence in result.stderr

"""The benchmark of stage one: its plain network is the same function, its JSON stands alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import ModuleType

import torch

from tests.support.places import ROOT
from tests.support.random_i3d import random_i3d

BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_network_computes_the_same_features() -> None:
    model = random_i3d(seed=2)
    x = torch.randn(1, 3, 9, 65, 64)
    with torch.inference_mode():
        expected = model.features(x)
    found = load("plain_i3d").PlainI3D(model).features(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_json_is_alone_on_stdout() -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "stage1.py"), "--part", "network", "--json"),
            *("--size", "64", "--snippets", "1", "--rounds", "1"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(done.stdout)["network"]
    assert row["relative_error"] < 1e-4
    assert row["ratio"] == row["plain_seconds"] / row["fast_seconds"] > 0
    assert row["fraction_of_matrix_product"] > 0


def test_the_transport_benchmark_names_what_it_measured() -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "transport.py"), "--json"),
            *("--lanes", "1", "--clips", "4"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(done.stdout)["transport"]
    assert row["lanes"] == 1
    assert row["clips_per_second"] > 0
    assert row["processor_ms_per_clip"] > 0

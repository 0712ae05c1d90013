"""The words that run folders store."""

from __future__ import annotations

import json

import pytest
import torch

from aqa_pipeline.config import FitConfig, HeadConfig, ModelSelection
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.runs.config import (
    FeatureSource,
    Provenance,
    RunConfig,
    fit_from_stored,
    stored_fit,
    stored_tensors,
    tensors_from_stored,
)


@pytest.mark.parametrize(("value", "word"), [("validation", "default"), ("test", "literature")])
def test_the_model_selection_keeps_its_stored_key_and_word(
    value: ModelSelection, word: str
) -> None:
    config = FitConfig(model_selection=value, seed=4)
    stored = stored_fit(config)
    assert stored["protocol"] == word
    assert "model_selection" not in stored
    assert fit_from_stored(stored) == config


def test_the_output_layer_keeps_its_stored_name() -> None:
    tensors = {"output.tree.leaf_bias": torch.zeros(1), "bias": torch.ones(1)}
    assert list(stored_tensors(tensors)) == ["trunk.tree.leaf_bias", "bias"]
    assert tensors_from_stored(stored_tensors(tensors)) == tensors
    of_state = {f"head.{name}": value for name, value in tensors.items()}
    assert list(stored_tensors(of_state, head="head.")) == [
        "head.trunk.tree.leaf_bias",
        "head.bias",
    ]


def test_a_config_comes_back_from_its_file() -> None:
    config = RunConfig.of(
        FitConfig(model_selection="test"),
        HeadConfig(),
        dataset="demo",
        part=Part("dive", 2, "fold_2"),
        best_epoch=(3, 4),
        selection_rho=(0.5, None),
        validation_clips=(("a", "b"), ()),
        best_relative_l2_of_any_epoch=(0.1, 0.2),
        cache=FeatureSource("f", "00", "11", "backbone.safetensors"),
        finetune={"precision": "float32"},
        provenance=Provenance.now(torch.device("cpu")),
    )
    stored = json.loads(json.dumps(config.stored()))
    assert RunConfig.from_stored(stored) == config
    assert "chosen on the test set" in stored["selection"]
    assert stored["exemplars_while_selecting"] == "whole training split"


def test_a_config_of_another_version_has_what_is_known_of_it() -> None:
    found = RunConfig.from_stored({"dataset": "demo", "tomorrow": 1})
    assert found == RunConfig(dataset="demo")
    assert "finetune" not in found.stored()
    assert "weights_file" not in found.stored()["cache"]

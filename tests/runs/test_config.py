"""The words that run folders store."""

from __future__ import annotations

import pytest

from aqa_pipeline.config import FitConfig, ModelSelection
from aqa_pipeline.runs.config import fit_from_stored, stored_fit


@pytest.mark.parametrize(("value", "word"), [("validation", "default"), ("test", "literature")])
def test_the_model_selection_keeps_its_stored_key_and_word(
    value: ModelSelection, word: str
) -> None:
    config = FitConfig(model_selection=value, seed=4)
    stored = stored_fit(config)
    assert stored["protocol"] == word
    assert "model_selection" not in stored
    assert fit_from_stored(stored) == config

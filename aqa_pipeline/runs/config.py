"""Contents of ``config.json``, and the words it stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from aqa_pipeline.config import FitConfig

#: Stored word -> value of :attr:`~aqa_pipeline.config.FitConfig.model_selection`, under the key
#: ``protocol``.
_MODEL_SELECTION = {"default": "validation", "literature": "test"}
_STORED_SELECTION = {value: word for word, value in _MODEL_SELECTION.items()}


def stored_fit(config: FitConfig) -> dict[str, Any]:
    """A :class:`FitConfig` as run folders, sweeps and fine-tuning states store it."""
    fields = dataclasses.asdict(config)
    return {
        "protocol" if name == "model_selection" else name: (
            _STORED_SELECTION[value] if name == "model_selection" else value
        )
        for name, value in fields.items()
    }


def fit_from_stored(stored: Mapping[str, Any]) -> FitConfig:
    """The inverse of :func:`stored_fit`.

    Raises
    ------
    KeyError, TypeError
        If the settings are not those of a fit.
    """
    rest = {name: value for name, value in stored.items() if name != "protocol"}
    return FitConfig(**rest, model_selection=_MODEL_SELECTION[stored["protocol"]])  # type: ignore[arg-type]

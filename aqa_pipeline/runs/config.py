"""Contents of ``config.json``, and the words it stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aqa_pipeline.config import FitConfig

#: Stored word -> value of :attr:`~aqa_pipeline.config.FitConfig.model_selection`, under the key
#: ``protocol``.
_MODEL_SELECTION = {"default": "validation", "literature": "test"}
_STORED_SELECTION = {value: word for word, value in _MODEL_SELECTION.items()}


#: What the output layer of a head is called in files: in names of tensors and in config.json.
STORED_OUTPUT = "trunk"


def stored_tensors(tensors: Mapping[str, Tensor], *, head: str = "") -> dict[str, Tensor]:
    """Tensors under the names that run folders and fine-tuning states have for them.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    head : str
        Beginning of the names of the head's tensors.
    """
    return _renamed(tensors, f"{head}output.", f"{head}{STORED_OUTPUT}.")


def tensors_from_stored(tensors: Mapping[str, Tensor], *, head: str = "") -> dict[str, Tensor]:
    """The inverse of :func:`stored_tensors`."""
    return _renamed(tensors, f"{head}{STORED_OUTPUT}.", f"{head}output.")


def _renamed(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in tensors.items()
    }


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

"""Origin and settings of a run: ``config.json``, its reader and writer, its stored words."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqa_pipeline._version import __version__
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.errors import DataError

FORMAT, FORMAT_VERSION = "aqa-run", 1


@dataclass(frozen=True)
class FeatureSource:
    """Cache whose features the heads were fitted on; empty in a run put together in memory.

    Attributes
    ----------
    folder : str
        Name of the cache folder.
    fingerprint_sha256, weights_sha256 : str
    weights_file : str or None
        Weights of a fine-tuned backbone, in the run folder.
    """

    folder: str = ""
    fingerprint_sha256: str = ""
    weights_sha256: str = ""
    weights_file: str | None = None


@dataclass(frozen=True)
class Provenance:
    """The programs and the machine that fitted a run."""

    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"

    @classmethod
    def now(cls, device: torch.device) -> Provenance:
        """Of a run that is fitted by this process."""
        versions = {
            "aqa-pipeline": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        return cls(versions, str(device))


@dataclass(frozen=True)
class RunConfig:
    """What ``config.json`` says beside the settings that build the run again.

    Attributes
    ----------
    dataset, method : str
    part : Part
    selection : str
        How the epoch was chosen, see :func:`selection_sentence`.
    exemplars_while_selecting, exemplars_at_test : str
    validation_of : str or None
        What was held out: ``single clips`` or ``whole videos``; None: nothing.
    best_epoch : tuple of int, length K
        1-based.
    selection_rho : tuple of float or None, length K
    validation_clips : tuple of tuple of str, length K
        Clips that each head held out.
    best_relative_l2_of_any_epoch : tuple of float or None
        Of test-set model selection.
    cache : FeatureSource
    finetune : mapping or None
        How a fine-tuned backbone was made.
    provenance : Provenance
    """

    dataset: str = ""
    method: str = "CoRe + GART"
    part: Part = field(default_factory=Part)
    selection: str = "not recorded how the epoch was chosen"
    exemplars_while_selecting: str = ""
    exemplars_at_test: str = "whole training split"
    validation_of: str | None = None
    best_epoch: tuple[int, ...] = ()
    selection_rho: tuple[float | None, ...] = ()
    validation_clips: tuple[tuple[str, ...], ...] = ()
    best_relative_l2_of_any_epoch: tuple[float, ...] | None = None
    cache: FeatureSource = field(default_factory=FeatureSource)
    finetune: Mapping[str, Any] | None = None
    provenance: Provenance = field(default_factory=Provenance)

    @classmethod
    def of(cls, fit: FitConfig, head: HeadConfig, **known: Any) -> RunConfig:
        """Of a run with these settings; the other fields are given."""
        on_test = fit.model_selection == "test"
        return cls(
            method=head.name,
            selection=selection_sentence(fit, head),
            exemplars_while_selecting=(
                "whole training split" if on_test else "fit part of the training split"
            ),
            **known,
        )

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> RunConfig:
        """The inverse of :meth:`stored`; what is missing has its default, what is new is ignored.

        Raises
        ------
        TypeError
            If a value is of another kind.
        """
        known = {name: stored[name] for name in _PLAIN if name in stored}
        known |= {name: untupled(stored[name]) for name in _LISTS if name in stored}
        best = stored.get(_BEST)
        return cls(
            **known,
            best_relative_l2_of_any_epoch=(
                None if best is None else tuple(math.nan if one is None else one for one in best)
            ),
            part=Part(**stored.get("part", {})),
            cache=FeatureSource(**stored.get("cache", {})),
            provenance=Provenance(stored.get("versions", {}), str(stored.get("device", "cpu"))),
        )

    def stored(self) -> dict[str, Any]:
        """Plain values for JSON."""
        cache = dataclasses.asdict(self.cache)
        if self.cache.weights_file is None:
            del cache["weights_file"]
        optional = {
            "finetune": self.finetune,
            _BEST: self.best_relative_l2_of_any_epoch,
        }
        return {
            "dataset": self.dataset,
            "method": self.method,
            "part": dataclasses.asdict(self.part),
            "selection": self.selection,
            "validation_of": self.validation_of,
            "exemplars_while_selecting": self.exemplars_while_selecting,
            "exemplars_at_test": self.exemplars_at_test,
            "best_epoch": self.best_epoch,
            "selection_rho": self.selection_rho,
            "validation_clips": self.validation_clips,
            "cache": cache,
            "versions": self.provenance.versions,
            "device": self.provenance.device,
            **{name: value for name, value in optional.items() if value is not None},
        }


_PLAIN = ("dataset", "method", "selection", "exemplars_while_selecting", "exemplars_at_test",
          "validation_of", "finetune")  # fmt: skip
_LISTS = ("best_epoch", "selection_rho", "validation_clips")
_BEST = "best_relative_l2_of_any_epoch"


def selection_sentence(config: FitConfig, head_config: HeadConfig) -> str:
    """How the epoch was chosen, for every place that prints a number."""
    best = "best grid point" if head_config.is_svr else "best epoch"
    if config.model_selection == "test":
        return f"{best} chosen on the test set (as in the literature)"
    return f"{best} chosen on a validation part of the training split; test read once"


def read_stored(folder: Path) -> dict[str, Any]:
    """``config.json`` of a run folder, as stored; any version of it.

    Raises
    ------
    DataError
        If it is not a run folder, or the file is damaged.
    """
    path = folder / "config.json"
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = (
            "its fit did not end; type the same `aqa fit-head` again"
            if folder.is_dir()
            else "`aqa fit-head` makes one"
        )
        raise DataError(f"{folder}: not a run folder, it has no config.json; {hint}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    found = stored.get("format") if isinstance(stored, dict) else None
    if found != FORMAT:
        raise DataError(f"{path}: format {found!r}, expected {FORMAT!r}")
    return dict(stored)


def untupled(value: Any) -> Any:
    """JSON's lists as the tuples that dataclasses have."""
    if isinstance(value, list):
        return tuple(untupled(item) for item in value)
    if isinstance(value, dict):
        return {key: untupled(item) for key, item in value.items()}
    return value


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

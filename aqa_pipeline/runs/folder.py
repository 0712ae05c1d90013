"""The run folder: everything needed to score a new clip, with its origin.

``config.json``, ``head.safetensors``, ``exemplars.h5``, ``metrics.json``,
``predictions.csv``, ``history.csv``, ``calibration.csv``. Self-contained: with the backbone's
weights it scores new videos; manifest and cache are not needed any more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aqa_pipeline.atomic import atomic_path, write_json_atomically
from aqa_pipeline.config import DEVICE, FitConfig, HeadConfig, Protocol
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.device import find_device
from aqa_pipeline.errors import DataError
from aqa_pipeline.heads.head import Head, Regressor
from aqa_pipeline.heads.outputs import output_from_settings
from aqa_pipeline.heads.svr import SvrHead
from aqa_pipeline.heads.voting import ExemplarVoter
from aqa_pipeline.runs.calibration import Calibration, read_calibration, write_calibration
from aqa_pipeline.runs.config import (
    FORMAT,
    FORMAT_VERSION,
    STORED_OUTPUT,
    RunConfig,
    fit_from_stored,
    read_stored,
    stored_fit,
    stored_tensors,
    tensors_from_stored,
    untupled,
)
from aqa_pipeline.runs.exemplars import read_bank, write_bank
from aqa_pipeline.runs.metrics import Metrics, read_metrics
from aqa_pipeline.runs.record import read_predictions


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted run.

    Attributes
    ----------
    folder : Path
    head : Regressor
        K heads, one a seed; the prediction of a run is their mean.
    exemplars : FeatureSet
        The training split: every clip that may vote.
    protocol : Protocol
    labels : LabelScale
    fit_config : FitConfig
    config : RunConfig
        How it came about.
    calibration : Calibration or None
        None: nothing was held out, or the run is older than this file.
    """

    folder: Path
    head: Regressor
    exemplars: FeatureSet
    protocol: Protocol
    labels: LabelScale
    fit_config: FitConfig
    config: RunConfig = field(default_factory=RunConfig)
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        heads = f"{len(self.seeds)} head{'' if len(self.seeds) == 1 else 's'}"
        return (
            f"Run({self.folder}: {self.head.config.name}, {heads}, "
            f"{len(self.exemplars)} training clips, on {self.head.device})"
        )

    def metrics(self) -> Metrics:
        """What ``metrics.json`` of its folder says of the test clips.

        Raises
        ------
        DataError
            If there is none, or it is damaged.
        """
        found = read_metrics(self.folder)
        if not isinstance(found, Metrics):
            raise DataError(f"{self.folder}: no metrics of this run; its fit did not end")
        return found

    def predictions(self) -> pd.DataFrame:
        """``predictions.csv`` of its folder: one row per test clip, in points.

        Columns ``clip_id``, ``category``, ``difficulty``, ``score``, ``prediction`` and one per
        head, ``prediction_seed0`` and so on.

        Raises
        ------
        DataError
            If there is none, or it is damaged.
        """
        found = read_predictions(self.folder)
        if found.empty:
            raise DataError(f"{self.folder}: no predictions of this run; its fit did not end")
        return found

    @property
    def seeds(self) -> list[int]:
        return [self.fit_config.seed + k for k in range(self.fit_config.num_seeds)]

    def voter(self) -> ExemplarVoter:
        """Its exemplars, encoded once, ready to vote on clips."""
        return ExemplarVoter(
            self.head,
            self.exemplars,
            num_exemplars=self.fit_config.num_exemplars,
            seed=self.fit_config.seed,
            name=str(self.folder),
        )


def write_run(run: Run, *, history: pd.DataFrame) -> None:
    """Write everything but the metrics; ``config.json`` comes last and makes it a run.

    Raises
    ------
    SetupError
        If the folder cannot be written.
    """
    folder = run.folder
    (folder / "config.json").unlink(missing_ok=True)
    with atomic_path(folder / "head.safetensors") as temporary:
        save_file(
            {n: t.contiguous() for n, t in stored_tensors(run.head.state_dict()).items()},
            temporary,
            metadata={"format": FORMAT},
        )
    exemplars = run.exemplars
    columns: dict[str, Any] = {
        name: getattr(exemplars, name) for name in ("score", "scale", "offset", "difficulty")
    }
    columns |= {name: list(getattr(exemplars, name)) for name in ("clip_id", "category")}
    columns["key"] = [json.dumps(key) for key in exemplars.key]
    if exemplars.judges is not None:
        columns |= {f"judge_{n}": marks for n, marks in enumerate(exemplars.judges.T, start=1)}
    write_bank(folder / "exemplars.h5", features=exemplars.features, columns=columns, attributes={})
    write_calibration(folder, run.calibration)
    with atomic_path(folder / "history.csv") as temporary:
        history.to_csv(temporary, index=False)
    write_json_atomically(
        folder / "config.json",
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **run.config.stored(),
            "protocol": dataclasses.asdict(run.protocol),
            "labels": dataclasses.asdict(run.labels),
            "head": dataclasses.asdict(run.head.config),
            "fit": stored_fit(run.fit_config),
            "num_snippets": exemplars.features.shape[1],
            "feature_dim": exemplars.features.shape[2],
            **{STORED_OUTPUT if n == "output" else n: v for n, v in run.head.settings().items()},
        },
    )


def run_folders(folder: Path) -> list[Path]:
    """The runs of a folder: itself, or those of its categories and folds, in fitting order.

    A parent folder's ``metrics.json`` lists its parts.

    Raises
    ------
    DataError
        If the folder is neither.
    """
    if not (folder / "config.json").exists() and (folder / "metrics.json").exists():
        below = [path.parent for path in folder.glob("*/config.json")]
        below += [path.parent for path in folder.glob("*/*/config.json")]
        if below:
            return sorted(below)
    return [folder]


def read_run(folder: str | Path, *, device: torch.device | str = DEVICE) -> Run:
    """Read the folder of one run.

    Parameters
    ----------
    folder : str or Path
        Of a data set with categories or folds, that of one part.
    device : torch.device or str
        Where its heads shall be, see :func:`aqa_pipeline.device.find_device`.

    Returns
    -------
    Run

    Raises
    ------
    DataError
        If it is not a run folder, or a file in it is missing or damaged.
    """
    folder, device = Path(folder), find_device(device)
    path, stored = folder / "config.json", read_stored(folder)
    if stored.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: version {stored.get('format_version')} of {FORMAT!r}, this program reads "
            f"version {FORMAT_VERSION}"
        )
    try:
        fit_config = fit_from_stored(stored["fit"])
        head_config = HeadConfig(**stored["head"])
        head = _empty_regressor(head_config, fit_config.num_seeds, stored)
        protocol = Protocol(**untupled(stored["protocol"]))
        labels = LabelScale(**untupled(stored["labels"]))
        config = RunConfig.from_stored(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    try:
        head.load_state_dict(tensors_from_stored(load_file(folder / "head.safetensors")))
    except FileNotFoundError:
        raise DataError(f"{folder}: head.safetensors is missing; train the head again") from None
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DataError(f"{folder / 'head.safetensors'}: damaged ({error})") from None
    return Run(
        folder=folder,
        head=head.to(device),
        exemplars=_read_exemplars(folder / "exemplars.h5"),
        protocol=protocol,
        labels=labels,
        fit_config=fit_config,
        config=config,
        calibration=read_calibration(folder),
    )


def _empty_regressor(head_config: HeadConfig, num_models: int, stored: dict[str, Any]) -> Regressor:
    """The regressor that ``config.json`` describes, its tensors still to be loaded."""
    shape = {name: stored[name] for name in ("num_snippets", "feature_dim")}
    if head_config.is_svr:
        return SvrHead(
            head_config, **shape, num_models=num_models, num_support=stored["num_support"]
        )
    generators = [torch.Generator().manual_seed(0) for _ in range(num_models)]
    return Head(
        head_config,
        **shape,
        output=output_from_settings(head_config, stored[STORED_OUTPUT], generators),
        epsilon=stored["epsilon"],
        generators=generators,
    )


def _read_exemplars(path: Path) -> FeatureSet:
    bank = read_bank(path)
    columns = bank.columns
    judges = [columns[f"judge_{n}"] for n in range(1, len(columns)) if f"judge_{n}" in columns]
    try:
        return FeatureSet(
            clip_id=tuple(columns["clip_id"]),
            features=bank.features,
            score=columns["score"],
            scale=columns["scale"],
            offset=columns["offset"],
            difficulty=columns["difficulty"],
            category=tuple(columns["category"]),
            key=tuple(tuple(json.loads(key)) for key in columns["key"]),
            judges=np.stack(judges, axis=1) if judges else None,
        )
    except KeyError as error:
        raise DataError(f"{path}: column {error} is missing; train the head again") from None


def history_table(rows: Sequence[tuple[float, ...]], columns: Sequence[str]) -> pd.DataFrame:
    """``history.csv`` as a table: one row a model and epoch."""
    table = pd.DataFrame(rows, columns=list(columns))
    return table.astype({"seed": int, "epoch": int}).sort_values(["seed", "epoch"])

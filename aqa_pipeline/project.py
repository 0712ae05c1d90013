"""Where a project keeps its manifests, caches and runs.

A project is the folder of the nearest ``aqa.toml``, searched from the current folder
upwards, or the current folder when there is none.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aqa_pipeline.errors import UsageError

SETTINGS_FILE = "aqa.toml"


@dataclass(frozen=True)
class Project:
    """The folders of one project.

    Attributes
    ----------
    root : Path
    settings : dict
        Contents of ``aqa.toml``: a table for each command, an entry for each option.
    dataset : str or None
        The data set that is meant where none is named.
    """

    root: Path
    settings: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """The project of a folder (default: the current one).

        Raises
        ------
        UsageError
            If ``aqa.toml`` cannot be read.
        """
        start = (start or Path.cwd()).absolute()
        for folder in (start, *start.parents):
            path = folder / SETTINGS_FILE
            if path.is_file():
                return cls(root=folder, settings=_read_settings(path))
        return cls(root=start)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def datasets(self) -> list[str]:
        """The data sets that have a manifest."""
        return sorted(path.stem for path in self.manifests.glob("*.csv"))

    def run_names(self, dataset: str | None = None) -> list[str]:
        """The run folders in ``runs/``; only those fitted on a data set if one is named."""
        names = []
        for folder in sorted(self.runs.glob("*/")):
            configs = sorted(folder.glob("config.json"))
            if not configs and (folder / "metrics.json").exists():  # of categories and folds
                configs = sorted(folder.glob("*/**/config.json"))
            if configs and (dataset is None or _dataset_of(configs[0]) == dataset):
                names.append(folder.name)
        return names

    def manifest_path(self, dataset: str) -> Path:
        """``manifests/NAME.csv`` of a data set."""
        return self.manifests / f"{dataset}.csv"

    def run_path(self, run: str | Path) -> Path:
        """A run folder from its name, or from a path to it."""
        path = Path(run)
        return path if path.is_dir() or path.is_absolute() else self.runs / path

    def shown(self, path: Path) -> str:
        """A path as the user would type it: relative when it lies below the current folder."""
        try:
            return str(path.absolute().relative_to(Path.cwd()))
        except ValueError:
            return str(path)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None


def _dataset_of(config: Path) -> str | None:
    """The data set that a run was fitted on; None if its file does not say."""
    import json  # not for `aqa --help`

    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

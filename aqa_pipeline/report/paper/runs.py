"""Runs that a table or figure needs: fitted once, found again afterwards.

A run folder is taken as it is while its stamp, ``reproduce.json``, says that it was fitted with
these settings, on this manifest and on features of this fingerprint. The stamp is written last, so
a run that was interrupted is fitted again and those before it are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline._version import __version__
from aqa_pipeline.atomic import as_json, write_text_atomically
from aqa_pipeline.cache.load import load_clips
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.metrics import fisher_mean
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.parts import Part, parts_of
from aqa_pipeline.errors import DataError
from aqa_pipeline.report.paper.table import MeanStd
from aqa_pipeline.runs.config import stored_fit
from aqa_pipeline.runs.folder import Run, read_run
from aqa_pipeline.runs.metrics import AverageMetrics, Metrics, read_metrics
from aqa_pipeline.training.fit import fit_dataset

FloatArray = npt.NDArray[np.float64]
Metric = Literal["rho", "relative_l2"]

STAMP = "reproduce.json"


@dataclass(frozen=True)
class PaperRun:
    """One row of a table, one point of a curve.

    Attributes
    ----------
    name : str
        As the paper prints it: ``CoRe + GART*``, the star for "without difficulty".
    head, fit : HeadConfig, FitConfig
    folder_name : str
    """

    name: str
    head: HeadConfig
    fit: FitConfig
    folder_name: str


def paper_run(
    kind: Literal["gart", "mlp"],
    mode: Literal["contrastive", "direct"],
    *,
    head: HeadConfig,
    fit: FitConfig,
    use_difficulty: bool,
) -> PaperRun:
    """The run of one of the paper's four methods, with or without the difficulty."""
    own = dataclasses.replace(head, kind=kind, mode=mode)
    name = own.name if use_difficulty else f"{own.name}*"
    plain = re.sub(r"\W+", "-", own.name.lower())
    return PaperRun(
        name=name,
        head=own,
        fit=dataclasses.replace(fit, use_difficulty=use_difficulty),
        folder_name=plain if use_difficulty else f"{plain}-no-difficulty",
    )


@dataclass(frozen=True, eq=False)
class PaperRunResult:
    """A finished run as its metrics files describe it.

    Attributes
    ----------
    run : PaperRun
    folder : Path
    parts : tuple of Part
    metrics : Metrics or AverageMetrics
        Of the folder.
    per_part : tuple of Metrics
        Of each part, in the order of ``parts``.
    rho_average : {"fisher", "mean"}
    """

    run: PaperRun
    folder: Path
    parts: tuple[Part, ...]
    metrics: Metrics | AverageMetrics
    per_part: tuple[Metrics, ...]
    rho_average: Literal["fisher", "mean"]

    def of_category(self, category: str | None, metric: Metric) -> MeanStd:
        """Mean and spread over the seeds; folds averaged first. R-l2 not times 100."""
        return MeanStd.of(self._per_seed(category, metric))

    def overall(self, metric: Metric) -> MeanStd:
        """Of the data set, categories averaged as its protocol says."""
        categories = list(dict.fromkeys(part.category for part in self.parts))
        by_category = np.stack([self._per_seed(name, metric) for name in categories])
        if not isinstance(self.metrics, AverageMetrics):
            return MeanStd.of(by_category[0])
        fisher = metric == "rho" and self.rho_average == "fisher"
        per_seed = [fisher_mean(c) if fisher else float(np.nanmean(c)) for c in by_category.T]
        # The mean that metrics.json, `aqa evaluate` and the report show: of the seeds' means.
        return MeanStd(getattr(self.metrics.average, metric), MeanStd.of(per_seed).std)

    def _per_seed(self, category: str | None, metric: Metric) -> FloatArray:
        folds = [
            measured.heads[metric].per_seed
            for part, measured in zip(self.parts, self.per_part, strict=True)
            if part.category == category
        ]
        mean: FloatArray = np.mean(folds, axis=0)
        return mean


@dataclass(frozen=True, eq=False)
class PaperContext:
    """Inputs of the runs, and their folder.

    Attributes
    ----------
    manifest : Manifest
    cache : FeatureCache
    folder : Path
        Holds a run folder for each run.
    device : torch.device
    again : bool
        Fit what is already there, too.
    progress : callable
        Called as ``progress(done, total)``, in epochs over all runs.
    log : callable
        Called with a sentence saying what begins.
    selections : set of str
        How the epochs were chosen in the runs that were asked for so far.
    """

    manifest: Manifest
    cache: FeatureCache
    folder: Path
    device: torch.device
    again: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None
    log: Callable[[str], None] = lambda sentence: None
    selections: set[str] = field(default_factory=set)

    def results(self, runs: Sequence[PaperRun]) -> list[PaperRunResult]:
        """Fit every run that is not done yet, and read all of them.

        Raises
        ------
        DataError, CacheError
            As :func:`aqa_pipeline.training.fit.fit_dataset`.
        """
        parts = tuple(parts_of(self.manifest))
        total = sum(len(parts) * run.fit.epochs for run in runs)
        before = 0
        results = []
        for number, run in enumerate(runs, start=1):
            results.append(self._result(run, parts, f"{number}/{len(runs)}", before, total))
            before += len(parts) * run.fit.epochs
            self.progress(before, total)
        self.selections.update(result.metrics.selection for result in results)
        return results

    def _result(
        self, run: PaperRun, parts: tuple[Part, ...], number: str, before: int, total: int
    ) -> PaperRunResult:
        folder, stamp = self.folder / run.folder_name, self._stamp(run)
        if not self.again and _text_of(folder / STAMP) == stamp:
            self.log(f"{number} {run.name}: as fitted before, in {folder}")
        else:
            self.log(f"{number} {run.name}")
            (folder / STAMP).unlink(missing_ok=True)
            fit_dataset(
                self.manifest,
                self.cache,
                folder,
                head_config=run.head,
                fit_config=run.fit,
                device=self.device,
                progress=lambda done, _: self.progress(before + done, total),
            )
            write_text_atomically(folder / STAMP, stamp)
        metrics = read_metrics(folder)
        per_part = [read_metrics(part.folder(folder)) for part in parts]
        if metrics is None:
            raise DataError(f"{folder}: metrics.json is missing; type the same with --again")
        return PaperRunResult(
            run=run,
            folder=folder,
            parts=parts,
            metrics=metrics,
            per_part=tuple(own for own in per_part if isinstance(own, Metrics)),
            rho_average=self.manifest.protocol.rho_average,
        )

    def _stamp(self, run: PaperRun) -> str:
        protocol = dataclasses.asdict(self.manifest.protocol)
        clips = self.manifest.clips.to_csv(index=False).encode()
        return as_json(
            {
                "method": run.name,
                "head": dataclasses.asdict(run.head),
                "fit": stored_fit(run.fit),
                "protocol": protocol,
                "manifest_sha256": hashlib.sha256(clips).hexdigest(),
                "cache": self.cache.folder.name,
                "fingerprint_sha256": self.cache.identity.fingerprint.sha256,
                "device": str(self.device),
                "aqa-pipeline": __version__,
            }
        )


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def read_part(context: PaperContext, result: PaperRunResult) -> tuple[Run, FeatureSet]:
    """The run of a data set's only part, and its test clips."""
    (part,) = result.parts
    run = read_run(part.folder(result.folder), device=context.device)
    # The protocol of the run: without the difficulty, it is not the manifest's.
    manifest = dataclasses.replace(context.manifest, protocol=run.protocol)
    rows = part.rows(manifest, "test")
    return run, load_clips(manifest, context.cache, rows, run.labels)

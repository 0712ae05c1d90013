"""Report of a run, or of several side by side: one page that needs nothing else.

The page is one HTML file: figures are SVG inside it, pictures are data, there is no script,
and its own policy forbids the browser to load anything. What a run does not have (a tree,
votes, a history, reachable videos) is left out. Equal runs give an equal page.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqa_pipeline.atomic import write_text_atomically
from aqa_pipeline.errors import AqaError
from aqa_pipeline.project import Project
from aqa_pipeline.report.case_study import Case, cases, rescore
from aqa_pipeline.report.drawings import (
    Drawing,
    comparison_drawings,
    prediction_drawings,
    rescored_drawings,
    training_drawings,
    tree_drawing,
)
from aqa_pipeline.report.html import render
from aqa_pipeline.report.sweep import SweepPage, sweep_page
from aqa_pipeline.runs.calibration import interval_sentence
from aqa_pipeline.runs.metrics import Accuracy
from aqa_pipeline.runs.record import ParentRecord, RunRecord, read_record

#: Lists longer than this are only counted in the table of settings.
_MAX_LISTED = 16


@dataclass(frozen=True)
class MetricRow:
    """One line of the table of metrics; R-l2 not yet multiplied by 100."""

    name: str
    rho: float | None = None
    rho_std: float | None = None
    rho_interval: tuple[float, float] | None = None
    relative_l2: float | None = None
    relative_l2_std: float | None = None
    relative_l2_interval: tuple[float, float] | None = None
    kendall_tau: float | None = None
    l2: float | None = None


@dataclass(frozen=True)
class RunSection:
    """All that the page says of one run."""

    anchor: str
    record: RunRecord
    headline: MetricRow
    rows: list[MetricRow]
    notes: list[str]
    drawings: list[Drawing]
    cases: list[tuple[Case, Drawing | None]]
    missing: str
    settings: list[tuple[str, str]]
    sweep: SweepPage | None = None

    @property
    def has_tree(self) -> bool:
        return any(tree for _, tree in self.cases)


@dataclass(frozen=True)
class ParentSection:
    """A folder of runs: their averages, what compares them, and each of them."""

    anchor: str
    record: ParentRecord
    headline: MetricRow
    categories: list[MetricRow]
    drawings: list[Drawing]
    parts: list[RunSection]
    sweep: SweepPage | None = None


Section = RunSection | ParentSection


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    project: Project,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Write the page of one or more runs.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, or folders of runs (one per category or fold).
    out : Path
        Replaced in one step.
    project : Project
        Its manifests, caches and videos give votes, tree paths and pictures, where they
        are still there.
    progress : callable
        Called as ``progress(done, total)``, in runs.

    Returns
    -------
    list of dict
        The headline numbers of each of ``folders``: plain values.

    Raises
    ------
    DataError
        If a folder is not a run.
    SetupError
        If the page cannot be written.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    # All are read first: a mistyped name should not cost the drawing of the others.
    records = [
        read_record(folder, name=name)
        for folder, name in zip(folders, _short_names(folders), strict=True)
    ]
    total = sum(len(r.parts) if isinstance(r, ParentRecord) else 1 for r in records)
    done = itertools.count(1)
    sections = [
        _section(record, f"run{number}", project, lambda: progress(next(done), total))
        for number, record in enumerate(records, start=1)
    ]
    page = render(
        "report.html",
        sections=sections,
        comparison=list(comparison_drawings(list(_leaves(records)), "all"))
        if len(sections) > 1
        else [],
        selections=sorted({section.record.selection for section in sections}),
        is_parent=lambda section: isinstance(section, ParentSection),
    )
    write_text_atomically(out, page)
    return [_headline(section) for section in sections]


def _headline(section: Section) -> dict[str, Any]:
    row, record = section.headline, section.record
    return {
        "run": str(record.folder),
        "method": record.method,
        "selection": record.selection,
        "rho": row.rho,
        "rho_interval_95": row.rho_interval,
        "relative_l2": row.relative_l2,
        "relative_l2_interval_95": row.relative_l2_interval,
    }


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path; as many parts as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _leaves(records: Iterable[RunRecord | ParentRecord]) -> Iterator[RunRecord]:
    for record in records:
        if isinstance(record, ParentRecord):
            for part in record.parts:
                yield dataclasses.replace(part, name=f"{record.name}/{part.name}")
        else:
            yield record


def _section(
    record: RunRecord | ParentRecord, anchor: str, project: Project, step: Callable[[], None]
) -> Section:
    if isinstance(record, RunRecord):
        return _run_section(record, anchor, project, step)
    parts = [
        _run_section(part, f"{anchor}-{number}", project, step)
        for number, part in enumerate(record.parts, start=1)
    ]
    average = record.metrics.average if record.metrics else Accuracy()
    categories = record.metrics.categories if record.metrics else {}
    return ParentSection(
        anchor=anchor,
        record=record,
        headline=_plain_row("average", average),
        categories=[_plain_row(name, own) for name, own in categories.items() if name],
        drawings=list(comparison_drawings(record.parts, anchor)),
        parts=parts,
        sweep=sweep_page(record.folder, anchor),
    )


def _run_section(
    record: RunRecord, anchor: str, project: Project, step: Callable[[], None]
) -> RunSection:
    rows = _metric_rows(record)
    drawings = [*prediction_drawings(record, anchor), *training_drawings(record, anchor)]
    studied: list[tuple[Case, Drawing | None]] = []
    missing = ""
    try:
        rescored = rescore(record, project)
        drawings += rescored_drawings(record, rescored, anchor)
        studied = [
            (case, tree_drawing(case, f"{anchor}-case{number}"))
            for number, case in enumerate(cases(rescored, project), start=1)
        ]
    except AqaError as error:
        missing = str(error)
    step()
    return RunSection(
        anchor=anchor,
        record=record,
        headline=rows[0] if rows else MetricRow(record.name),
        rows=rows,
        notes=_notes(record),
        drawings=drawings,
        cases=studied,
        missing=missing,
        settings=list(_flattened(record.stored)),
        sweep=sweep_page(record.folder, anchor),
    )


def _metric_rows(record: RunRecord) -> list[MetricRow]:
    metrics = record.metrics
    if metrics is None:
        return []
    count = len(metrics.seeds)
    rho, relative_l2 = metrics.heads["rho"], metrics.heads["relative_l2"]
    rows = [
        MetricRow(
            name=record.method if count == 1 else f"{record.method}, mean of {count} heads",
            rho=rho.mean,
            rho_std=rho.std,
            rho_interval=rho.interval_95,
            relative_l2=relative_l2.mean,
            relative_l2_std=relative_l2.std,
            relative_l2_interval=relative_l2.interval_95,
            kendall_tau=metrics.heads["kendall_tau"].mean,
            l2=metrics.heads["l2"].mean,
        )
    ]
    if count > 1:
        rows.append(_plain_row(f"the {count} heads averaged", metrics.ensemble))
    if metrics.best_relative_l2_of_any_epoch:
        mean = float(np.mean(metrics.best_relative_l2_of_any_epoch))
        rows.append(MetricRow("lowest R-ℓ2 of any epoch, as published", relative_l2=mean))
    if metrics.difficulty_alone:
        rows.append(_plain_row("difficulty alone, without a look", metrics.difficulty_alone))
    return rows


def _plain_row(name: str, values: Accuracy) -> MetricRow:
    return MetricRow(name, rho=values.rho, relative_l2=values.relative_l2)


def _notes(record: RunRecord) -> list[str]:
    if record.metrics is None:
        return []
    exemplars = record.metrics.exemplars
    key = " and ".join(exemplars.get("key", [])) or "key"
    notes = []
    if exemplars.get("clips_with_fewer"):
        notes.append(
            f"{exemplars['clips_with_fewer']} test clips have fewer than "
            f"{exemplars['asked']} exemplars of their {key}; the vote is shorter."
        )
    if exemplars.get("clips_with_nearest_key"):
        notes.append(
            f"{exemplars['clips_with_nearest_key']} test clips have no exemplar of their {key}; "
            "the nearest one voted."
        )
    if record.metrics.intervals:
        notes.append(f"{interval_sentence(record.metrics.intervals)}.")
    return notes


def _flattened(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ``fit.epochs`` and a text; long lists are counted."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flattened(item, f"{prefix}{name}.")
        elif isinstance(item, list) and _count(item) > _MAX_LISTED:
            yield f"{prefix}{name}", f"({_count(item)} values)"
        elif isinstance(item, list):
            yield f"{prefix}{name}", ", ".join(map(str, item)) or "none"
        else:
            yield f"{prefix}{name}", "not set" if item is None or item == {} else str(item)


def _count(value: Any) -> int:
    return sum(map(_count, value)) if isinstance(value, list) else 1

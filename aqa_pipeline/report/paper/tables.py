"""Tables 1-4 of the paper: its numbers, and ours beside them.

Conventions
-----------
here
    A number of this program on the data set asked for; mean and standard deviation over seeds.
paper
    As printed. Rows that the paper quotes from other works are printed, and not run.
*
    The difficulty is used neither in training nor in test.
"""

from __future__ import annotations

import dataclasses
import math

from aqa_pipeline.config import FitConfig, HeadConfig
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.protocol import without_difficulty
from aqa_pipeline.errors import DataError
from aqa_pipeline.report.paper.numbers import (
    NOT_AVAILABLE,
    CategoryRow,
    MethodRow,
    method_rows,
    table1_headings,
)
from aqa_pipeline.report.paper.numbers import table1 as paper_table1
from aqa_pipeline.report.paper.runs import (
    Metric,
    PaperContext,
    PaperRun,
    PaperRunResult,
    paper_run,
)
from aqa_pipeline.report.paper.table import Cell, MeanStd, ResultTable

RHO, R_L2 = "Sp. Corr.", "R-l2 (x100)"
#: What the JIGSAWS tasks are called in Table 4.
_TASK_HEADINGS = {"Suturing": "S", "Needle_Passing": "NP", "Knot_Tying": "KT"}


def uses_difficulty(manifest: Manifest) -> bool:
    """Whether the protocol lets methods see the difficulty at all."""
    protocol = manifest.protocol
    return without_difficulty(protocol) != protocol and (
        protocol.label_transform == "raw" or "difficulty" in protocol.exemplar_key
    )


def by_category(manifest: Manifest, *, what: str) -> Manifest:
    """The manifest with a head for each category, whatever its protocol says.

    Raises
    ------
    DataError
        If the data set has fewer than two categories.
    """
    names = sorted(set(manifest.clips["category"]) - {""})
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise DataError(
            f"{manifest.path}: {what} has a column for each category, and this data set has "
            f"{found} in its column category; table2 and table3 need none"
        )
    protocol = manifest.protocol
    if protocol.per_category:
        return manifest
    key = protocol.exemplar_key
    key = key if "category" in key else ("category", *key)
    return dataclasses.replace(
        manifest, protocol=dataclasses.replace(protocol, per_category=True, exemplar_key=key)
    )


def table1(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 1: each category's rho and R-l2, heads of its own, without difficulty."""
    outcomes = {o.job.name: o for o in context.outcomes(_starred(head, fit))}
    headings = table1_headings()
    names = _categories(next(iter(outcomes.values())))
    columns = [headings.get(name, name) for name in names]
    halves: tuple[tuple[Metric, str, str, int], ...] = (
        ("rho", "Sp. Corr", "Avg. Corr.", 4),
        ("relative_l2", R_L2, "Avg. R-l2", 2),
    )
    sheets = []
    for metric, title, average, digits in halves:
        rows: list[tuple[Cell, ...]] = []
        for row in paper_table1(metric):
            own = [row.values.get(name, math.nan) for name in names]
            rows.append((row.label, "paper", *own, row.average, _year(row)))
            if not row.quoted:
                rows.append(_here(outcomes[row.method], names, metric))
        header = ("Method", "from", *columns, average, "Year")
        sheets.append(ResultTable(title, header, tuple(rows), dict.fromkeys(header, digits)))
    return sheets


def table4(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 4: each task of JIGSAWS over its folds; the paper's numbers are not available."""
    outcomes = context.outcomes(_starred(head, fit))
    names = _categories(outcomes[0])
    columns = [_TASK_HEADINGS.get(name, name) for name in names]
    halves: tuple[tuple[Metric, str, str, int], ...] = (
        ("rho", "Sp. Corr", "Avg. Corr.", 4),
        ("relative_l2", R_L2, "Avg. R-l2", 2),
    )
    sheets = []
    for metric, title, average, digits in halves:
        rows: list[tuple[Cell, ...]] = []
        for outcome in outcomes:
            absent = [NOT_AVAILABLE] * (len(names) + 1)
            rows.append((outcome.job.name, "paper", *absent))
            rows.append(_here(outcome, names, metric)[:-1])
        header = ("Method", "from", *columns, average)
        sheets.append(ResultTable(title, header, tuple(rows), dict.fromkeys(header, digits)))
    return sheets


def table2(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 2: without difficulty, and with it where the data set has one."""
    jobs = _starred(head, fit)
    if uses_difficulty(context.manifest):
        jobs.append(paper_run("mlp", "direct", head=head, fit=fit, use_difficulty=True))
        jobs.append(paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=True))
    outcomes = {outcome.job.name: outcome for outcome in context.outcomes(jobs)}
    header = ("", f"{RHO} paper", f"{RHO} here", f"{R_L2} paper", f"{R_L2} here", "Year")
    sheets = []
    for used, title in ((False, "Method (w/o DD)"), (True, "Method (w/ DD)")):
        rows = tuple(
            (*_beside(row, outcomes), _year(row))
            for row in method_rows("table2")
            if row.difficulty is used
        )
        sheets.append(ResultTable(title, header, rows, _digits(header)))
    return sheets


def table3(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 3: the baseline, its MLP replaced by GART, and then compared with exemplars."""
    jobs = [
        paper_run("mlp", "direct", head=head, fit=fit, use_difficulty=True),
        paper_run("gart", "direct", head=head, fit=fit, use_difficulty=True),
        paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=True),
    ]
    outcomes = {outcome.job.name: outcome for outcome in context.outcomes(jobs)}
    header = ("Method", "Ablation", f"{RHO} paper", f"{RHO} here", f"{R_L2} paper", f"{R_L2} here")
    rows = []
    for row in method_rows("table3"):
        method, *numbers = _beside(row, outcomes)
        rows.append((method, row.ablation, *numbers))
    return [ResultTable("Ablation study", header, tuple(rows), _digits(header))]


def order_sentence(sheet: ResultTable) -> str:
    """In which order the methods of a table come out here, best rho first."""
    column = sheet.columns.index(f"{RHO} here")
    found = []
    for row in sheet.rows:
        cell = row[column]
        if isinstance(cell, MeanStd):
            found.append((cell.mean, str(row[0])))
    names = [name for _, name in sorted(found, reverse=True)]
    return f"order here, highest Sp. Corr. first: {', '.join(names)}"


def _starred(head: HeadConfig, fit: FitConfig) -> list[PaperRun]:
    return [
        paper_run("mlp", "direct", head=head, fit=fit, use_difficulty=False),
        paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=False),
    ]


def _categories(outcome: PaperRunResult) -> list[str]:
    """In Table 1's order where it has them, then the others by name."""
    known = list(table1_headings())
    found = {part.category for part in outcome.parts if part.category is not None}
    return [name for name in known if name in found] + sorted(found - set(known))


def _here(outcome: PaperRunResult, names: list[str], metric: Metric) -> tuple[Cell, ...]:
    values = [outcome.of_category(name, metric) for name in names]
    values.append(outcome.overall(metric))
    if metric == "relative_l2":
        values = [times_100(value) for value in values]
    return (outcome.job.name, "here", *values, "")


def _beside(row: MethodRow, outcomes: dict[str, PaperRunResult]) -> tuple[Cell, ...]:
    outcome = None if row.quoted else outcomes.get(row.method)
    rho = relative_l2 = None
    if outcome is not None:
        rho, relative_l2 = outcome.overall("rho"), times_100(outcome.overall("relative_l2"))
    return (row.label, row.rho, rho, row.relative_l2, relative_l2)


def times_100(value: MeanStd) -> MeanStd:
    """As R-l2 is printed."""
    return MeanStd(100 * value.mean, None if value.std is None else 100 * value.std)


def _year(row: CategoryRow | MethodRow) -> str:
    return "" if row.year is None else str(row.year)


def _digits(header: tuple[str, ...]) -> dict[str, int]:
    return {name: 3 for name in header if name.startswith(R_L2)}

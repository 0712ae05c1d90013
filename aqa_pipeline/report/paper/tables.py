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
from collections.abc import Callable, Iterator, Mapping

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
    results = {result.run.name: result for result in context.results(_starred(head, fit))}

    def rows(metric: Metric, names: list[str]) -> Iterator[tuple[Cell, ...]]:
        for row in paper_table1(metric):
            own = [row.values.get(name, math.nan) for name in names]
            yield (row.label, "paper", *own, row.average, _year(row))
            if not row.quoted:
                yield (*_here(results[row.method], names, metric), "")

    first = next(iter(results.values()))
    return _by_metric(first, table1_headings(), rows, last=("Year",))


def table4(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 4: each task of JIGSAWS over its folds; the paper's numbers are not available."""
    results = context.results(_starred(head, fit))

    def rows(metric: Metric, names: list[str]) -> Iterator[tuple[Cell, ...]]:
        for result in results:
            yield (result.run.name, "paper", *[NOT_AVAILABLE] * (len(names) + 1))
            yield _here(result, names, metric)

    return _by_metric(results[0], _TASK_HEADINGS, rows)


def _by_metric(
    result: PaperRunResult,
    headings: Mapping[str, str],
    rows: Callable[[Metric, list[str]], Iterator[tuple[Cell, ...]]],
    *,
    last: tuple[str, ...] = (),
) -> list[ResultTable]:
    """A table of rho and one of R-l2, with a column for each category and their average."""
    names = _categories(result)
    columns = [headings.get(name, name) for name in names]
    halves: tuple[tuple[Metric, str, str, int], ...] = (
        ("rho", "Sp. Corr", "Avg. Corr.", 4),
        ("relative_l2", R_L2, "Avg. R-l2", 2),
    )
    tables = []
    for metric, title, average, digits in halves:
        header = ("Method", "from", *columns, average, *last)
        digits_of = dict.fromkeys(header, digits)
        tables.append(ResultTable(title, header, tuple(rows(metric, names)), digits_of))
    return tables


def table2(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 2: without difficulty, and with it where the data set has one."""
    runs = _starred(head, fit)
    if uses_difficulty(context.manifest):
        runs.append(paper_run("mlp", "direct", head=head, fit=fit, use_difficulty=True))
        runs.append(paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=True))
    results = {result.run.name: result for result in context.results(runs)}
    header = ("", f"{RHO} paper", f"{RHO} here", f"{R_L2} paper", f"{R_L2} here", "Year")
    tables = []
    for used, title in ((False, "Method (w/o DD)"), (True, "Method (w/ DD)")):
        rows = tuple(
            (*_beside(row, results), _year(row))
            for row in method_rows("table2")
            if row.difficulty is used
        )
        tables.append(ResultTable(title, header, rows, _digits(header)))
    return tables


def table3(context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[ResultTable]:
    """Table 3: the baseline, its MLP replaced by GART, and then compared with exemplars."""
    runs = [
        paper_run("mlp", "direct", head=head, fit=fit, use_difficulty=True),
        paper_run("gart", "direct", head=head, fit=fit, use_difficulty=True),
        paper_run("gart", "contrastive", head=head, fit=fit, use_difficulty=True),
    ]
    results = {result.run.name: result for result in context.results(runs)}
    header = ("Method", "Ablation", f"{RHO} paper", f"{RHO} here", f"{R_L2} paper", f"{R_L2} here")
    rows = []
    for row in method_rows("table3"):
        method, *numbers = _beside(row, results)
        rows.append((method, row.ablation, *numbers))
    return [ResultTable("Ablation study", header, tuple(rows), _digits(header))]


def order_sentence(table: ResultTable) -> str:
    """In which order the methods of a table come out here, best rho first."""
    column = table.columns.index(f"{RHO} here")
    found = []
    for row in table.rows:
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


def _categories(result: PaperRunResult) -> list[str]:
    """In Table 1's order where it has them, then the others by name."""
    known = list(table1_headings())
    found = {part.category for part in result.parts if part.category is not None}
    return [name for name in known if name in found] + sorted(found - set(known))


def _here(result: PaperRunResult, names: list[str], metric: Metric) -> tuple[Cell, ...]:
    values = [result.of_category(name, metric) for name in names]
    values.append(result.overall(metric))
    if metric == "relative_l2":
        values = [times_100(value) for value in values]
    return (result.run.name, "here", *values)


def _beside(row: MethodRow, results: dict[str, PaperRunResult]) -> tuple[Cell, ...]:
    result = None if row.quoted else results.get(row.method)
    rho = relative_l2 = None
    if result is not None:
        rho, relative_l2 = result.overall("rho"), times_100(result.overall("relative_l2"))
    return (row.label, row.rho, rho, row.relative_l2, relative_l2)


def times_100(value: MeanStd) -> MeanStd:
    """As R-l2 is printed."""
    return MeanStd(100 * value.mean, None if value.std is None else 100 * value.std)


def _year(row: CategoryRow | MethodRow) -> str:
    return "" if row.year is None else str(row.year)


def _digits(header: tuple[str, ...]) -> dict[str, int]:
    return {name: 3 for name in header if name.startswith(R_L2)}

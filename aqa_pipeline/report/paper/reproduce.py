"""Reproduce any table or figure of the paper on the cached features of any data set.

:func:`reproduce` is the door: it knows what each needs, and says of every result under which
protocol, from which weights and from frozen or fine-tuned features it comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aqa_pipeline.atomic import write_text_atomically
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.config import FitConfig, HeadConfig, ReproduceConfig
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import UsageError
from aqa_pipeline.report.paper.figures import (
    PAPER_DEPTH,
    PaperFigure,
    fig4,
    fig5,
    fig6,
    fig7,
    fig8,
    groups_at_depth,
    one_part,
    part_sentence,
    svg_file,
)
from aqa_pipeline.report.paper.runs import PaperContext
from aqa_pipeline.report.paper.table import ResultTable
from aqa_pipeline.report.paper.tables import (
    by_category,
    order_sentence,
    table1,
    table2,
    table3,
    table4,
    uses_difficulty,
)

_TABLES: dict[str, Callable[[PaperContext, HeadConfig, FitConfig], list[ResultTable]]] = {
    made.__name__: made for made in (table1, table2, table3, table4)
}
_FIGURES: dict[str, Callable[[PaperContext, HeadConfig, FitConfig], PaperFigure]] = {
    made.__name__: made for made in (fig4, fig5, fig6, fig7, fig8)
}
#: The data set the paper's item is about, as its own name and as our manifests name it.
_PAPER_DATASETS = {
    "table1": ("AQA-7", "aqa7"),
    "table2": ("MTL-AQA", "mtl_aqa"),
    "table3": ("MTL-AQA", "mtl_aqa"),
    "table4": ("JIGSAWS", "jigsaws"),
    "fig5": ("AQA-7 diving", "aqa7"),
    "fig7": ("MTL-AQA", "mtl_aqa"),
}
#: SHA-256 over the tensors of the weights that `aqa weights fetch` fetches.
_KINETICS_SHA256 = "43af5e4e80bb50ea3e550f8ee3f4c45017ef5fb429fab04c81576fdc2fe802c9"


@dataclass(frozen=True)
class Reproduction:
    """A table or figure of the paper, made here.

    Attributes
    ----------
    title : str
    tables : tuple of ResultTable
        To be printed one below the other.
    notes : tuple of str
        What belongs to every number: protocol, weights, features, settings.
    files : tuple of Path
        What was written: SVG and CSV.
    folder : Path
        Holds the files and the runs.
    """

    title: str
    tables: tuple[ResultTable, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.title,
            "sheets": [{"title": table.title, "rows": table.records()} for table in self.tables],
            "notes": list(self.notes),
        }


def reproduce(
    what: str,
    manifest: Manifest,
    cache: FeatureCache,
    *,
    runs: Path,
    config: ReproduceConfig,
    device: torch.device,
    head_config: HeadConfig = HeadConfig(),  # noqa: B008 - frozen
    again: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda sentence: None,
) -> Reproduction:
    """Make a table or figure of the paper, fitting the runs it needs.

    Parameters
    ----------
    what : str
        ``table1`` to ``table4``, ``fig4`` to ``fig8``.
    manifest : Manifest
    cache : FeatureCache
    runs : Path
        Runs and files go to ``runs/reproduce/<what>-<dataset>/``.
    config : ReproduceConfig
    device : torch.device
    head_config : HeadConfig
        Widths and aggregation of all heads; what tells the methods apart is the paper's.
    again : bool
        Fit anew what an earlier call fitted with these very settings.
    progress : callable
        Called as ``progress(done, total)``, in epochs over all runs.
    log : callable
        Called with a sentence saying which run begins.

    Raises
    ------
    UsageError
        If there is no such table or figure.
    DataError
        If it needs categories and the data set has none, or there is nothing to learn.
    CacheError
        If features are missing.
    """
    if what not in _TABLES and what not in _FIGURES:
        known = ", ".join([*_TABLES, *_FIGURES])
        raise UsageError(f"{what!r} is no table or figure that can be made; there are {known}")
    if what in ("table1", "table4"):
        manifest = by_category(manifest, what=what)
    elif what in _FIGURES:
        manifest = one_part(manifest)
    head = dataclasses.replace(head_config, recipe=config.recipe)
    if config.recipe == "paper":
        head = dataclasses.replace(head, num_groups=groups_at_depth(PAPER_DEPTH, "paper"))
    fit = FitConfig(
        epochs=config.epochs, num_seeds=config.num_seeds, model_selection=config.model_selection
    )
    context = PaperContext(
        manifest=manifest,
        cache=cache,
        folder=runs / "reproduce" / f"{what}-{manifest.name}",
        device=device,
        again=again,
        progress=progress,
        log=log,
    )
    if what in _TABLES:
        tables = _TABLES[what](context, head, fit)
        figure = PaperFigure(tables, {}, _named(what, tables))
        if what == "table3":
            figure.notes.append(order_sentence(tables[0]))
    else:
        figure = _FIGURES[what](context, head, fit)
    return Reproduction(
        title=f"{_title(what)} of the paper, on {manifest.name}",
        tables=tuple(figure.tables),
        notes=(*figure.notes, *_provenance(what, context, head, fit)),
        files=tuple(_write(context.folder, figure)),
        folder=context.folder,
    )


def _named(what: str, tables: list[ResultTable]) -> dict[str, ResultTable]:
    if len(tables) == 1:
        return {what: tables[0]}
    return {f"{what}-{number}": table for number, table in enumerate(tables, start=1)}


def _title(what: str) -> str:
    return what.replace("table", "Table ").replace("fig", "Fig. ")


def _write(folder: Path, figure: PaperFigure) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.svg": svg_file(drawing) for name, drawing in figure.drawings.items()}
    texts |= {f"{name}.csv": table.csv() for name, table in figure.data.items()}
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [folder / name for name in texts]


def _provenance(what: str, context: PaperContext, head: HeadConfig, fit: FitConfig) -> list[str]:
    notes = []
    if what in _FIGURES and (which := part_sentence(context.manifest)):
        notes.append(which)
    notes += [f"protocol: {sentence}" for sentence in sorted(context.selections)]
    notes.append(
        f"features: {features_sentence(context.cache)}; the paper fine-tunes I3D end to end"
    )
    groups = f"{head.num_groups} groups" if what != "fig5" else "groups as in the table"
    heads = f", epochs: {fit.epochs}, seeds {fit.seed}..{fit.seed + fit.num_seeds - 1}"
    notes.append(
        f"heads: recipe {head.recipe}, {groups}, snippets {head.aggregation}"
        + ("" if what == "fig4" else heads)
    )
    if what in ("table3", "fig5", "fig8") and not uses_difficulty(context.manifest):
        notes.append("the protocol of this data set does not use the difficulty")
    if what == "table2" and not uses_difficulty(context.manifest):
        notes.append("the protocol uses no difficulty, so the methods with DD were not run")
    paper_name, own_name = _PAPER_DATASETS.get(what, ("", ""))
    if paper_name and context.manifest.protocol.name != own_name:
        notes.append(
            f"the paper's {_title(what)} is of {paper_name}; its numbers do not compare with "
            f"those of {context.manifest.name}"
        )
    if what in ("table1", "table2"):
        notes.append("rows with a [reference] are quoted by the paper from that work, and not run")
    return notes


def features_sentence(cache: FeatureCache) -> str:
    """Frozen or fine-tuned, and from which weights, as far as the cache knows."""
    fingerprint = cache.identity.fingerprint
    if cache.is_imported:
        return f"imported ({fingerprint.backbone}), frozen or fine-tuned is not known here"
    short = fingerprint.weights_sha256[:12]
    if fingerprint.weights_sha256 == _KINETICS_SHA256:
        return f"frozen features, I3D weights {short} (Kinetics-400, as fetched)"
    return (
        f"I3D weights {short}, not those that `aqa weights fetch` fetches: fine-tuned or "
        "frozen as they are"
    )

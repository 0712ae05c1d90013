"""docs/manifest-format.md and docs/datasets.md against the code."""

from __future__ import annotations

import dataclasses
import re

from aqa_pipeline.config import Protocol
from aqa_pipeline.datasets import finediving, jigsaws, mtl_aqa
from aqa_pipeline.datasets.check import KINDS
from aqa_pipeline.datasets.manifest import KNOWN, REQUIRED
from tests.support.places import ROOT

DOCS = ROOT / "docs"


def table_rows(name: str) -> list[list[str]]:
    lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]


def test_the_columns_of_a_manifest_are_documented() -> None:
    needed = {
        row[0].strip("`"): row[1] for row in table_rows("manifest-format.md") if len(row) == 3
    }
    assert {name: needed.get(name) for name in KNOWN} == {
        name: "MUST" if name in REQUIRED else "MAY" for name in KNOWN
    }


def test_the_keys_and_defaults_of_a_protocol_are_documented() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in table_rows("manifest-format.md")}
    written = {
        "name": "the file's name",
        "snippet_starts": "[0, 10, ..., 80, 86]",
        "label_ranges": "none",
        "score_range": "range of the training labels",
        "epsilon": "largest training label",
        "score_range_without_difficulty": "from the training scores",
        "exemplar_key": "[]",
        "fold_columns": "[]",
        "per_category": "false",
    }
    for field in dataclasses.fields(Protocol):
        default = field.default
        plain = f'"{default}"' if isinstance(default, str) else str(default)
        assert told[field.name] == written.get(field.name, plain), field.name


def test_the_findings_of_a_check_are_documented() -> None:
    told = {
        row[0].strip("`"): (row[1], row[2])
        for row in table_rows("manifest-format.md")[1:]
        if len(row) == 3
    }
    assert {code: told[code] for code in KINDS} == KINDS


def test_every_annotation_file_and_importer_is_documented() -> None:
    text = (DOCS / "datasets.md").read_text(encoding="utf-8")
    names = [*mtl_aqa.ANNOTATIONS, finediving.COARSE, finediving.FINE, finediving.FINE_LISTS]
    names += [f"meta_file_{jigsaws.TASKS[0]}.txt", "split_4_train_list.mat", "splits.pkl"]
    assert [name for name in names if name not in text] == []
    imported = set(re.findall(r"aqa manifest import (\w+)", text))
    assert imported == {"mtl_aqa", "aqa7", "jigsaws", "finediving", "csv"}

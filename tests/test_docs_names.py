"""Files, functions and tests that docs, README and benchmarks name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.places import ROOT

LIBRARY = ROOT / "aqa_pipeline"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
#: What a dotted name of the library begins with.
FIRST = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or path.is_dir()}
SUFFIXES = (".py", ".csv", ".toml", ".json", ".safetensors", ".h5")
TESTS = {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def exists(dotted: str) -> bool:
    """Whether ``room.module.Class.method``, or the beginning of it, is in the source."""
    place, names = LIBRARY, dotted.split(".")
    while names and (place / names[0]).is_dir():
        place /= names.pop(0)
    if not names:
        return True
    module = place / f"{names.pop(0)}.py"
    if not module.exists():
        return False
    body: list[ast.stmt] = ast.parse(module.read_text(encoding="utf-8")).body
    for name in names:
        found = [node for node in body if name in defined(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def defined(node: ast.stmt) -> set[str]:
    """Names that a statement gives to a module or class."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [part for target in targets if target for part in ast.walk(target)]
    return {part.id for part in names if isinstance(part, ast.Name)}


def missing(text: str) -> list[str]:
    """Names in a page that nothing has."""
    absent = []
    for span in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(r"(?:aqa_pipeline|benchmarks|cli|docs|tests)/[\w/.-]*\w", span):
            if not (ROOT / path).exists():
                absent.append(path)
        name = span.removeprefix("aqa_pipeline.").removesuffix("()")
        is_dotted = re.fullmatch(r"[a-z]\w*(\.\w+)+", name) and not name.endswith(SUFFIXES)
        if is_dotted and name.split(".")[0] in FIRST and not exists(name):
            absent.append(span)
        if re.fullmatch(r"(tests/\S*/)?test_\w+\.py", span) and Path(span).name not in TESTS:
            absent.append(span)
    return absent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_what_a_benchmark_imports_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aqa_pipeline."):
            module = (node.module or "").removeprefix("aqa_pipeline.")
            assert [a.name for a in node.names if not exists(f"{module}.{a.name}")] == []


def test_every_function_of_the_paper_map_is_named_in_full() -> None:
    text = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8")
    dotted = re.findall(r"`([a-z]\w*(?:\.\w+)+)`", text)
    short = {name for name in dotted if name.split(".")[0] not in FIRST}
    assert {name for name in short if not name.endswith(SUFFIXES)} == set()


def test_a_name_that_is_gone_is_found() -> None:
    wrong = ("core.groups.eq6_edges", "core.nowhere.Groups", "aqa_pipeline/vote.py", "test_vote.py")
    right = ("core.groups.eq5_edges", "core.groups.Groups.delta", "aqa_pipeline/core/groups.py")
    assert missing(" ".join(f"`{name}`" for name in [*wrong, *right])) == list(wrong)

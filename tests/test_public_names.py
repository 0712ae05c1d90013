"""The public names of the package and of its rooms: which they are, and what they promise."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import aqa_pipeline
from tests.support.places import ROOT
from tests.test_architecture import LIBRARY, ROOMS

PUBLIC = [
    *(
        "AqaError",
        "CacheError",
        "ClipError",
        "DataError",
        "MissingFactError",
        "SetupError",
        "UsageError",
    ),
    *(
        "CachedFeatures",
        "ClipMetadata",
        "Explainer",
        "FeatureCache",
        "FeatureSet",
        "FitConfig",
        "HeadConfig",
        "Manifest",
        "Protocol",
        "Run",
        "ScoredClip",
        "Scorer",
    ),
    *(
        "__version__",
        "evaluate_run",
        "extract_dataset",
        "fisher_mean",
        "fit_dataset",
        "load_split",
        "open_cache",
        "read_manifest",
        "read_run",
        "relative_l2",
        "spearman",
    ),
]
PACKAGES = ["aqa_pipeline", *(f"aqa_pipeline.{room}" for room in ROOMS)]
#: Public functions, and the ways to make the public classes.
CALLABLES = [
    *(name for name in PUBLIC if name[0].islower()),
    *("Explainer.explain", "Explainer.load", "FeatureCache.open", "Scorer.load", "Scorer.score"),
]
#: Functions that raise nothing of their own.
NEVER_FAILS = {"fisher_mean"}


def resolve(dotted: str) -> Any:
    value: Any = aqa_pipeline
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def package_source(package: str) -> ast.Module:
    path = ROOT / package.replace(".", "/") / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_public_names_are_these() -> None:
    assert vars(aqa_pipeline)["__all__"] == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(aqa_pipeline))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_resolves_to_what_type_checkers_see(package: str) -> None:
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(package_source(package))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    face: ModuleType = importlib.import_module(package)
    assert sorted(seen) == face.__all__
    assert set(face.__all__) <= set(dir(face))
    for name, home in seen.items():
        module, _, original = home.rpartition(".")
        assert getattr(face, name) is getattr(importlib.import_module(module), original)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'aqa_pipeline' has no attribute 'Score'"):
        aqa_pipeline.Score  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Score'"):
        exec("from aqa_pipeline import Score")


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    code = (
        f"import sys, {package}\n"
        f"assert sorted(dir({package})) and {package}.__all__\n"
        "heavy = {'torch', 'numpy', 'pandas', 'av', 'h5py', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_manifest_and_its_cache_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "from aqa_pipeline import extract_dataset, open_cache, read_manifest, spearman\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_holds_its_names_and_nothing_else(package: str) -> None:
    for node in package_source(package).body:
        assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.If), ast.dump(node)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_every_name_has_a_docstring_of_its_own(name: str) -> None:
    value = resolve(name)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # as dataclasses make one


@pytest.mark.parametrize("name", CALLABLES)
def test_every_way_in_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = resolve(name)
    text = inspect.getdoc(function) or ""
    for parameter in set(inspect.signature(function).parameters) - {"self"}:
        assert parameter in text.split("Returns")[0], f"{name}: {parameter}"
    assert "Returns\n-------" in text
    assert "Raises\n------" in text or name in NEVER_FAILS


@pytest.mark.parametrize("name", CALLABLES)
def test_paths_may_be_strings(name: str) -> None:
    for parameter in inspect.signature(resolve(name)).parameters.values():
        kind = str(parameter.annotation)
        assert "Path" not in kind or "str" in kind, f"{name}: {parameter}"


def test_the_page_names_every_public_function_and_class() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    errors = {"CacheError", "ClipError", "DataError", "SetupError", "UsageError"}
    told = errors | {"__version__", "fisher_mean"}
    unseen = {"FeatureSet", "Manifest", "Protocol", "Run", "ScoredClip"}  # made by what is named
    absent = [name for name in PUBLIC if name not in page and name not in told | unseen]
    assert absent == []


def test_the_library_is_typed() -> None:
    assert (Path(LIBRARY) / "py.typed").exists()

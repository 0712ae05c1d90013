"""Rules that a machine can check: rooms import those above them, heavy libraries have few doors."""

from __future__ import annotations

import ast
import configparser
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

LIBRARY = ROOT / "aqa_pipeline"

#: A room may import those above it in the table of docs/architecture.md (here: to its left),
#: itself, and the ground floor.
ROOMS = (
    *("core", "media", "heads", "backbone", "datasets", "cache", "extraction", "runs"),
    *("training", "scoring", "finetune", "report", "serve"),
)
RANK = {room: rank for rank, room in enumerate(ROOMS, start=1)}
#: The ground floor imports itself only.
GROUND = {
    *("_version", "atomic", "config", "dask_client", "device", "errors", "hdf5", "lazy"),
    *("option", "pickles", "project", "tables"),
}
#: Rooms that do not know each other, though their ranks would let them.
STRANGERS = {("training", "scoring"), ("scoring", "finetune")}
#: numpy and scipy alone.
NUMPY_ONLY = ("core.", "media.snippets", "media.views")
#: Library -> modules (or rooms, with a dot at the end) that may import it.
DOORS = {
    "av": ("media.", "datasets.demo.dataset", "extraction.doctor"),
    "captum": ("scoring.grad_cam",),
    "click": (),
    "h5py": ("hdf5", "cache.segment_file", "cache.foreign_files"),
    "optuna": ("training.sweep.search",),
    "sklearn": ("training.svr",),
    "starlette": ("serve.app",),
    "uvicorn": ("serve.server",),
}
FILES = sorted(LIBRARY.rglob("*.py"))


def module_name(path: Path) -> str:
    """Name below ``aqa_pipeline``; of a package, ``package.__init__``."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rank(module: str) -> int:
    """0 on the ground floor; the roof, which knows all rooms, is above them."""
    room = module.split(".")[0]
    if module == "__init__":
        return len(RANK) + 1
    return 0 if room in GROUND else RANK[room]


def broken_rules(module: str, imported: set[str]) -> list[str]:
    """What is wrong with the imports of a module, in words."""
    room, faults = module.split(".")[0], []
    if module != "__init__" and room not in GROUND and room not in RANK:
        return [f"{module} lies in no room"]
    tops = {name.split(".")[0] for name in imported}
    for name in sorted(imported):
        if name.startswith(("aqa_cli", "cli.")):
            faults.append(f"{module} imports the command line")
        if not name.startswith("aqa_pipeline."):
            continue
        target = name.removeprefix("aqa_pipeline.")
        other = target.split(".")[0]
        if other not in GROUND and other not in RANK:  # a public name of the package itself
            faults.append(f"{module} imports {name} from the roof")
        elif other in RANK and not is_module(target):
            faults.append(f"{module} imports {name} from the face of its room")
        elif rank(target) > rank(module):
            faults.append(f"{module} imports {target}, below it")
        elif (other, room) in STRANGERS or (room, other) in STRANGERS:
            faults.append(f"{module} imports {target}: {room} and {other} do not know each other")
    for library, allowed in DOORS.items():
        if library in tops and not is_among(module, allowed):
            door = ", ".join(allowed) or "the command line"
            faults.append(f"{module} imports {library}, whose door is {door}")
    if is_among(module, NUMPY_ONLY):
        known = {*sys.stdlib_module_names, "numpy", "scipy", "aqa_pipeline"}
        faults += [f"{module} imports {top}: numpy and scipy only" for top in sorted(tops - known)]
    return faults


def is_module(target: str) -> bool:
    """Whether a name below the library begins with a module, not with a face's public name."""
    place = LIBRARY.joinpath(*target.split(".")[:2])
    return place.is_dir() or place.with_suffix(".py").exists()


def is_among(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == one or (one.endswith(".") and module.startswith(one)) for one in allowed)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_rooms(path: Path) -> None:
    assert broken_rules(module_name(path), imports(path)) == []


@pytest.mark.parametrize(
    ("module", "imported", "fault"),
    [
        ("stray", set(), "stray lies in no room"),
        ("attic.box", set(), "attic.box lies in no room"),
        ("core.pairs", {"aqa_pipeline.heads.gart.Gart"}, "below it"),
        ("errors", {"aqa_pipeline.core.pairs.draw"}, "below it"),
        ("cache.load", {"h5py"}, "whose door is"),
        ("core.groups", {"torch"}, "numpy and scipy only"),
        ("scoring.scorer", {"aqa_pipeline.training.fit.fit_part"}, "do not know each other"),
        ("finetune.run", {"aqa_pipeline.scoring.scorer.Scorer"}, "do not know each other"),
        ("training.fit", {"aqa_pipeline.Scorer"}, "from the roof"),
        ("training.fit", {"aqa_pipeline.runs.Run"}, "from the face of its room"),
        ("report.page", {"aqa_cli.main"}, "the command line"),
    ],
)
def test_each_rule_can_be_broken(module: str, imported: set[str], fault: str) -> None:
    (found,) = broken_rules(module, imported)
    assert fault in found


def test_every_folder_with_an_init_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = {line for line in config["options"]["packages"].split("\n") if line}
    present = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY.rglob("__init__.py")
    }
    assert listed == {*present, "aqa_cli"}


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in [*FILES, *(ROOT / "cli").glob("*.py")]
    }
    assert {path.name: n for path, n in lengths.items() if n > 400} == {}


def test_the_cli_imports_its_own_package_relatively() -> None:
    for path in (ROOT / "cli").glob("*.py"):
        assert not {n for n in imports(path) if n.split(".")[0] in ("cli", "aqa_cli")}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_help_does_not_import_torch_and_is_quick() -> None:
    code = (
        "import sys\n"
        "from aqa_cli.main import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'av', 'h5py', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    # Processor time: other programs run on this machine too.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5

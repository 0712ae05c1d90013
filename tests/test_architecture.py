"""The house rules that a machine can check: imports go down, heavy things have one door."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "aqa_pipeline"

#: Lower layers may not import higher ones; modules of L0-L2 may import their own layer.
LAYERS = {
    level: set(names.split())
    for level, names in {
        0: """
            config errors
        """,
        1: """
            conformal cross_selection division featureset group_draw groups judges labels metrics
            novelty pair_edges pairs shards snippets views
        """,
        2: """
            aggregations atomic bank batched_encoder calibration claims clip_frames clip_media
            device device_memory exchange_files failures feature_cache file_memo files
            fingerprint frame_folder frame_slots gart gpu_network hdf5 heads heat_map i3d
            i3d_fast i3d_gpu leaf_paths leaf_search manifest page_lock pair_roots pickles
            precision project protocol run_folder segment segment_writer shown_clip source
            stacked_linear store svr table triton_kernels trunks video video_checks
            video_frames video_index vote weight_files weight_layouts weights winograd
        """,
    }.items()
}
NUMPY_ONLY = LAYERS[1]
#: Library -> the modules that may import it.
DOORS = {
    "h5py": {"bank", "exchange_files", "hdf5", "store"},
    "av": {"clip_media", "decode_check", "video", "video_frames", "video_index", "datasets.demo"},
    "captum": {"grad_cam"},
    "click": set(),
    "pebble": {"decode_pool"},
    "sklearn": {"svr_training"},
    "starlette": {"serve.app"},
    "uvicorn": {"serve.server"},
}


def module_name(path: Path) -> str:
    relative = path.relative_to(LIBRARY).with_suffix("")
    return ".".join(relative.parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> int:
    for layer, modules in LAYERS.items():
        if module in modules:
            return layer
    return 3


LIBRARY_FILES = sorted(LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=module_name)
def test_imports_only_go_down(path: Path) -> None:
    own = layer_of(module_name(path))
    for name in imports(path):
        assert not name.startswith(("aqa_cli", "cli")), f"{path.name} imports the command line"
        if not name.startswith("aqa_pipeline."):
            continue
        target = name.removeprefix("aqa_pipeline.")
        if (LIBRARY / (target.replace(".", "/") + ".py")).exists():
            assert layer_of(target) <= own, f"{path.name} (L{own}) imports {target}"


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=module_name)
def test_heavy_libraries_have_one_door(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    for library, allowed in DOORS.items():
        if library in tops:
            assert module_name(path) in allowed, f"{path.name} imports {library}"
    if module_name(path) in NUMPY_ONLY:
        assert tops <= {*sys.stdlib_module_names, "numpy", "scipy", "aqa_pipeline"}


def test_every_module_is_in_the_layer_list_or_a_stage() -> None:
    listed = set().union(*LAYERS.values())
    present = {module_name(path) for path in LIBRARY_FILES}
    assert listed <= present, f"listed but gone: {sorted(listed - present)}"


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

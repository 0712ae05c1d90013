"""Count of the functions that a manifest passes on its way through a command.

    python benchmarks/ways.py PROJECT NAME -- fit-head --dataset NAME --epochs 1
    python benchmarks/ways.py PROJECT NAME --tree OTHER/CHECKOUT --list -- extract --dataset NAME

Counted are the distinct functions of aqa_pipeline and cli, nested ones included, that are given or
give back the manifest or one of its clips: an argument or a result in which the manifest, its
path or a clip's id is found at most three levels deep. `aqa extract` is followed into its
decoding processes, and until a function is given the first decoded frame; others to their end.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import FrameType

import click

LEVELS = 3
FIRST_FRAME = "first decoded frame"
#: What each process of the command runs before anything else.
START = "import importlib.util as u; s = u.spec_from_file_location('ways', {!r}); \
m = u.module_from_spec(s); s.loader.exec_module(m); m.watch()\n"


def parts(value: object) -> Iterator[object]:
    """What a value holds: of containers the first three, of the program's objects every field."""
    if isinstance(value, dict):
        yield from [*value][:3]
        yield from [*value.values()][:3]
    elif isinstance(value, list | tuple | set | frozenset):
        yield from [*value][:3]
    elif type(value).__module__.startswith(("aqa_pipeline", "aqa_cli")):
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(value, n, None) for n in getattr(type(value), "__slots__", ()))


def watch() -> None:
    """Write down every function of the program once that a clip passes."""
    manifest = os.environ["WAYS_MANIFEST"]
    roots = tuple(os.environ["WAYS_ROOTS"].split(":"))
    with open(manifest, encoding="utf-8") as file:
        ids = {row["clip_id"] for row in csv.DictReader(file)}
    out = os.open(os.environ["WAYS_OUT"], os.O_WRONLY | os.O_APPEND)
    known: set[str] = set()

    def found(value: object, levels: int = LEVELS) -> bool:
        kind = type(value).__name__
        if kind == "Manifest":
            return True
        if isinstance(value, str | os.PathLike | bytes):
            text = value.decode("latin1") if isinstance(value, bytes) else str(value)
            return text in ids or text.endswith(os.path.basename(manifest))
        if kind == "DataFrame":
            return "clip_id" in value.columns  # type: ignore[attr-defined]
        if kind == "Series":
            return any(str(one) in ids for one in value.iloc[:1])  # type: ignore[attr-defined]
        return levels > 0 and any(found(part, levels - 1) for part in parts(value))

    def note(line: str) -> None:
        if line not in known:
            known.add(line)
            os.write(out, f"{line}\n".encode())

    def called(frame: FrameType, event: str, result: object) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(roots):
            return
        name = f"{code.co_filename} {code.co_qualname}"
        if code.co_name == "<module>" or name in known:
            return
        count = code.co_argcount + code.co_kwonlyargcount
        count += bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
        given = [frame.f_locals.get(n) for n in code.co_varnames[:count]]
        if any(type(value).__name__ == "VideoFrame" for value in given):
            note(FIRST_FRAME)
        if found(result) if event == "return" else any(map(found, given)):
            note(name)

    threading.setprofile(called)
    sys.setprofile(called)


@click.command()
@click.argument("project", type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option(
    "--tree", type=click.Path(exists=True, path_type=Path), help="With a .venv of its own."
)
@click.option("--list", "listed", is_flag=True, help="Name the functions.")
@click.argument("command", nargs=-1, required=True)
def main(
    project: Path, name: str, tree: Path | None, listed: bool, command: tuple[str, ...]
) -> None:
    """Count the functions that the clips of manifests/NAME.csv pass in a COMMAND of aqa."""
    tree = (tree or Path(__file__).parents[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        seen = Path(scratch, "seen.txt")
        seen.touch()
        Path(scratch, "sitecustomize.py").write_text(START.format(__file__), encoding="utf-8")
        given = {
            "PYTHONPATH": scratch,
            "WAYS_OUT": str(seen),
            "WAYS_ROOTS": f"{tree / 'aqa_pipeline'}:{tree / 'cli'}",
            "WAYS_MANIFEST": str(project.resolve() / "manifests" / f"{name}.csv"),
        }
        aqa = tree / ".venv" / "bin" / "aqa"
        subprocess.run([aqa, *command], cwd=project, check=True, env={**os.environ, **given})
        lines = seen.read_text(encoding="utf-8").splitlines()
    if FIRST_FRAME in lines:
        lines = lines[: lines.index(FIRST_FRAME)]
    functions = dict.fromkeys(line.removeprefix(f"{tree}{os.sep}") for line in lines)
    if listed:
        print("\n".join(functions))
    print(f"{len(functions)} functions")


if __name__ == "__main__":
    main()

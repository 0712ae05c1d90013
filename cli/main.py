"""The ``aqa`` command: its subcommands, and what every one of them shares.

Library modules are imported inside the commands, so that ``aqa --help`` starts without
torch, numpy or pandas.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from aqa_pipeline import __version__
from aqa_pipeline.errors import AqaError
from aqa_pipeline.project import SETTINGS_FILE, Project

from .commands import add_all
from .console import log_to_stderr, say_error

INTERRUPTED, TERMINATED = 130, 143


class AqaGroup(click.Group):
    """Turns every error meant for the user into one line and its exit code."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        try:
            result = super().main(args, standalone_mode=False, **extra)
        except click.Abort:  # click's name for Ctrl-C
            say_error("interrupted; the same command goes on where it stopped")
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except AqaError as error:
            say_error(str(error))
            sys.exit(error.exit_code)
        except _Terminated:
            say_error("terminated; the same command goes on where it stopped")
            sys.exit(TERMINATED)
        except BrokenPipeError:  # `aqa ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        # With standalone_mode off, click hands back the code of ctx.exit().
        sys.exit(result if isinstance(result, int) else 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as they were added, not by the alphabet

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        project = Project.find()
        _check_settings(self, project)
        extra.setdefault("default_map", project.settings)
        extra.setdefault("obj", project)
        return super().make_context(info_name, args, parent, **extra)


def _check_settings(group: click.Group, project: Project, prefix: str = "") -> None:
    """A misspelt option in aqa.toml must not be silently without effect."""
    where = project.root / SETTINGS_FILE
    for name, table in project.settings.items():
        command = group.commands.get(name)
        if command is None:
            raise AqaSettingsError(
                f"{where}: [{prefix}{name}] is not a command; found in `aqa --help`: "
                f"{', '.join(group.commands)}"
            )
        if not isinstance(table, dict):
            raise AqaSettingsError(f"{where}: {prefix}{name} must be a table: [{prefix}{name}]")
        if isinstance(command, click.Group):
            nested = Project(root=project.root, settings=table)
            _check_settings(command, nested, prefix=f"{prefix}{name}.")
            continue
        known = [param.name for param in command.params if isinstance(param, click.Option)]
        for key in table:
            if key not in known:
                raise AqaSettingsError(
                    f"{where}: [{prefix}{name}] has no option {key!r}; it has "
                    f"{', '.join(sorted(str(k) for k in known))}"
                )


class AqaSettingsError(AqaError):
    """aqa.toml names a command or an option that does not exist."""

    exit_code = 2


class _Terminated(BaseException):
    """SIGTERM as an exception: it unwinds, so that open writers flush what is done."""


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


@click.group(
    cls=AqaGroup,
    context_settings={
        "auto_envvar_prefix": "AQA",
        "show_default": True,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="aqa")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
def cli(verbose: int) -> None:
    """Score how well an action was performed: a dive, a vault, a suture.

    Two stages: `aqa extract` turns every clip into features once, `aqa fit-head` learns
    to score them. Begin with `aqa demo`.

    Every option can also stand in aqa.toml ([extract] workers = 2) or in the environment
    (AQA_EXTRACT_WORKERS=2). Paths cache/, manifests/ and runs/ are those of the folder
    with the nearest aqa.toml, else of the current folder.
    """
    log_to_stderr(verbose)


add_all(cli)


def main() -> None:
    """Entry point of the installed ``aqa`` script."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        cli()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            _exit_interrupted()
        raise


def _exit_interrupted() -> NoReturn:
    """Leave with 130 for certain.

    An interrupt that went through an exec() (importing a dataclass is one) makes Python end
    by the signal itself, whatever was caught and whatever code was asked for.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)

"""The ``aqa`` command: its subcommands, and what every one of them shares.

Library modules are imported inside the commands, so that ``aqa --help`` starts without
torch, numpy or pandas.
"""

from __future__ import annotations

import atexit
import dataclasses
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

from .cache import cache
from .compare import compare
from .console import log_to_stderr, say_error
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .explain import explain
from .extract import extract
from .finetune import finetune
from .fit_head import fit_head
from .manifest import manifest
from .options import option_for
from .predict import predict
from .report import report
from .reproduce import reproduce
from .serve import serve
from .settings import check_environment, default_map, name_variables
from .sweep import sweep
from .weights import weights

INTERRUPTED, TERMINATED = 130, 143


class AqaGroup(click.Group):
    """Turns every error meant for the user into one line and its exit code."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        try:
            result = super().main(args, standalone_mode=False, **extra)
        except click.Abort:  # click's name for Ctrl-C
            say_error("interrupted; the same command resumes where it stopped")
            sys.exit(INTERRUPTED)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except AqaError as error:
            say_error(str(error))
            sys.exit(error.exit_code)
        except _Terminated:
            say_error("terminated; the same command resumes where it stopped")
            sys.exit(TERMINATED)
        except BrokenPipeError:  # `aqa ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        # With standalone_mode off, click hands back the code of ctx.exit().
        sys.exit(result if isinstance(result, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AqaError as error:
            # The library says what it misses; which option gives it is known here.
            command = self.commands.get(ctx.invoked_subcommand or "", self)
            if option := option_for(error, command):
                error.args = (f"{error}; type {option}",)
            raise

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
        check_environment(self, os.environ)
        file = project.root / SETTINGS_FILE
        extra.setdefault("default_map", default_map(self, project.settings, file))
        extra.setdefault("obj", project)
        return super().make_context(info_name, args, parent, **extra)


class _Terminated(BaseException):
    """SIGTERM as an exception: it unwinds, so that open writers flush what is done."""


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


@click.group(
    cls=AqaGroup,
    context_settings={
        "show_default": True,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="aqa")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
@click.option("--dataset", hidden=True, help="The data set that commands mean by default.")
@click.pass_context
def cli(ctx: click.Context, verbose: int, dataset: str | None) -> None:
    """Score how well an action was performed: a dive, a vault, a suture.

    Two stages: `aqa extract` turns every clip into features once, `aqa fit-head` learns
    to score them. Begin with `aqa demo`.

    Every option can also stand in aqa.toml ([extract] workers = 2) or in the environment
    (AQA_EXTRACT_WORKERS=2), and dataset = "mtl_aqa" at its top (or AQA_DATASET) is the data
    set of every command that names none. Paths cache/, manifests/ and runs/ are those of the
    folder with the nearest aqa.toml, else of the current folder.
    """
    log_to_stderr(verbose)
    ctx.obj = dataclasses.replace(ctx.obj, dataset=dataset)


#: In the order in which one meets them; the sentence is what `aqa --help` has room for.
COMMANDS: tuple[tuple[click.Command, str], ...] = (
    (demo, "Run everything once on a diving competition rendered here."),
    (doctor, "Check this machine; say what to type."),
    (weights, "Get, convert and look at I3D weights."),
    (manifest, "Make, check, show and split manifests."),
    (extract, "Turn every clip into features, once."),
    (cache, "Look after feature caches; exchange features."),
    (fit_head, "Train heads on cached features; test them once."),
    (sweep, "Try many heads; keep the best."),
    (finetune, "Train backbone and head together."),
    (evaluate, "Score the test split again."),
    (report, "Write one page on a run, or several side by side."),
    (reproduce, "Make a table or figure of the paper."),
    (predict, "Score new videos."),
    (compare, "Say which of two clips is better, and how surely."),
    (explain, "Say where a clip's score was won or lost."),
    (serve, "Open a local page to drop clips on."),
)
for _command, _sentence in COMMANDS:
    _command.short_help = _sentence
    cli.add_command(_command)
name_variables(cli)


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

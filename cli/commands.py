"""The list of subcommands."""

from __future__ import annotations

import click

from .cache import cache
from .compare import compare
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .explain import explain
from .extract import extract
from .finetune import finetune
from .fit_head import fit_head
from .manifest import manifest
from .predict import predict
from .report import report
from .reproduce import reproduce
from .serve import serve
from .sweep import sweep
from .weights import weights


def add_all(group: click.Group) -> None:
    """Add every command to the group."""
    for command in (
        demo,
        weights,
        manifest,
        extract,
        cache,
        fit_head,
        sweep,
        finetune,
        evaluate,
        predict,
        compare,
        explain,
        serve,
        report,
        reproduce,
        doctor,
    ):
        group.add_command(command)

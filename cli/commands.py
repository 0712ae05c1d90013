"""The list of subcommands."""

from __future__ import annotations

import click

from .cache import cache
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .extract import extract
from .fit_head import fit_head
from .manifest import manifest
from .report import report
from .reproduce import reproduce
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
        evaluate,
        report,
        reproduce,
        doctor,
    ):
        group.add_command(command)

"""``aqa doctor``: what this machine has of what the program needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from aqa_pipeline.project import Project

from .console import print_json, say
from .options import json_option, pass_project, weights_option

NOT_READY = 6


@click.command()
@weights_option
@json_option
@pass_project
def doctor(project: Project, weights: Path | None, as_json: bool) -> None:
    """Check this machine: packages, device, weights, decoder, disk; say what to type.

    Nothing it writes stays. Exit code 6 when something needed is missing.
    """
    from aqa_pipeline.extraction.doctor import diagnose

    checks = list(diagnose(cache_root=project.cache, weights=weights))
    lacking = [check.name for check in checks if check.status == "missing"]
    if as_json:
        print_json({"ready": not lacking, "checks": [dataclasses.asdict(c) for c in checks]})
    else:
        for check in checks:
            click.echo(f"{check.status:<8} {check.name:<16} {check.found}")
            if check.advice:
                click.echo(f"{'':<25} -> {check.advice}")
    if lacking:
        say(f"missing: {', '.join(lacking)}")
        raise click.exceptions.Exit(NOT_READY)

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


def add_all(group: click.Group) -> None:
    """Add every command to the group."""
    for command, sentence in COMMANDS:
        command.short_help = sentence
        group.add_command(command)

"""Options of the commands that score new videos: which frames, and what must be known of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from aqa_pipeline.config import ScoreConfig

Command = TypeVar("Command", bound=Callable[..., Any])

coverage_option = click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=ScoreConfig.coverage,
    help="How often the interval is meant to hold the true score.",
)
timeout_option = click.option(
    "--clip-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=ScoreConfig.decode_seconds,
    help="Seconds after which decoding a video is given up.",
)


def key_values(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, str]:
    """``--key COLUMN=VALUE``, repeatable, as a dict."""
    pairs = {}
    for text in value:
        name, sign, cell = text.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{text!r} is not COLUMN=VALUE, such as action_type=107B")
        pairs[name] = cell
    return pairs


key_option = click.option(
    "--key",
    "columns",
    metavar="COLUMN=VALUE",
    multiple=True,
    callback=key_values,
    help="Another column that the run compares by, such as action_type=107B; repeatable.",
)


def fact_options(command: Command) -> Command:
    """Add ``--start --end --category --difficulty --key``; they arrive as the dict ``facts``."""

    @click.option(
        "--start", "start_frame", type=click.IntRange(min=0), help="First frame, counted from 0."
    )
    @click.option(
        "--end",
        "end_frame",
        type=click.IntRange(min=1),
        help="Frame behind the clip; default: the end of the video.",
    )
    @click.option("--category", default="", help="Where the run has heads for several.")
    @click.option(
        "--difficulty",
        type=click.FloatRange(min=0, min_open=True),
        help="Where the run scores by difficulty.",
    )
    @key_option
    @functools.wraps(command)
    def with_facts(
        *args: Any,
        start_frame: int | None,
        end_frame: int | None,
        category: str,
        difficulty: float | None,
        columns: dict[str, str],
        **options: Any,
    ) -> Any:
        facts = {
            "start_frame": start_frame,
            "end_frame": end_frame,
            "category": category,
            "difficulty": difficulty,
            "columns": columns,
        }
        return command(*args, facts=facts, **options)

    return with_facts  # type: ignore[return-value]

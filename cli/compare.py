"""``aqa compare``: which of two performances is better, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

from .console import number, print_json, say_warning
from .options import (
    coverage_option,
    device_option,
    json_option,
    key_option,
    pass_project,
    timeout_option,
    weights_option,
)
from .show import interval


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--start", type=click.IntRange(min=0), multiple=True, help="First frame of a clip.")
@click.option("--end", type=click.IntRange(min=1), multiple=True, help="Frame after a clip.")
@click.option("--category", multiple=True, help="Category; needed if the run has a head for each.")
@click.option(
    "--difficulty",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Difficulty; needed if the run scores by it.",
)
@key_option
@coverage_option
@timeout_option
@weights_option
@device_option
@json_option
@pass_project
def compare(
    project: Project,
    run: Path,
    a: str,
    b: str,
    start: tuple[int, ...],
    end: tuple[int, ...],
    category: tuple[str, ...],
    difficulty: tuple[float, ...],
    columns: dict[str, str],
    coverage: float,
    clip_timeout: float,
    weights: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Say which of two clips is better, and how sure that is, with the run folder RUN.

    A and B are videos, or clip ids of the data set the run was fitted on. --start, --end,
    --category and --difficulty are given once for both, or twice: for A, then for B.
    """
    from aqa_pipeline.scoring.assessor import ClipMetadata
    from aqa_pipeline.scoring.compare import compare_clips, find_clip
    from aqa_pipeline.scoring.scorer import Scorer

    with Scorer.load(
        project.run_path(run),
        weights=weights,
        device=device,
        coverage=coverage,
        decode_seconds=clip_timeout,
    ) as scorer:
        clips = [
            find_clip(
                scorer,
                name,
                ClipMetadata(
                    start_frame=_one("--start", start, i),
                    end_frame=_one("--end", end, i),
                    category=_one("--category", category, i) or "",
                    difficulty=_one("--difficulty", difficulty, i),
                    columns=columns,
                ),
                project=project,
            )
            for i, name in enumerate((a, b))
        ]
        result = compare_clips(scorer, clips[0], clips[1])
    if as_json:
        print_json(
            {"run": project.shown(project.run_path(run)), "names": [a, b], **result.as_dict()}
        )
        return
    for letter, clip, scored in zip("AB", clips, (result.a, result.b), strict=True):
        known = "" if clip.known_score is None else f"   judges gave {clip.known_score:g}"
        click.echo(
            f"{letter}  {number(scored.score, 2)}   {100 * coverage:g} % interval "
            f"{interval(scored)}{known}   {clip.name}"
        )
    click.echo(_sentence(result))
    if result.side_by_side is not None:
        better = "A" if result.side_by_side >= 0 else "B"
        click.echo(
            f"side by side, the heads put {better} ahead by "
            f"{number(abs(result.side_by_side), 2)} points"
        )
    for letter, scored in zip("AB", (result.a, result.b), strict=True):
        for warning in scored.warnings:
            say_warning(f"{letter}: {warning}")


def _one(option: str, values: tuple[Any, ...], i: int) -> Any:
    if len(values) > 2:
        raise UsageError(f"{option} is given {len(values)} times; once for both clips, or twice")
    return None if not values else values[min(i, len(values) - 1)]


def _sentence(result: Any) -> str:
    better, sign = ("A", 1) if result.difference >= 0 else ("B", -1)
    text = f"{better} is better by {number(abs(result.difference), 2)} points"
    if result.interval is not None:
        low, high = sorted(sign * edge for edge in result.interval)
        text += f" ({100 * result.coverage:g} % interval {low:.2f} .. {high:.2f})"
    if result.probability is None:
        return text + ", how sure is not known"
    sure = result.probability if sign > 0 else 1 - result.probability
    return text + f", with a confidence of {100 * sure:.0f} %"

"""``aqa predict``: the score of a video that nobody has seen before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from aqa_pipeline.config import ScoreConfig
from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

from .console import number, print_json, print_table, progress, say, say_error, say_warning
from .fields import config_option
from .options import (
    coverage_option,
    device_option,
    fact_options,
    json_option,
    pass_project,
    timeout_option,
    weights_option,
)
from .show import interval, show_slide

_EXEMPLARS_SHOWN = 5  #: of those with the lowest, and of those with the highest vote


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument(
    "videos", metavar="VIDEO...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@fact_options
@coverage_option
@click.option("--slide", is_flag=True, help="Score every window of one long video.")
@config_option(ScoreConfig(), "stride")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="With --slide: draw the score over time to this .png, .svg or .pdf.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Also write one row per clip (with --slide: per window) to this file.",
)
@timeout_option
@weights_option
@device_option
@json_option
@click.pass_context
@pass_project
def predict(
    project: Project,
    ctx: click.Context,
    run: Path,
    videos: tuple[Path, ...],
    facts: dict[str, Any],
    coverage: float,
    slide: bool,
    stride: int,
    plot: Path | None,
    csv_file: Path | None,
    clip_timeout: float,
    weights: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Score each VIDEO with the run folder RUN (a path, or a name in runs/).

    A VIDEO is a file, a folder of numbered pictures, a folder of videos, or a .csv with a
    column video and, where needed, start_frame, end_frame, category, difficulty. The clip
    ends at --end, or where the video ends.

    The score comes with an interval that holds the true one as often as --coverage says, with
    the known performances it was compared with, and with warnings: a video unlike the training
    clips, or shorter than the window, or of a difficulty that no known performance has.
    """
    from aqa_pipeline.atomic import atomic_path
    from aqa_pipeline.scoring.assessor import ClipMetadata
    from aqa_pipeline.scoring.batch import results_table, score_clips, score_requests
    from aqa_pipeline.scoring.scorer import Scorer

    clips = score_requests(videos, ClipMetadata(**facts))
    folder = project.run_path(run)
    with Scorer.load(
        folder, weights=weights, device=device, coverage=coverage, decode_seconds=clip_timeout
    ) as scorer:
        if slide:
            _slide(scorer, clips, stride=stride, plot=plot, csv_file=csv_file, as_json=as_json)
            return
        if len(clips) == 1:
            outcomes = list(score_clips(scorer, clips))
        else:
            with progress("predict", unit="clips") as shown:
                outcomes = list(score_clips(scorer, clips, progress=shown))
    if csv_file is not None:
        with atomic_path(csv_file) as temporary:
            results_table(outcomes).to_csv(temporary, index=False)
    if as_json:
        print_json(_json(project.shown(folder), outcomes))
    elif len(outcomes) == 1 and outcomes[0].scored is not None:
        _show_one(outcomes[0])
    else:
        _show_many([outcome for outcome in outcomes if outcome.scored is not None])
    failed = [outcome for outcome in outcomes if outcome.scored is None]
    for outcome in failed:
        say_error(outcome.error)
    if failed:
        ctx.exit(3)


def _slide(
    scorer: Any,
    clips: Sequence[Any],
    *,
    stride: int,
    plot: Path | None,
    csv_file: Path | None,
    as_json: bool,
) -> None:
    """Score every window of one video, and say which stand out."""
    from aqa_pipeline.atomic import atomic_path
    from aqa_pipeline.report.slide_plot import check_plot, write_plot

    if len(clips) != 1:
        raise UsageError(f"--slide takes one video, these are {len(clips)}")
    if plot is not None:
        check_plot(plot)
    (clip,) = clips
    with progress("predict", unit="windows") as shown:
        slid = scorer.slide(clip.video, clip.metadata, stride=stride, progress=shown)
    if csv_file is not None:
        with atomic_path(csv_file) as temporary:
            slid.table().to_csv(temporary, index=False)
    if plot is not None:
        write_plot(slid, plot)
    show_slide(slid, clip.video, as_json=as_json)
    for path in (csv_file, plot):
        if path is not None:
            say(f"wrote {path}")


def _json(run: str, outcomes: list[Any]) -> dict[str, Any]:
    return {
        "run": run,
        "clips": [
            {"clip_id": o.clip.name, "known_score": o.clip.known_score, **o.scored.as_dict()}
            for o in outcomes
            if o.scored is not None
        ],
        "failed": [
            {"clip_id": o.clip.name, "video": o.clip.video, "error": o.error}
            for o in outcomes
            if o.scored is None
        ],
    }


def _show_one(outcome: Any) -> None:
    scored = outcome.scored
    click.echo(
        f"{_line(outcome.clip.name)}: frames {scored.start_frame} to {scored.end_frame - 1} of "
        f"{scored.video_frames}"
    )
    known = outcome.clip.known_score
    click.echo(
        f"score {number(scored.score, 2)}"
        + (f"   {100 * scored.coverage:g} % interval {interval(scored)}" if scored.interval else "")
        + (f"   judges gave {known:g}" if known is not None else "")
    )
    votes = sorted(scored.exemplars, key=lambda vote: vote.vote)
    if votes:
        shown = votes
        if len(votes) > 2 * _EXEMPLARS_SHOWN:
            shown = [*votes[:_EXEMPLARS_SHOWN], None, *votes[-_EXEMPLARS_SHOWN:]]
        print_table(
            ["compared with", "its difficulty", "its score", "so this one"],
            [_vote_row(vote, len(votes)) for vote in shown],
        )
    for warning in scored.warnings:
        say_warning(warning)


def _vote_row(vote: Any, count: int) -> list[str]:
    if vote is None:
        return [f"... {count - 2 * _EXEMPLARS_SHOWN} more ...", "", "", ""]
    name = f"{vote.part} {vote.clip_id}".strip()
    difficulty = "-" if math.isnan(vote.difficulty) else f"{vote.difficulty:g}"
    return [_line(name), difficulty, number(vote.score, 2), number(vote.vote, 2)]


def _show_many(outcomes: list[Any]) -> None:
    if not outcomes:
        return
    with_known = any(outcome.clip.known_score is not None for outcome in outcomes)
    rows = []
    for outcome in outcomes:
        scored, known = outcome.scored, outcome.clip.known_score
        row = [_line(outcome.clip.name), number(scored.score, 2), interval(scored)]
        rows.append([*row, number(known, 2)] if with_known else row)
    coverage = f"{100 * outcomes[0].scored.coverage:g} % interval"
    header = ["", "score", coverage]
    print_table([*header, "judges"] if with_known else header, rows)
    for outcome in outcomes:
        for warning in outcome.scored.warnings:
            say_warning(f"{_line(outcome.clip.name)}: {warning}")


def _line(text: str) -> str:
    from aqa_pipeline.media.clip import escape_unprintable

    return escape_unprintable(text)

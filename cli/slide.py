"""``aqa predict --slide``: the score over a long video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from aqa_pipeline.errors import UsageError

from .console import number, print_json, print_table, progress, say, say_warning

_NAMED = 5  #: windows that are named of each kind


def show_slide(
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
    with progress("predict", unit="windows") as advance:
        slid = scorer.slide(
            clip.video,
            stride=stride,
            start_frame=clip.start_frame,
            end_frame=clip.end_frame,
            advance=advance,
            **clip.facts,
        )
    if csv_file is not None:
        with atomic_path(csv_file) as temporary:
            slid.table().to_csv(temporary, index=False)
    if plot is not None:
        write_plot(slid, plot)
    highest, familiar = slid.highest(_NAMED), slid.most_familiar(_NAMED)
    if as_json:
        windows = slid.table().to_dict("records")
        print_json(
            {
                "video": clip.video,
                "video_frames": slid.video_frames,
                "window_frames": slid.window_frames,
                "coverage": slid.coverage,
                "usual_distance": slid.usual_distance,
                "highest": [windows[i] for i in highest],
                "most_like_training": [windows[i] for i in familiar],
                "windows": windows,
            }
        )
    else:
        _show(slid, highest, familiar)
    for path in (csv_file, plot):
        if path is not None:
            say(f"wrote {path}")


def _show(slid: Any, highest: list[int], familiar: list[int]) -> None:
    count = int(slid.is_familiar.sum())
    click.echo(
        f"{len(slid.starts)} windows of {slid.window_frames} frames; {count} look like the "
        "training clips"
    )
    if not count:
        say_warning("no window looks like the training clips: the scores may mean nothing")
    kinds = (("highest score", highest), ("most like training", familiar))
    rows = [_row(slid, i, kind) for kind, chosen in kinds for i in chosen]
    print_table(["", "frames", "seconds", "score", "interval", "distance"], rows)
    click.echo(f"training clips are within {slid.usual_distance:.2f} of another")


def _row(slid: Any, i: int, kind: str) -> list[str]:
    start, score, half = int(slid.starts[i]), float(slid.scores[i]), slid.half_width
    interval = "-" if half == float("inf") else f"{score - half:.2f} .. {score + half:.2f}"
    return [
        kind,
        f"{start} .. {start + slid.window_frames - 1}",
        number(float(slid.seconds[i]), 1),
        number(score, 2),
        interval,
        number(float(slid.distances[i]), 2),
    ]

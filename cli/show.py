"""Tables and sentences of results: a run's metrics, a score's interval, a long video's windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aqa_pipeline.project import Project

from .console import number, print_json, print_table, say_warning

if TYPE_CHECKING:
    from aqa_pipeline.runs.metrics import AverageMetrics, Metrics


def show_metrics(
    project: Project,
    folder: Path,
    measured: Metrics | AverageMetrics,
    *,
    as_json: bool,
    ceiling: dict[str, float] | None = None,
) -> None:
    """Print a run's metrics as JSON or as a table.

    Parameters
    ----------
    project : Project
    folder : Path
        The run folder.
    measured : Metrics or AverageMetrics
    as_json : bool
    ceiling : dict, optional
        Metrics of the best prediction there could be, where it is known (the demo).
    """
    metrics = measured.as_dict()
    if as_json:
        extra = {"ceiling": ceiling} if ceiling else {}
        print_json({"run": project.shown(folder), **metrics, **extra})
    elif "parts" in metrics:
        _show_averages(metrics)
    else:
        _show_run(metrics, ceiling)


def _show_run(metrics: dict[str, Any], ceiling: dict[str, float] | None) -> None:
    rows = [_head_row(f"{metrics['method']}, {_seeds(metrics)}", metrics["heads"])]
    if len(metrics["seeds"]) > 1:
        rows.append(_plain_row(f"its {len(metrics['seeds'])} heads averaged", metrics["ensemble"]))
    if "difficulty_alone" in metrics:
        rows.append(_plain_row("difficulty alone", metrics["difficulty_alone"]))
    if ceiling:
        rows.append(_plain_row("ceiling: score without judges' noise", ceiling))
    print_table(
        ["", "Spearman", "95 % interval", "R-l2 x100", "95 % interval"],
        rows,
        title=f"{metrics['num_test']} test clips, {metrics['num_train']} training clips",
    )
    _show_intervals(metrics)
    click.echo(f"protocol: {metrics['selection']}")
    _show_range(metrics)
    lowest = metrics["heads"].get("relative_l2_best_of_any_epoch")
    if lowest:
        mean = number(100 * sum(lowest) / len(lowest))
        click.echo(f"R-l2 x100 at its own best epoch, also chosen on the test set: {mean}")
    exemplars = metrics["exemplars"]
    if exemplars["clips_with_nearest_key"]:
        click.echo(
            f"{exemplars['clips_with_nearest_key']} clip(s) have no exemplar of their "
            f"{' and '.join(exemplars['key'])}; the nearest one voted"
        )


def _show_averages(metrics: dict[str, Any]) -> None:
    rows = [
        [row["category"] or "all", number(row["rho"]), number(_times_100(row["relative_l2"]))]
        for row in metrics["categories"]
    ]
    average = metrics["average"]
    if len(rows) > 1:
        name = f"average ({metrics['rho_average']} for Spearman)"
        rows.append([name, number(average["rho"]), number(_times_100(average["relative_l2"]))])
    folds = len(metrics["parts"]) // len(metrics["categories"])
    title = f"{metrics['method']}, {_seeds(metrics)}" + (f", {folds} folds" if folds > 1 else "")
    print_table(["", "Spearman", "R-l2 x100"], rows, title=title)
    _show_intervals(metrics)
    click.echo(f"protocol: {metrics['selection']}")
    _show_range(metrics)


def _show_range(metrics: dict[str, Any]) -> None:
    if metrics["relative_l2_range"] != "evaluated set":  # what every published number divides by
        click.echo(f"R-l2 by the range of the {metrics['relative_l2_range']}")


def _show_intervals(metrics: dict[str, Any]) -> None:
    from aqa_pipeline.runs.calibration import interval_sentence

    if metrics.get("intervals"):
        click.echo(interval_sentence(metrics["intervals"]))


def _seeds(metrics: dict[str, Any]) -> str:
    count = len(metrics["seeds"])
    return f"seed {metrics['seeds'][0]}" if count == 1 else f"mean of {count} seeds"


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _head_row(name: str, heads: dict[str, Any]) -> list[str]:
    row = [name]
    for metric, factor in (("rho", 1), ("relative_l2", 100)):
        values = heads[metric]
        spread = "" if values["std"] is None else f" ± {values['std'] * factor:.4f}"
        low, high = values["interval_95"]
        row += [
            number(values["mean"] * factor) + spread,
            f"{number(low * factor)} .. {number(high * factor)}",
        ]
    return row


def _plain_row(name: str, values: dict[str, float]) -> list[str]:
    return [name, number(values["rho"]), "", number(values["relative_l2"] * 100), ""]


def interval(scored: Any) -> str:
    """An interval for a table; a dash where there is none."""
    if scored.interval is None:
        return "-"
    low, high = scored.interval
    return f"{low:.2f} .. {high:.2f}"


_NAMED = 5  #: windows that are named of each kind


def show_slide(slid: Any, video: Path, *, as_json: bool) -> None:
    """Print the windows that stand out of a long video, or all of them as JSON."""
    highest, familiar = slid.highest(_NAMED), slid.most_familiar(_NAMED)
    if as_json:
        windows = slid.table().to_dict("records")
        print_json(
            {
                "video": video,
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
        _show_windows(slid, highest, familiar)


def _show_windows(slid: Any, highest: list[int], familiar: list[int]) -> None:
    count = int(slid.is_familiar.sum())
    click.echo(
        f"{len(slid.starts)} windows of {slid.window_frames} frames; {count} look like the "
        "training clips"
    )
    if not count:
        say_warning("no window looks like the training clips: the scores may mean nothing")
    kinds = (("highest score", highest), ("most like training", familiar))
    rows = [_window_row(slid, i, kind) for kind, chosen in kinds for i in chosen]
    print_table(["", "frames", "seconds", "score", "interval", "distance"], rows)
    click.echo(f"training clips are within {slid.usual_distance:.2f} of another")


def _window_row(slid: Any, i: int, kind: str) -> list[str]:
    start, score, half = int(slid.starts[i]), float(slid.scores[i]), slid.half_width
    around = "-" if half == float("inf") else f"{score - half:.2f} .. {score + half:.2f}"
    return [
        kind,
        f"{start} .. {start + slid.window_frames - 1}",
        number(float(slid.seconds[i]), 1),
        number(score, 2),
        around,
        number(float(slid.distances[i]), 2),
    ]

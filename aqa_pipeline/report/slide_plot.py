"""Plot of the score over a long video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.errors import UsageError
from aqa_pipeline.report.style import BLUE, HEIGHT, MUTED, styled_figure
from aqa_pipeline.scoring.slide import SlidingScores

SUFFIXES = (".png", ".svg", ".pdf")


def write_plot(slid: SlidingScores, path: Path) -> None:
    """Draw the scores of a video's windows; those unlike the training clips are pale.

    Parameters
    ----------
    slid : SlidingScores
    path : Path
        Its ending, one of :data:`SUFFIXES`, says the format.

    Raises
    ------
    UsageError
        If the ending is another one.
    SetupError
        If the file cannot be written.
    """
    suffix = path.suffix.lower()
    check_plot(path)
    seconds = np.isfinite(slid.seconds).all()
    x = slid.seconds if seconds else (slid.starts + slid.window_frames - 1).astype(float)
    familiar = np.where(slid.is_familiar, slid.scores, np.nan)
    with styled_figure(HEIGHT) as (figure, axes):
        axes.plot(x, slid.scores, color=MUTED, alpha=0.35, linewidth=1, label="unlike training")
        if np.isfinite(slid.half_width):
            axes.fill_between(
                x,
                familiar - slid.half_width,
                familiar + slid.half_width,
                color=BLUE,
                alpha=0.18,
                linewidth=0,
                label=f"{100 * slid.coverage:g} % interval",
            )
        axes.plot(x, familiar, color=BLUE, marker="o", markersize=2.5, label="score")
        axes.set_xlabel("end of the window, seconds" if seconds else "last frame of the window")
        axes.set_ylabel("score, points")
        axes.legend(loc="best")
        with atomic_path(path) as temporary:
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(
                temporary, format=suffix[1:], dpi=200, facecolor="white", metadata=metadata
            )


def check_plot(path: Path) -> None:
    """Refuse an ending that is no format of a plot, before anything slow is done.

    Raises
    ------
    UsageError
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a plot ends in {', '.join(SUFFIXES)}")

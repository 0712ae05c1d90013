"""The strip of snippets as a picture: frames above, what each won or lost below."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from aqa_pipeline.figure_style import BLUE, MUTED, ORANGE, STYLE, png_bytes

Frames = npt.NDArray[np.uint8]

_INCHES_A_SNIPPET, _INCHES_OF_BARS = 1.1, 1.7


def snippet_strip(
    frames: Frames,
    points: npt.NDArray[np.float64],
    *,
    starts: Sequence[int],
    snippet_frames: int,
) -> bytes:
    """A PNG of one frame and one bar a snippet.

    Parameters
    ----------
    frames : ndarray of uint8, shape=(S, H, W, 3)
        One frame of each snippet.
    points : ndarray of float64, shape=(S,)
        Contributions.
    starts : sequence of int, length S
        First frame of each snippet in the window.
    snippet_frames : int
    """
    count, height, width = frames.shape[:3]
    size = (_INCHES_A_SNIPPET * count, _INCHES_A_SNIPPET * height / width + _INCHES_OF_BARS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(2, count, height_ratios=[size[1] - _INCHES_OF_BARS, 1.6])
        for place, frame in enumerate(frames):
            axes = figure.add_subplot(grid[0, place])
            axes.imshow(frame)
            axes.set_axis_off()
        axes = figure.add_subplot(grid[1, :])
        colours = [ORANGE if own >= 0 else BLUE for own in points]
        bars = axes.bar(np.arange(count), points, width=0.6, color=colours)
        axes.bar_label(bars, [f"{own:+.2f}".replace("-", "−") for own in points], fontsize=9)
        axes.axhline(0, color=MUTED, lw=1)
        axes.set_xlim(-0.5, count - 0.5)
        axes.margins(y=0.2)
        axes.grid(visible=False, axis="x")
        axes.set_xticks(range(count), [f"{start}–{start + snippet_frames - 1}" for start in starts])
        axes.set(xlabel="frames of the window", ylabel="points")
        return png_bytes(figure)

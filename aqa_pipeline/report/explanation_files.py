"""Explanation as files: pictures and films for slides, and the page.

======================  ===========================================================
``explain.html``        everything, on one page that needs nothing else
``snippets.png``        frames of the clip, what each snippet won or lost below them
``heat-map.png``        the same frames, and their heat below them (Fig. 9)
``heat-map.mp4``        the heat over the whole clip
``side-by-side.mp4``    the clip, its heat, and the most similar exemplar
``tree.png``            the way through the tree (Fig. 8), where there is one
======================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.media.encode import mp4, png, side_by_side
from aqa_pipeline.report import figures
from aqa_pipeline.report.explanation import page, view_of
from aqa_pipeline.report.style import BLUE, MUTED, ORANGE, STYLE, png_bytes
from aqa_pipeline.scoring.explainer import Explanation
from aqa_pipeline.scoring.heat_map import painted

Frames = npt.NDArray[np.uint8]

PAGE = "explain.html"
_INCHES_A_SNIPPET, _INCHES_OF_BARS = 1.1, 1.7


def write_explanation(explanation: Explanation, folder: Path) -> list[Path]:
    """Write all files of an explanation; those of an earlier one are replaced.

    Returns
    -------
    list of Path
        The page first.

    Raises
    ------
    SetupError
        If the folder cannot be written.
    """
    frames, rate = explanation.frames, explanation.frames_per_second
    heated = painted(frames, explanation.heat)
    protocol = explanation.run.protocol
    middles = [start + protocol.snippet_frames // 2 for start in protocol.snippet_starts]
    films = [frames, heated]
    films += [one.frames for one in explanation.exemplars[:1] if one.frames is not None]
    contents = {
        PAGE: page(view_of(explanation)).encode(),
        "snippets.png": snippet_strip(
            frames[middles],
            explanation.contributions.points,
            starts=protocol.snippet_starts,
            snippet_frames=protocol.snippet_frames,
        ),
        "heat-map.png": png(np.concatenate([_row(frames[middles]), _row(heated[middles])])),
        "heat-map.mp4": mp4(heated, frames_per_second=rate),
        "side-by-side.mp4": mp4(side_by_side(*films), frames_per_second=rate),
    }
    if explanation.path is not None:
        contents["tree.png"] = figures.tree_png(explanation.path)
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]


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
        for number, frame in enumerate(frames):
            axes = figure.add_subplot(grid[0, number])
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


def _row(frames: Frames) -> Frames:
    """Frames beside each other, (n, H, W, 3) -> (H, n * W, 3)."""
    return np.concatenate(list(frames), axis=1)

"""An explanation as files: pictures and films for slides, and the page.

======================  ===========================================================
``explain.html``        everything, on one page that needs nothing else
``snippets.png``        frames of the clip, what each snippet won or lost below them
``heat-map.png``        the same frames, and their heat below them (Fig. 9)
``heat-map.mp4``        the heat over the whole clip
``side-by-side.mp4``    the clip, its heat, and the exemplar most alike
``tree.png``            the way through the tree (Fig. 8), where there is one
======================  ===========================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from aqa_pipeline import figures
from aqa_pipeline.atomic import atomic_path
from aqa_pipeline.explain_figures import snippet_strip
from aqa_pipeline.explain_page import page, view_of
from aqa_pipeline.media.encode import mp4, png, side_by_side
from aqa_pipeline.scoring.explainer import Explanation
from aqa_pipeline.scoring.heat_map import painted

PAGE = "explain.html"

Frames = npt.NDArray[np.uint8]


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


def _row(frames: Frames) -> Frames:
    """Frames beside each other, (n, H, W, 3) -> (H, n * W, 3)."""
    return np.concatenate(list(frames), axis=1)

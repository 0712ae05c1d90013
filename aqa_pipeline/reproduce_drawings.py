"""Figures as files of their own, and the curve that only Fig. 5 has."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from aqa_pipeline.report.style import BLUE, HEIGHT, WIDTH, house_figure, svg_text
from aqa_pipeline.sheet import Spread

_VARIABLE = re.compile(r"var\(--[a-z]+, (#[0-9a-f]{6})\)")


def svg_file(figure: str) -> str:
    """A page's figure as a file: plain colours, a size and white paper.

    Viewers of SVG files, unlike browsers, know no CSS variables.
    """
    figure = _VARIABLE.sub(r"\1", figure)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure)
    width, height = box.groups() if box else (str(WIDTH), str(HEIGHT))
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff" />'
    opened = figure.index(">") + 1
    head = figure[: opened - 1] + f' width="{width}" height="{height}">'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{paper}{figure[opened:]}\n'


def curve(
    ticks: Sequence[str], values: Sequence[Spread], *, xlabel: str, ylabel: str, key: str
) -> str:
    """A metric over the values of one setting, with the standard deviation (Fig. 5)."""
    places = np.arange(len(ticks))
    mean = np.array([value.mean for value in values])
    std = np.array([value.std or 0.0 for value in values])
    with house_figure(HEIGHT) as (figure, axes):
        axes.fill_between(places, mean - std, mean + std, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(places, mean, color=BLUE, marker="o", markersize=5)
        axes.set_xticks(places, list(ticks))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return svg_text(
            figure, f"Curve of {ylabel} over {xlabel}: mean and standard deviation.", key
        )

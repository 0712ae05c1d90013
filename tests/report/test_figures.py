"""Figures as text: what they say, and that they are safe inside a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from aqa_pipeline.heads.tree_path import read_path
from aqa_pipeline.report import figures
from aqa_pipeline.report.style import shortened

EVIL = "<script>alert(1)</script> & $x^2$"
SVG = "{http://www.w3.org/2000/svg}"
SCORE = np.array([30.0, 40.0, 50.0, 60.0])
ERROR = np.array([1.0, -2.0, 0.5, 0.0])
EPOCH = np.array([1.0, 2.0, 3.0])
EDGES = np.array([-4.0, -1.0, 0.0, 1.0, 4.0])
PATH = read_path([0.15, 0.15, 0.56, 0.14], [0.1, 0.2, 0.25, 0.9], EDGES)

#: Each figure, drawn from small data under a key.
DRAWN: dict[str, Callable[[str], str]] = {
    "scatter": lambda key: figures.scatter(
        SCORE, SCORE + ERROR, per_head=np.stack([SCORE, SCORE + 2 * ERROR]), key=key
    ),
    "cumulative": lambda key: figures.cumulative_score(
        {EVIL: np.abs(ERROR), "other": np.abs(ERROR) * 2}, key=key
    ),
    "groups": lambda key: figures.pairs_per_group(
        np.array([-3.0, -0.5, 0.5, 3.0]), EDGES, noun="training pairs", key=key
    ),
    "difficulty": lambda key: figures.residuals_by_difficulty(
        np.array([2.0, 2.0, 3.1, 3.1]), ERROR, key=key
    ),
    "category": lambda key: figures.residuals_by_category([EVIL, EVIL, "b", ""], ERROR, key=key),
    "losses": lambda key: figures.losses(EPOCH, {"loss": EPOCH, "regression": EPOCH / 2}, key=key),
    "rho": lambda key: figures.selection_rho(
        {"seed 0": (EPOCH, EPOCH / 4), EVIL: (EPOCH, EPOCH / 5)}, best={"seed 0": 3}, key=key
    ),
    "votes": lambda key: figures.vote_spread(np.abs(ERROR), np.abs(ERROR), key=key),
    "tree": lambda key: figures.tree(PATH, key=key),
    "intervals": lambda key: figures.rho_intervals({EVIL: (0.5, 0.3, 0.7)}, key=key),
}


@cache
def drawn(name: str) -> str:
    return DRAWN[name]("k1")


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_safe_and_named_inside_a_page(name: str) -> None:
    svg = drawn(name)
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert len(root.get("aria-label", "")) > 20
    tags = {element.tag for element in root.iter()}
    # A style element would restyle the whole page; a script would run.
    assert not tags & {f"{SVG}style", f"{SVG}script", f"{SVG}metadata"}
    assert "<script" not in svg
    ids = [element.get("id", "k1-") for element in root.iter()]
    assert all(name.startswith("k1-") for name in ids)
    referred = re.findall(r'(?:url\(|href=")#([^)"]+)', svg)
    assert set(referred) <= set(ids)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)


def test_equal_data_give_equal_text() -> None:
    for name in ("scatter", "category"):
        assert drawn(name) == DRAWN[name]("k1")


def test_names_are_drawn_as_they_are() -> None:
    name = "<b> & $x^2$"
    assert name in texts(figures.rho_intervals({name: (0.5, 0.3, 0.7)}, key="k"))


def test_ink_follows_the_page() -> None:
    svg = drawn("scatter")
    assert "fill: var(--ink, #1b2733)" in svg
    assert not re.search(r"(?:fill|stroke): #1b2733", svg)


def test_fig7_the_cumulative_curve_reaches_each_share_at_its_error() -> None:
    svg = figures.cumulative_score({"a": np.array([1.0, 2.0, 2.0, 4.0])}, key="k")
    root = ET.fromstring(svg)
    lines = [e for e in root.iter(f"{SVG}path") if "#0072b2" in e.get("style", "")]
    (line,) = lines
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.get("d", "")), dtype=float)
    x = (points[:, 0] - points[0, 0]) / (points[-1, 0] - points[0, 0]) * 4
    y = (points[:, 1] - points[0, 1]) / (points[-1, 1] - points[0, 1])
    corners = set(zip(x.round(2).tolist(), y.round(2).tolist(), strict=True))
    assert {(0.0, 0.0), (1.0, 0.25), (2.0, 0.75), (4.0, 1.0)} <= corners


def test_fig4_bars_are_the_counts_of_each_group() -> None:
    targets = np.array([-3.0, -2.0, -0.5, 0.0, 0.5, 3.0, 3.5, 3.9])  # 2, 1, 2, 3 by the edges
    root = ET.fromstring(figures.pairs_per_group(targets, EDGES, noun="training pairs", key="k"))
    heights = []
    for element in root.iter(f"{SVG}path"):
        if "fill: var(--data" in element.get("style", ""):
            y = [float(v) for v in re.findall(r"[ML] [\d.]+ ([\d.]+)", element.get("d", ""))]
            heights.append(max(y) - min(y))
    bars = np.array(heights[:4])
    np.testing.assert_allclose(bars / bars[1], [2, 1, 2, 3], rtol=1e-3)


def test_fig8_the_tree_shows_the_probability_of_having_come_so_far() -> None:
    shown = texts(drawn("tree"))
    assert [text for text in shown if re.fullmatch(r"0\.\d\d", text)] == ["0.70", "0.56"]
    assert [t for t in shown if t.lstrip("−").isdigit()] == ["−4", "−1", "0", "1", "4"]
    label = ET.fromstring(drawn("tree")).get("aria-label", "")
    assert "leaf 3 of 4, from 0 to 1 label points, place 0.25" in label


def test_many_categories_are_drawn_as_the_frequent_ones_and_the_rest() -> None:
    category = [f"c{i}" for i in range(30) for _ in range(31 - i)]
    shown = texts(figures.residuals_by_category(category, np.ones(len(category)), key="k"))
    assert "c0 (31)" in shown
    assert "c23 (8)" in shown
    assert "6 others (27)" in shown
    assert "c24 (7)" not in shown


def test_long_names_lose_their_middle() -> None:
    short = shortened("a_very_long_name_of_a_category/fold1")
    assert short == "a_very_long_n…tegory/fold1"
    assert len(short) == 26
    assert shortened("short") == "short"


@pytest.mark.parametrize("count", [0, 1])
def test_one_clip_or_none_is_drawn_too(count: int) -> None:
    few = SCORE[:count]
    for svg in (
        figures.scatter(few, few, key="k"),
        figures.cumulative_score({"a": few * 0}, key="k"),
        figures.vote_spread(few, few, key="k"),
    ):
        assert ET.fromstring(svg).tag == f"{SVG}svg"

"""Explanation as HTML: a fragment for a page that is there, or a page of its own.

Everything is inside: pictures and films are data, figures are SVG. The page of its own has
one script, which keeps the films together, and a policy that names that script's hash and
forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from aqa_pipeline.heads.tree_path import TreePath
from aqa_pipeline.media.encode import JPEG, MP4, data_address, jpeg, mp4
from aqa_pipeline.report import figures
from aqa_pipeline.report.html import environment, number, render, template_text
from aqa_pipeline.scoring.explainer import Explanation
from aqa_pipeline.scoring.heat_map import painted
from aqa_pipeline.scoring.similarity import ShownExemplar


@dataclass(frozen=True)
class VideoPanel:
    """Video with its words; ``src`` is a data address."""

    title: str
    caption: str
    src: str


@dataclass(frozen=True)
class SnippetBar:
    """Snippet of the strip.

    Attributes
    ----------
    first, end : int
        Frames of the window, half-open.
    when : str
        The same in seconds from the window's start, or nothing.
    points : float
    part : str
        Length of its bar, 0..1 of the longest.
    picture : str
        Data address of its middle frame.
    """

    first: int
    end: int
    when: str
    points: float
    part: str
    picture: str


@dataclass(frozen=True)
class VoteRow:
    """Line of the table of votes; scores in points."""

    clip_id: str
    exemplar_score: float
    vote: float
    distance: float


@dataclass(frozen=True)
class ExplanationView:
    """Content of ``explanation.html``: numbers as they are, words ready to be read."""

    name: str
    subtitle: str
    score: float
    num_heads: int
    num_votes: int
    interval: tuple[float, float] | None
    coverage: float
    interval_note: str
    baseline: float
    facts: list[tuple[str, str, str]]
    warnings: tuple[str, ...]
    num_frames: int
    films: list[VideoPanel]
    without_films: list[str]
    layer: str
    map_size: tuple[int, int]
    snippets: list[SnippetBar]
    num_orders: int
    largest_error: float
    tree: Markup | None
    tree_note: str
    path: TreePath | None
    votes: list[VoteRow]


def fragment(view: ExplanationView) -> str:
    """HTML to stand inside a page that has ``style.css`` and ``explanation.css``."""
    template = '{% from "explanation.html" import explanation with context %}{{ explanation(it) }}'
    return environment().from_string(template).render(it=view)


def page(view: ExplanationView) -> str:
    """One self-contained page."""
    script = template_text("players.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render("explain.html", it=view, script=Markup(script), script_hash=f"sha256-{digest}")


def view_of(it: Explanation, *, key: str = "clip") -> ExplanationView:
    """Words, pictures and films of an explanation; takes about a second.

    Parameters
    ----------
    it : Explanation
    key : str
        Tells the ids of its figures from those of other fragments of a page.
    """
    scored, run = it.scored, it.run
    exemplars = len({vote.clip_id for vote in scored.exemplars})
    row = {name: i for i, name in enumerate(run.exemplars.clip_id)}
    facts = []
    if scored.difficulty is not None:
        facts.append(("Difficulty", f"{scored.difficulty:g}", "as given"))
    if scored.category:
        facts.append(("Category", scored.category, ""))
    return ExplanationView(
        name=it.name,
        subtitle=f"{run.head.config.name}, run {run.folder.absolute().name}; "
        f"frames {scored.start_frame} to {scored.end_frame - 1} of {scored.video_frames}",
        score=scored.score,
        num_heads=len(scored.per_head),
        num_votes=exemplars,
        interval=scored.interval,
        coverage=scored.coverage,
        interval_note=f"calibrated on {scored.num_calibrating} clips",
        baseline=it.contributions.baseline,
        facts=facts,
        warnings=scored.warnings,
        num_frames=len(it.frames),
        films=_films(it),
        without_films=[
            f"No pictures of {_role(one).lower()} {one.clip_id}: {one.without_frames}."
            for one in it.exemplars
            if one.frames is None
        ],
        layer=it.layer,
        map_size=(it.heat.shape[1], it.heat.shape[2]),
        snippets=_snippets(it),
        num_orders=it.contributions.num_orders,
        largest_error=float(it.contributions.standard_error.max()),
        tree=None if it.path is None else Markup(figures.tree(it.path, key=f"{key}-tree")),
        tree_note=_tree_note(it),
        path=it.path,
        votes=[
            VoteRow(
                clip_id=f"{vote.clip_id} ({vote.part})" if vote.part else vote.clip_id,
                exemplar_score=vote.score,
                vote=vote.vote,
                distance=float(it.distance[row[vote.clip_id]])
                if vote.clip_id in row
                else float("nan"),
            )
            for vote in scored.exemplars
        ],
    )


def _films(it: Explanation) -> list[VideoPanel]:
    def src(frames: Any) -> str:
        return data_address(mp4(frames, frames_per_second=it.frames_per_second), MP4)

    films = [
        VideoPanel("This clip", f"predicted {number(it.scored.score)} points", src(it.frames)),
        VideoPanel("Heat-map", f"Grad-CAM on {it.layer}", src(painted(it.frames, it.heat))),
    ]
    films += [
        VideoPanel(
            _role(one),
            f"{one.clip_id}: judges {number(one.score)} points, "
            f"{number(abs(one.score - it.scored.score))} "
            f"{'more' if one.score > it.scored.score else 'less'}",
            src(one.frames),
        )
        for one in it.exemplars
        if one.frames is not None
    ]
    return films


def _role(one: ShownExemplar) -> str:
    return "Most alike" if one.is_nearest else "Most alike, other side"


def _snippets(it: Explanation) -> list[SnippetBar]:
    protocol, points = it.run.protocol, it.contributions.points
    longest = float(np.abs(points).max()) or 1.0
    seconds = it.clip.pts_seconds - it.clip.pts_seconds[0]
    snippets = []
    for start, own in zip(protocol.snippet_starts, points.tolist(), strict=True):
        end = start + protocol.snippet_frames
        ends = seconds[start], seconds[min(end, len(seconds) - 1)]
        snippets.append(
            SnippetBar(
                first=start,
                end=end,
                when=f"{ends[0]:.1f}–{ends[1]:.1f} s" if np.isfinite(ends).all() else "",
                points=own,
                part=f"{abs(own) / longest:.3f}",
                picture=data_address(jpeg(it.frames[(start + end) // 2]), JPEG),
            )
        )
    return snippets


def _tree_note(it: Explanation) -> str:
    path = it.path
    if path is None:
        return ""
    leaf = (
        f"Leaf {path.leaf + 1} of {len(path.leaf_prob)}, from {number(path.interval[0])} to "
        f"{number(path.interval[1])} label points, place {number(path.offset)}"
    )
    if not it.scored.exemplars:
        return f"{leaf}: label {number(path.value)}. The tree of the first head."
    nearest = it.exemplars[0]
    return (
        f"Against {nearest.clip_id} ({number(nearest.score)} points), the most similar exemplar. "
        f"{leaf}: this clip is {number(abs(path.value))} label points "
        f"{'better' if path.value >= 0 else 'worse'}. The tree of the first head; darker is "
        "likelier, the way is framed."
    )

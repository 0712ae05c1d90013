"""``aqa explain``: why a clip got its score, as a page, pictures and films."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from aqa_pipeline.project import Project

from .console import print_json, say, say_warning
from .options import (
    coverage_option,
    device_option,
    fact_options,
    json_option,
    pass_project,
    timeout_option,
    weights_option,
)
from .show import interval

STAGES = {
    "decoding": "reading the video",
    "network": "looking at it",
    "explaining": "finding the reasons",
}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("video", type=click.Path())
@fact_options
@coverage_option
@click.option(
    "--layer",
    type=click.Choice(["mixed_5c", "mixed_4f"]),
    default="mixed_5c",
    help="Heat-map on the last map, or on one of twice the resolution (slower; needs captum).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to write to; default: explain/VIDEO-FRAMES in the run folder.",
)
@timeout_option
@weights_option
@device_option
@json_option
@pass_project
def explain(
    project: Project,
    run: Path,
    video: str,
    facts: dict[str, Any],
    coverage: float,
    layer: str,
    out: Path | None,
    clip_timeout: float,
    weights: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Explain why the run folder RUN (a path, or a name in runs/) gives VIDEO its score.

    Writes a page, explain.html, and its parts as pictures and films: what each snippet won or
    lost, where in the picture (Grad-CAM), the way through the tree, and the most
    similar exemplar beside the clip.

        aqa explain demo dive.mp4 --start 26 --end 136 --difficulty 3.4
    """
    from aqa_pipeline.report.explanation_files import write_explanation
    from aqa_pipeline.scoring.assessor import ClipMetadata
    from aqa_pipeline.scoring.explainer import Explainer

    folder = project.run_path(run)
    with Explainer.load(
        folder,
        project=project,
        weights=weights,
        device=device,
        coverage=coverage,
        decode_seconds=clip_timeout,
        layer=layer,
    ) as explainer:
        explanation = explainer.explain(
            video, ClipMetadata(**facts), stage=lambda name: say(STAGES[name])
        )
    scored, contributions = explanation.scored, explanation.contributions
    if out is None:
        stem = re.sub(r"[^\w.-]+", "_", Path(video).stem).strip("._") or "video"
        out = folder / "explain" / f"{stem}-{scored.start_frame}-{scored.end_frame}"
    written = write_explanation(explanation, out)
    if as_json:
        print_json(
            scored.as_dict()
            | {
                "baseline": contributions.baseline,
                "contributions": contributions.points.tolist(),
                "contribution_errors": contributions.standard_error.tolist(),
                "files": [project.shown(path) for path in written],
            }
        )
        return
    for warning in scored.warnings:
        say_warning(warning)
    held = f"   {100 * scored.coverage:g} % interval {interval(scored)}" if scored.interval else ""
    click.echo(f"score {scored.score:.2f}{held}")
    click.echo(f"an average clip {contributions.baseline:.2f}; each snippet of this one adds")
    protocol = explanation.run.protocol
    for first, points in zip(protocol.snippet_starts, contributions.points, strict=True):
        bounds = f"{first}-{first + protocol.snippet_frames - 1}"
        click.echo(f"  frames {bounds:>8}  {points:+7.2f}")
    for path in written:
        click.echo(project.shown(path))

"""``aqa serve``: a local page that scores clips."""

from __future__ import annotations

from pathlib import Path

import click

from aqa_pipeline.config import ServeConfig
from aqa_pipeline.project import Project

from .console import say
from .fields import config_options
from .options import (
    coverage_option,
    device_option,
    pass_project,
    timeout_option,
    weights_option,
)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@config_options("port host max-mb", config=ServeConfig())
@coverage_option
@timeout_option
@weights_option
@device_option
@pass_project
def serve(
    project: Project,
    run: Path,
    config: ServeConfig,
    coverage: float,
    clip_timeout: float,
    weights: Path | None,
    device: str,
) -> None:
    """Open a page on this machine where clips can be dropped, scored by the run folder RUN.

    Shows the score with its interval, the clip beside its exemplars, what each part of it won
    or lost, and the run's report. A video is decoded in a process with limits of time and
    memory, and deleted once it is scored. Ctrl-C ends it.
    """
    from aqa_pipeline.scoring.explainer import Explainer
    from aqa_pipeline.serve.server import listen, serve

    listening = listen(config)
    folder = project.run_path(run)
    say("loading the run and its backbone")
    with (
        listening,
        Explainer.load(
            folder,
            project=project,
            weights=weights,
            device=device,
            coverage=coverage,
            decode_seconds=clip_timeout,
        ) as explainer,
    ):
        try:
            serve(folder, explainer, listening, project=project, config=config, ready=_tell)
        except KeyboardInterrupt:
            say("stopped")
            raise SystemExit(130) from None


def _tell(address: str) -> None:
    click.echo(f"open {address} in a browser; Ctrl-C ends it")

"""``aqa finetune``: backbone and head together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aqa_pipeline.config import (
    FINETUNE_FIT,
    FinetuneConfig,
    FinetuneMachine,
    FitConfig,
    HeadConfig,
)
from aqa_pipeline.errors import UsageError
from aqa_pipeline.project import Project

from .console import ProgressCallback, print_json, print_table, progress, say
from .fields import config_options
from .options import (
    device_option,
    dry_run_option,
    exemplar_key_option,
    json_option,
    manifest_options,
    manifest_path,
    pass_project,
    weights_option,
)
from .show import show_metrics

if TYPE_CHECKING:
    from aqa_pipeline.datasets.manifest import Manifest
    from aqa_pipeline.finetune.distributed import DistributedContext
    from aqa_pipeline.finetune.loop import Progress
    from aqa_pipeline.finetune.plan import PartPlan

#: What a run that is started from keeps as it is.
_OF_THE_RUN = {
    *("--head", "--recipe", "--num-groups", "--aggregation", "--difficulty", "--exemplar-key"),
    *("--seed", "--validation-fraction", "--num-exemplars"),
}


@click.command()
@manifest_options
@weights_option
@click.option(
    "--from",
    "start",
    metavar="RUN",
    default=None,
    help="Continue with the head of a fitted run (a path, or a name in runs/), its groups, seed "
    "and validation part; default: a fresh head.",
)
@click.option(
    "--run",
    metavar="NAME",
    default=None,
    help="Run folder; default: the data set's name and -tuned.",
)
@config_options(
    "unfreeze epochs batch-size lr backbone-lr weight-decay warmup-steps schedule clip-norm flip",
    "shift-frames crop-jitter precision seed num-exemplars model-selection validation-fraction",
    "head recipe num-groups aggregation difficulty",
    exemplar_key_option,
    "pairs-at-once checkpointing save-every workers frame-memory clip-timeout tensorboard",
    changed={
        "epochs": {"help": "Passes over the training clips; 200 in the published program."},
        "batch-size": {
            "help": "Pairs per step, over all processes; each is trained in both orders."
        },
        "lr": {"name": "head-lr", "help": "Adam's learning rate for the head."},
        "seed": {"help": "Seed of all random draws."},
        "head": {"choices": ("gart", "mlp"), "help": "Regression tree or 3-layer MLP."},
        "recipe": {"help": "Groups and loss of the tree, as in fit-head."},
        "num-groups": {"help": "Leaves of the tree, a power of two."},
        "aggregation": {"help": "How the snippets become one vector; mean is the paper's."},
    },
    head=HeadConfig(),
    fit=FINETUNE_FIT,
    config=FinetuneConfig(),
    machine=FinetuneMachine(),
)
@click.option(
    "--then-extract",
    is_flag=True,
    help="Afterwards extract every clip of the manifest with the tuned backbone, ready for "
    "`aqa fit-head`.",
)
@click.option("--again", is_flag=True, help="Start over, whatever is in the run folder.")
@device_option
@dry_run_option
@json_option
@pass_project
@click.pass_context
def finetune(
    ctx: click.Context,
    project: Project,
    dataset: str | None,
    manifest: Path | None,
    weights: Path | None,
    start: str | None,
    run: str | None,
    head: HeadConfig,
    fit: FitConfig,
    config: FinetuneConfig,
    machine: FinetuneMachine,
    exemplar_key: tuple[str, ...],
    then_extract: bool,
    again: bool,
    device: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train backbone and head together, end to end, as the paper does.

    The run folder gets the tuned backbone beside the head, and the clips' features by it
    go into a cache of their own: `aqa evaluate`, `report` and `predict` take the run like any
    other, and `aqa fit-head --cache` fits more heads on the tuned features.

    Interrupted, terminated or killed, the same command resumes where it stopped. On several
    GPUs or machines: torchrun --no-python aqa finetune ... (docs/clusters.md).
    """
    from aqa_pipeline.device import find_device, share_cores

    share_cores()  # before torch is imported
    from aqa_pipeline.backbone.weights import find_weights
    from aqa_pipeline.datasets.manifest import read_manifest, with_exemplar_key
    from aqa_pipeline.finetune.distributed import joined, own_device
    from aqa_pipeline.finetune.run import finetune_dataset, plan_finetune

    clips = read_manifest(manifest_path(project, dataset, manifest))
    if exemplar_key:
        clips = with_exemplar_key(clips, exemplar_key)
    _check_start_options(ctx, start)
    folder = project.runs / (run or f"{clips.name}-tuned")
    weights_path = find_weights(weights)
    plans = plan_finetune(
        clips,
        folder,
        cache_root=project.cache,
        weights=weights_path,
        head_config=head,
        fit_config=fit,
        config=config,
        start=project.run_path(start) if start else None,
    )
    if dry_run:
        _show_plan(project, plans, as_json)
        return
    computing_on = own_device(find_device(device), os.environ)
    with joined(computing_on) as ranks, contextlib.closing(_Bars(ranks)) as bars:
        metrics = finetune_dataset(
            plans,
            folder,
            cache_root=project.cache,
            weights=weights_path,
            config=config,
            machine=machine,
            device=computing_on,
            ranks=ranks,
            again=again,
            then_extract=then_extract,
            progress=bars.training,
            extract_progress=bars.extraction,
        )
    if metrics is None:
        return
    show_metrics(project, folder, metrics, as_json=as_json)
    say(f"run: {project.shown(folder)}")
    _say_next(project, clips, plans)


def _check_start_options(ctx: click.Context, start: str | None) -> None:
    if start is None:
        return
    for param in ctx.command.params:
        typed = ctx.get_parameter_source(param.name or "") == click.core.ParameterSource.COMMANDLINE
        if typed and param.opts[0] in _OF_THE_RUN:
            raise UsageError(
                f"{param.opts[0]} contradicts --from {start}: the head keeps what it was fitted "
                "with; leave out one of the two"
            )


def _note(now: Progress) -> str:
    """What a line of progress says beside steps and time."""
    if now.validating:
        done, total = now.validating
        what = "first features" if now.epoch == 0 else f"validation {now.epoch}/{now.epochs}"
        return f"{what}: {done}/{total} clips"
    words = [
        f"epoch {now.epoch}/{now.epochs}",
        f"loss {now.classification + now.regression:.3f} "
        f"({now.classification:.3f} + {now.regression:.3f})",
        f"lr {now.head_learning_rate:.0e} {now.backbone_learning_rate:.0e}",
        f"{now.clips_per_second:.2f} clips/s",
    ]
    if now.selection_rho == now.selection_rho:
        words.append(f"rho {now.selection_rho:.3f}")
    return ", ".join(words)


class _Bars:
    """One bar after the other: training, then the extraction at its end; only of rank 0."""

    def __init__(self, ranks: DistributedContext) -> None:
        self._shows = ranks.is_first
        self._label, self._stack = "", contextlib.ExitStack()
        self._callback: ProgressCallback | None = None

    def _bar(self, label: str, unit: str) -> ProgressCallback:
        if self._callback is None or self._label != label:
            self.close()
            self._label = label
            self._callback = self._stack.enter_context(progress(label, unit=unit))
        return self._callback

    def training(self, now: Progress) -> None:
        if self._shows:
            self._bar("finetune", "steps")(now.done, now.total, _note(now))

    def extraction(self, done: int, total: int) -> None:
        if self._shows:
            self._bar("extract", "clips")(done, total)

    def close(self) -> None:
        self._stack.close()
        self._callback = None


def _say_next(project: Project, clips: Manifest, plans: Sequence[PartPlan]) -> None:
    """What to type for more heads on the tuned features."""
    from aqa_pipeline.finetune.run import tuned_cache

    for plan in plans:
        cache = project.shown(tuned_cache(plan, cache_root=project.cache))
        say(f"its features: {cache}")
        if len(plans) == 1:
            source = f"--dataset {clips.name}"
            if clips.path != project.manifest_path(clips.name):
                source = f"--manifest {project.shown(clips.path)}"
            say(
                f"next, heads on them in seconds: aqa fit-head {source} "
                f"--cache {cache} --run {plan.folder.name}-heads"
            )


def _show_plan(project: Project, plans: Sequence[PartPlan], as_json: bool) -> None:
    from aqa_pipeline.finetune.run import summary

    shown = [{"run": project.shown(plan.folder), **summary(plan)} for plan in plans]
    if as_json:
        print_json({"parts": shown})
        return
    for part in shown:
        passes = part.pop("passes_of_a_validation")
        rows = [[name.replace("_", " "), str(value)] for name, value in part.items()]
        rows += [[f"validation passes, {k.replace('_', ' ')}", str(v)] for k, v in passes.items()]
        print_table(["would train", ""], rows)

"""The options of ``aqa finetune``, in groups."""

from __future__ import annotations

import click

from aqa_pipeline.config import (
    FINETUNE_FIT,
    ExtractConfig,
    FinetuneConfig,
    FinetuneMachine,
    HeadConfig,
)

from .fit_head import exemplar_count
from .options import Command, manifest_options, model_selection_value, weights_option


def count_or_auto(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A whole number from 1 on, or ``auto``, which is None."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a whole number from 1 on nor auto")
    return int(value)


def data_options(command: Command) -> Command:
    """Which clips, from where, to where."""
    for option in (
        click.option(
            "--run",
            metavar="NAME",
            default=None,
            help="Run folder; default: the data set's name and -tuned.",
        ),
        click.option(
            "--from",
            "start",
            metavar="RUN",
            default=None,
            help="Go on with the head of a fitted run (a path, or a name in runs/), its groups, "
            "seed and validation part; default: a fresh head.",
        ),
        weights_option,
        manifest_options,
    ):
        command = option(command)
    return command


def head_options(command: Command) -> Command:
    """A fresh head; ``--from`` brings its own."""
    for option in (
        click.option(
            "--exemplar-key",
            metavar="COLUMN",
            multiple=True,
            help="Query and exemplar agree in this manifest column; repeatable. Default: the "
            "protocol's.",
        ),
        click.option(
            "--difficulty/--no-difficulty",
            "use_difficulty",
            default=FINETUNE_FIT.use_difficulty,
            help="Use the difficulty as the protocol says, or never (the paper's starred methods).",
        ),
        click.option(
            "--aggregation",
            type=click.Choice(["mean", "ordered", "attention", "lstm"]),
            default=HeadConfig.aggregation,
            help="How the snippets become one vector; mean is the paper's.",
        ),
        click.option(
            "--num-groups",
            type=click.IntRange(min=2),
            default=HeadConfig.num_groups,
            help="Leaves of the tree, a power of two.",
        ),
        click.option(
            "--recipe",
            type=click.Choice(["default", "official", "paper"]),
            default=HeadConfig.recipe,
            help="Groups and loss of the tree, as in fit-head.",
        ),
        click.option(
            "--head",
            "kind",
            type=click.Choice(["gart", "mlp"]),
            default=HeadConfig.kind,
            help="Regression tree or 3-layer MLP.",
        ),
    ):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """What changes the numbers."""
    for option in (
        click.option(
            "--validation-fraction",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            default=FINETUNE_FIT.validation_fraction,
            help="Part of the training split that chooses the epoch.",
        ),
        click.option(
            "--protocol",
            "model_selection",
            type=click.Choice(["default", "literature"]),
            default="default",
            callback=model_selection_value,
            help="Choose the epoch on a validation part, or on the test set as published programs "
            "do.",
        ),
        click.option(
            "--num-exemplars",
            metavar="INTEGER|all",
            callback=exemplar_count,
            default=str(FINETUNE_FIT.num_exemplars),
            help="Exemplars that vote on a test clip.",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=FINETUNE_FIT.seed, help="Of all draws."
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default=FinetuneConfig.precision,
            help="Of the backbone; auto: half on a GPU, float32 on a CPU.",
        ),
        click.option(
            "--crop-jitter",
            type=click.IntRange(min=0),
            default=FinetuneConfig.crop_jitter,
            help="Pixels the crop may lie off the centre; default: as the pixel preset has room.",
        ),
        click.option(
            "--shift-frames",
            type=click.IntRange(min=0),
            default=FinetuneConfig.shift_frames,
            help="Shift training clips by up to this many frames; default: the protocol's.",
        ),
        click.option(
            "--flip/--no-flip", default=FinetuneConfig.flip, help="Mirror half of the clips."
        ),
        click.option(
            "--clip-norm",
            type=click.FloatRange(min=0, min_open=True),
            default=FinetuneConfig.clip_norm,
            help="Cut gradients to this length; default: never.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(["constant", "cosine"]),
            default=FinetuneConfig.schedule,
            help="Learning rates after the warm-up.",
        ),
        click.option(
            "--warmup-steps",
            type=click.IntRange(min=0),
            default=FinetuneConfig.warmup_steps,
            help="Steps over which the learning rates rise.",
        ),
        click.option(
            "--weight-decay",
            type=click.FloatRange(min=0),
            default=FINETUNE_FIT.weight_decay,
            help="Of Adam; 0 in the paper.",
        ),
        click.option(
            "--backbone-lr",
            "backbone_learning_rate",
            type=click.FloatRange(min=0, min_open=True),
            default=FinetuneConfig.backbone_learning_rate,
            help="Adam's learning rate for the backbone.",
        ),
        click.option(
            "--head-lr",
            "learning_rate",
            type=click.FloatRange(min=0, min_open=True),
            default=FINETUNE_FIT.learning_rate,
            help="Adam's learning rate for the head.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=FINETUNE_FIT.batch_size,
            help="Pairs a step, over all processes; each is trained in both orders.",
        ),
        click.option(
            "--epochs",
            type=click.IntRange(min=1),
            default=FINETUNE_FIT.epochs,
            help="Passes over the training clips; 200 in the published program.",
        ),
        click.option(
            "--unfreeze",
            type=click.Choice(["all", "stem", "mixed_3", "mixed_4", "mixed_5"]),
            default=FinetuneConfig.unfreeze,
            help="Train this part of the backbone and all after it; all is stem.",
        ),
    ):
        command = option(command)
    return command


def machine_options(command: Command) -> Command:
    """What does not."""
    for option in (
        click.option(
            "--tensorboard",
            is_flag=True,
            default=FinetuneMachine.tensorboard,
            help="Write curves for TensorBoard into the run folder.",
        ),
        click.option(
            "--clip-timeout",
            "clip_timeout_seconds",
            type=click.FloatRange(min=0, min_open=True),
            default=ExtractConfig.clip_timeout_seconds,
            help="Seconds after which a clip's decoding is given up (after one retry).",
        ),
        click.option(
            "--frame-memory",
            "frame_memory_gib",
            metavar="GIB",
            type=click.FloatRange(min=0),
            default=FinetuneMachine.frame_memory_gib,
            help="Keep decoded frames up to this size; default: a quarter of the free memory.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=FinetuneMachine.workers,
            help="Decoding processes; default: a quarter of the cores, at least 1.",
        ),
        click.option(
            "--save-every",
            metavar="STEPS",
            type=click.IntRange(min=1),
            default=FinetuneMachine.save_every,
            help="Steps between two saved states; each epoch saves one too.",
        ),
        click.option(
            "--checkpointing/--no-checkpointing",
            default=FinetuneMachine.checkpointing,
            help="Compute activations twice instead of keeping them: less memory, more time.",
        ),
        click.option(
            "--pairs-at-once",
            metavar="INTEGER|auto",
            callback=count_or_auto,
            default="auto",
            help="Pairs that go through the network together; auto: as many of a step as the "
            "memory takes. The step's gradient is the same.",
        ),
    ):
        command = option(command)
    return command

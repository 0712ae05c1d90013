"""The backbone's inference form against its readable form, in one process, by turns.

Both get the same snippets and the same drawn weights; what counts is the ratio, because
machines are shared. Seconds are the median of the rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import click
import numpy as np
import torch

from aqa_pipeline.i3d import I3D
from aqa_pipeline.i3d_fast import fast_form


def drawn_weights() -> I3D:
    """A network whose activations neither vanish nor explode; speed does not depend on more."""
    torch.manual_seed(0)
    model = I3D().eval()
    for parameter in model.parameters():
        if parameter.ndim == 5:
            torch.nn.init.kaiming_normal_(parameter)
    return model


def seconds(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    started = time.perf_counter()
    call(x)
    return time.perf_counter() - started


@click.command()
@click.option("--size", "sizes", type=int, multiple=True, default=(112, 224), show_default=True)
@click.option("--snippets", default=10, show_default=True, help="Batch, as in one clip.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
@torch.inference_mode()
def main(sizes: tuple[int, ...], snippets: int, rounds: int, as_json: bool) -> None:
    """Time both forms of I3D on snippets of 16 frames."""
    readable = drawn_weights()
    fast = fast_form(readable)
    rows = []
    for size in sizes:
        x = torch.rand(snippets, 3, 16, size, size) * 2 - 1
        channels_last = x.contiguous(memory_format=torch.channels_last_3d)
        error = (fast.features(channels_last) - readable.features(x)).abs().max()
        scale = readable.features(x).abs().max()
        taken = np.array(
            [
                (seconds(readable.features, x), seconds(fast.features, channels_last))
                for _ in range(rounds)
            ]
        )
        plain, quick = np.median(taken, axis=0) / snippets
        rows.append(
            {
                "size": size,
                "readable_seconds": plain,
                "fast_seconds": quick,
                "ratio": plain / quick,
                "relative_error": float(error / scale),
            }
        )
    if as_json:
        print(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2))
        return
    print(f"{torch.get_num_threads()} threads, seconds a snippet of 16 frames")
    print("size  readable  inference form  ratio  relative error")
    for row in rows:
        print(
            f"{row['size']:4d}  {row['readable_seconds']:8.3f}  {row['fast_seconds']:14.3f}  "
            f"{row['ratio']:5.2f}  {row['relative_error']:14.1e}"
        )


if __name__ == "__main__":
    main()

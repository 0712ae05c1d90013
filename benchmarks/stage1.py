"""Stage one: the network, the whole extraction, decoding and memory.

    python benchmarks/stage1.py                    # all of it, a few minutes
    python benchmarks/stage1.py --part network --json

network     the form that extraction runs against a plain eager I3D (plain_i3d.py) with the
            same weights, by turns in one process, and against the matrix product measured
            between them: what counts are the ratios, because machines are shared. Processor time
            is what remains comparable while other programs run.
extraction  `aqa extract` over files written here, its clips a second against the network
            alone on the same frames, by turns; what decoding alone would give.
memory      the largest memory of all processes together during `aqa extract`, for a short
            video and for a broadcast ten times as long with as many clips.

On a GPU give --device cuda; all but the matrix product are then measured there.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click

PARTS = ("network", "extraction", "memory")
Row = dict[str, Any]


def show(result: Row) -> None:
    print(f"{result['threads']} threads (waiting: {result['waiting']}), device {result['device']}")
    if "network" in result:
        print("\nthe network, seconds a snippet of 16 frames")
        print("                      ---- ratio ----  of matrix product")
        print("size   plain    ours   time  processor   time  processor  relative error")
        for row in result["network"]:
            print(
                f"{row['size']:4d}  {row['plain_seconds']:6.3f}  {row['fast_seconds']:6.3f}  "
                f"{row['ratio']:5.2f}  {row['ratio_of_processor_time']:9.2f}  "
                f"{row['fraction_of_matrix_product']:5.2f}  "
                f"{row['fraction_by_processor_time']:9.2f}  "
                f"{row['relative_error']:14.1e}"
            )
        print(f"matrix product: {result['network'][-1]['matrix_product_gflops']:.0f} GFLOP/s")
    if "extraction" in result:
        row = result["extraction"]
        print(f"\nextraction of {row['clips']} clips, 640x360 to 224x224")
        print(f"  from files     {row['clips_per_second']:8.3f} clips/s")
        print(f"  network alone  {row['network_alone_clips_per_second']:8.3f} clips/s")
        print(
            f"  slower by      {row['slower_by']:8.1%}, "
            f"{row['more_processor_time']:.1%} more processor time"
        )
        print(f"  decoding alone {row['decode_frames_per_second']:8.0f} frames/s of one process")
    if "memory" in result:
        print("\nlargest memory of aqa extract, all processes")
        for row in result["memory"]:
            print(
                f"  {row['clips']} clips in {row['video_minutes']:.1f} min of {row['picture']}: "
                f"{row['peak_gigabytes']:.2f} GB"
            )


@click.command()
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS)
@click.option("--size", "sizes", type=int, multiple=True, default=(112, 224), show_default=True)
@click.option("--snippets", default=10, show_default=True, help="Batch, as in one clip.")
@click.option("--rounds", default=3, show_default=True, help="Of the network.")
@click.option("--turns", default=2, show_default=True, help="Of the extraction.")
@click.option("--clips", default=20, show_default=True, help="Clips of the extraction.")
@click.option("--minutes", default=30, show_default=True, help="Longest video for the memory.")
@click.option("--memory-clips", default=8, show_default=True)
@click.option("--picture", default="320x180", show_default=True, help="For the memory.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON alone on stdout.")
def main(
    parts: tuple[str, ...],
    sizes: tuple[int, ...],
    snippets: int,
    rounds: int,
    turns: int,
    clips: int,
    minutes: int,
    memory_clips: int,
    picture: str,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Measure stage one."""
    from aqa_pipeline.device import share_cores

    share_cores()  # as `aqa extract` does, before torch is imported
    # Not at the top: decoding processes import this file again, and want none of it.
    import torch
    from stage1_files import extraction, memory, write_weights
    from stage1_network import drawn_weights, network

    model = drawn_weights()
    result: Row = {"threads": torch.get_num_threads(), "device": device, "cores": os.cpu_count()}
    result["waiting"] = os.environ["OMP_WAIT_POLICY"]
    if "network" in parts:
        result["network"] = [
            network(model, size=size, snippets=snippets, rounds=rounds) for size in sizes
        ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        weights = write_weights(root / "weights.safetensors", model)
        if "extraction" in parts:
            result["extraction"] = extraction(
                root / "e", weights, clips=clips, rounds=turns, device=device, precision=precision
            )
        if "memory" in parts:
            size = tuple(int(n) for n in picture.split("x"))
            result["memory"] = [
                memory(
                    root / str(frames),
                    weights,
                    clips=memory_clips,
                    num_frames=frames,
                    size=size,  # type: ignore[arg-type]
                )
                for frames in (minutes * 150, minutes * 1500)
            ]
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()

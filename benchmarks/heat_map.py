"""Does the heat-map lie on the diver? The demo's renderer knows where the diver is.

    python benchmarks/heat_map.py RUN CLIPS [LAYER]

RUN is a run fitted on the demo, inside its project. Each of CLIPS test dives is rendered again
with and without diver and splash; where the pictures differ is the diver. Printed are

* pointing: share of frames whose hottest position (of the absolute heat) has any of the diver
  in it, and what a position drawn at random would have;
* mass: share of the absolute heat that lies on the diver, position by position, and the share of
  the picture that the diver takes. Equal shares: the heat knows nothing of the diver.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from aqa_pipeline.config import PIXEL_PRESETS
from aqa_pipeline.datasets.demo import shots as demo_shots
from aqa_pipeline.datasets.demo.competition import DemoConfig
from aqa_pipeline.datasets.demo.dataset import plan_broadcasts
from aqa_pipeline.datasets.demo.venue import make_venue
from aqa_pipeline.datasets.manifest import read_manifest
from aqa_pipeline.project import Project
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.scoring.explainer import Explainer

_VISIBLE = 12  #: grey levels by which a pixel must differ to belong to the diver

FloatArray = npt.NDArray[np.float64]


def diver_masks(config: DemoConfig, clip_id: str) -> tuple[int, npt.NDArray[np.bool_]]:
    """First frame of a dive's shot in its video, and where the diver is, (n, H, W)."""
    for broadcast in plan_broadcasts(config):
        rng = np.random.default_rng(broadcast.seed)
        venue = make_venue(rng, width=config.width, height=config.height)
        first = 0
        dives = iter(enumerate(broadcast.clips, start=1))
        for shot in broadcast.shots:
            if shot.kind is not None:
                number, _ = next(dives)
                if f"{Path(broadcast.name).stem}_dive_{number:02d}" == clip_id:
                    return first, _differences(shot, venue, config)
            first += shot.frames
    raise SystemExit(f"{clip_id} is not in the demo of seed {config.seed}")


def _differences(shot: demo_shots.Shot, venue: object, config: DemoConfig) -> npt.NDArray[np.bool_]:
    size = {"width": config.width, "height": config.height, "fps": config.fps}
    whole = np.stack(list(demo_shots.render_shot(shot, venue, **size)))  # type: ignore[arg-type]
    with (
        patch.object(demo_shots, "paint_diver", lambda *a, **k: None),
        patch.object(demo_shots.Splash, "paint", lambda *a, **k: None),
    ):
        empty = np.stack(list(demo_shots.render_shot(shot, venue, **size)))  # type: ignore[arg-type]
    return np.abs(whole.astype(int) - empty).max(axis=3) > _VISIBLE


def cropped(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The part of the frame that the network sees."""
    pixels = PIXEL_PRESETS["demo"]
    height, width = masks.shape[1:]
    assert pixels.short_side is not None
    side = round(pixels.crop * min(height, width) / pixels.short_side)
    top, left = (height - side) // 2, (width - side) // 2
    return masks[:, top : top + side, left : left + side]


def on_grid(masks: npt.NDArray[np.bool_], rows: int, columns: int) -> FloatArray:
    """Share of each position that the diver takes, (n, H, W) -> (n, rows, columns)."""
    parts = [
        np.stack([cell.mean(axis=(1, 2)) for cell in np.array_split(band, columns, axis=2)], axis=1)
        for band in np.array_split(masks, rows, axis=1)
    ]
    return np.stack(parts, axis=1)


def main() -> None:
    run, count = Path(sys.argv[1]), int(sys.argv[2])
    layer = sys.argv[3] if len(sys.argv) > 3 else "mixed_5c"
    project = Project.find(run)
    manifest = read_manifest(project.manifest_path("demo"))
    rows = manifest.clips[manifest.clips["split"] == "test"].iloc[:count]
    totals = np.zeros(4)
    frames = 0
    with Explainer.load(run, project=project, layer=layer) as explainer:
        for _, row in rows.iterrows():
            found = explainer.explain(
                manifest.video_path(row["video"]),
                ClipMetadata(
                    int(row["start_frame"]),
                    int(row["end_frame"]),
                    difficulty=float(row["difficulty"]),
                ),
            )
            first, masks = diver_masks(DemoConfig(), row["clip_id"])
            heat = np.abs(found.heat.astype(np.float64))
            taken = on_grid(cropped(masks)[found.clip.frame_index - first], *heat.shape[1:])
            seen = (taken.sum(axis=(1, 2)) > 0) & (heat.sum(axis=(1, 2)) > 0)
            heat, taken = heat[seen].reshape(seen.sum(), -1), taken[seen].reshape(seen.sum(), -1)
            share = heat / heat.sum(axis=1, keepdims=True)
            has = taken > 0
            totals += [
                has[np.arange(len(has)), heat.argmax(axis=1)].sum(),
                has.mean(axis=1).sum(),
                (share * taken).sum(),
                taken.mean(axis=1).sum(),
            ]
            frames += len(has)
    hit, chance, mass, area = totals / frames
    print(f"{layer}, {len(rows)} clips, {frames} frames with diver or splash in the picture")
    print(f"pointing {hit:.3f}, at random {chance:.3f}")
    print(f"mass on the diver {mass:.4f}, of the picture {area:.4f}, ratio {mass / area:.2f}")


if __name__ == "__main__":
    main()

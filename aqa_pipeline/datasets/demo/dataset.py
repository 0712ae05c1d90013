"""The demo data set: a small diving competition, rendered and encoded on the spot.

A few H.264 broadcasts hold many dives each, with other footage in between, so the
manifest's frames matter exactly as they do for MTL-AQA. docs/demo-data.md says how
pictures and marks are made; the parts are

* :mod:`~aqa_pipeline.datasets.demo.competition`: dives, faults, marks, split
* :mod:`~aqa_pipeline.datasets.demo.diver`: how a body moves
* :mod:`~aqa_pipeline.datasets.demo.venue`, :mod:`~aqa_pipeline.datasets.demo.shots`,
  :mod:`~aqa_pipeline.datasets.demo.shots`: the hall, who moves in it, the camera
* :mod:`~aqa_pipeline.datasets.demo.raster`: painting with numpy
* this module: the running order of each broadcast, its encoding, the manifest

Equal configurations give equal manifests and equal pictures before encoding; the bytes
of the files depend on the FFmpeg build.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.atomic import atomic_path, write_json_atomically
from aqa_pipeline.config import Protocol
from aqa_pipeline.core.metrics import relative_l2, spearman
from aqa_pipeline.datasets.demo.competition import (
    NUM_JUDGES,
    DemoConfig,
    JudgedDive,
    plan_competition,
)
from aqa_pipeline.datasets.demo.shots import FILLER_KINDS, Shot, render_shot
from aqa_pipeline.datasets.demo.venue import make_venue
from aqa_pipeline.datasets.manifest import Manifest, read_manifest, write_manifest
from aqa_pipeline.datasets.protocol import write_protocol
from aqa_pipeline.errors import DataError, SetupError

logger = logging.getLogger(__name__)

#: Raised whenever the same configuration would give other pictures.
PICTURE_VERSION = 2

#: MTL-AQA's protocol on small pictures. A sum of three marks is at most 30.
PROTOCOL = Protocol(
    name="demo",
    pixels="demo",
    exemplar_key=("difficulty",),
    label_transform="raw",
    score_range=30.0,
    epsilon=30.0,
    score_range_without_difficulty=100.0,
    source="rendered by aqa_pipeline.datasets.demo.dataset; window and labels as for MTL-AQA",
)

#: Frames that a dive's clip goes on after take-off, at 25 a second: 44 in the air, then the
#: splash. With the 103 of the window there are 26 to 38 before take-off.
_FRAMES_FROM_TAKE_OFF = (66, 79)
#: The shot begins this long before the window and ends this long after it (half-open).
_LEAD_FRAMES, _TAIL_FRAMES = (4, 15), (4, 13)
_FILLER_FRAMES = (16, 37)
_QUALITY = (20, 31)


@dataclass(frozen=True)
class Placed:
    """A dive and its clip, ``[start_frame, end_frame)``, in its broadcast."""

    dive: JudgedDive
    start_frame: int
    end_frame: int


@dataclass(frozen=True)
class Broadcast:
    """A video before it is rendered.

    Attributes
    ----------
    name : str
        File name.
    shots : tuple of Shot
        In running order, without gaps.
    clips : tuple of Placed
        Its dives, in running order.
    seed : tuple of int
        Draws the venue.
    quality : int
        Constant rate factor of the encoder: 20 is good, 30 is visibly compressed.
    """

    name: str
    shots: tuple[Shot, ...]
    clips: tuple[Placed, ...]
    seed: tuple[int, ...]
    quality: int

    @property
    def frames(self) -> int:
        """Length of the video."""
        return sum(shot.frames for shot in self.shots)


def plan_broadcasts(config: DemoConfig) -> list[Broadcast]:
    """Put all dives of a competition in running order; nothing is rendered."""
    dives = plan_competition(config)
    parts = np.array_split(np.arange(len(dives)), config.num_broadcasts)
    return [
        _plan_broadcast(config, number, [dives[index] for index in part])
        for number, part in enumerate(parts, start=1)
    ]


def _plan_broadcast(config: DemoConfig, number: int, dives: list[JudgedDive]) -> Broadcast:
    rng = np.random.default_rng((config.seed, 2, number))
    shots: list[Shot] = []
    clips: list[Placed] = []
    length = 0

    def cut_to(shot: Shot) -> None:
        nonlocal length
        shots.append(shot)
        length += shot.frames

    def seed() -> tuple[int, ...]:
        return (config.seed, 3, number, len(shots))

    def filler() -> Shot:
        kind = FILLER_KINDS[rng.integers(len(FILLER_KINDS))]
        return Shot(int(rng.integers(*_FILLER_FRAMES)), seed(), filler=kind)

    for dive in dives:
        cut_to(filler())
        lead, tail = int(rng.integers(*_LEAD_FRAMES)), int(rng.integers(*_TAIL_FRAMES))
        clip_frames = lead + PROTOCOL.window_frames
        # Between two frames: a take-off does not wait for the camera's shutter.
        take_off = clip_frames - rng.integers(*_FRAMES_FROM_TAKE_OFF) + rng.random()
        clips.append(Placed(dive, length, length + clip_frames))
        shot = Shot(
            clip_frames + tail,
            seed(),
            kind=dive.kind,
            faults=dive.faults,
            take_off_frame=float(take_off),
        )
        cut_to(shot)
    cut_to(filler())
    return Broadcast(
        name=f"broadcast_{number:02d}.mp4",
        shots=tuple(shots),
        clips=tuple(clips),
        seed=(config.seed, 4, number),
        quality=int(rng.integers(*_QUALITY)),
    )


def demo_manifest(config: DemoConfig | None = None) -> pd.DataFrame:
    """The demo's manifest, without rendering anything.

    Parameters
    ----------
    config : DemoConfig, optional

    Returns
    -------
    DataFrame
        One row a dive, in running order: the manifest's columns (``video`` is a file name),
        ``judge_1`` to ``judge_7``, ``dive`` (such as ``305C``) and ``noiseless_score`` (the
        score if the judges made no noise, in points: the yardstick for a perfect model).
    """
    return _rows(plan_broadcasts(config or DemoConfig()))


def _rows(broadcasts: list[Broadcast]) -> pd.DataFrame:
    rows = []
    for broadcast in broadcasts:
        for number, clip in enumerate(broadcast.clips, start=1):
            dive = clip.dive
            row: dict[str, object] = {
                "clip_id": f"{broadcast.name.removesuffix('.mp4')}_dive_{number:02d}",
                "video": broadcast.name,
                "start_frame": clip.start_frame,
                "end_frame": clip.end_frame,
                "score": dive.score,
                "split": dive.split,
                "category": "platform",
                "difficulty": dive.kind.difficulty,
            }
            row |= {f"judge_{judge}": dive.marks[judge - 1] for judge in range(1, NUM_JUDGES + 1)}
            row |= {"dive": dive.kind.name, "noiseless_score": round(dive.noiseless_score, 4)}
            rows.append(row)
    return pd.DataFrame(rows)


def render_demo(
    folder: Path,
    config: DemoConfig | None = None,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Render and encode the demo's broadcasts, those that are not there yet.

    A broadcast gets its name only when it is complete. Beside it a small JSON file says
    what it was made from: a finished broadcast that was made from the same is kept.

    Parameters
    ----------
    folder : Path
        Where ``broadcast_01.mp4`` and so on are written; made if missing.
    config : DemoConfig, optional
    jobs : int, optional
        Broadcasts rendered at once, each in a process of its own. Default: one a core.
    progress : callable, optional
        Called with (broadcasts done, broadcasts in all), first with those found finished.

    Returns
    -------
    DataFrame
        See :func:`demo_manifest`.

    Raises
    ------
    SetupError
        The folder cannot be written, or this FFmpeg build has no H.264 encoder.
    """
    config = config or DemoConfig()
    broadcasts = plan_broadcasts(config)
    missing = [item for item in broadcasts if not _is_finished(folder, item, config)]
    done = len(broadcasts) - len(missing)
    if progress is not None:
        progress(done, len(broadcasts))
    if missing:
        logger.info("rendering %d of %d broadcasts to %s", len(missing), len(broadcasts), folder)
        workers = min(jobs or joblib.cpu_count(), len(missing))
        tasks = (joblib.delayed(_write_broadcast)(folder, item, config) for item in missing)
        for _ in joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(tasks):
            done += 1
            if progress is not None:
                progress(done, len(broadcasts))
    return _rows(broadcasts)


def write_demo(
    path: Path,
    config: DemoConfig | None = None,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Make the whole data set: videos, manifest and protocol.

    Parameters
    ----------
    path : Path
        The manifest, such as ``manifests/demo.csv``. Its protocol gets the ending ``.toml``;
        the videos lie in a folder of its name without ending.
    config, jobs, progress
        See :func:`render_demo`.

    Returns
    -------
    Manifest
        Read back from the files.

    Raises
    ------
    SetupError
        See :func:`render_demo`.
    """
    folder = path.with_suffix("")
    rows = render_demo(folder, config, jobs=jobs, progress=progress)
    rows["video"] = folder.name + "/" + rows["video"]
    write_protocol(path.with_suffix(".toml"), PROTOCOL)
    write_manifest(path, rows)
    return read_manifest(path)


def ceiling(manifest: Manifest) -> dict[str, float]:
    """Metrics of a model that sees everything: noiseless against published score.

    Parameters
    ----------
    manifest : Manifest
        Of the demo.

    Returns
    -------
    dict
        ``rho`` (Eq. 10) and ``relative_l2`` (Eq. 11, not multiplied by 100) of the test split.

    Raises
    ------
    DataError
        The manifest has no column ``noiseless_score``.
    """
    if "noiseless_score" not in manifest.clips:
        raise DataError(
            f"{manifest.path}: no column noiseless_score, which only the demo's own manifest "
            "has; type: aqa demo"
        )
    test = manifest.clips[manifest.clips["split"] == "test"]
    noiseless = test["noiseless_score"].astype(float).to_numpy()
    scores = test["score"].to_numpy()
    return {
        "rho": spearman(scores, noiseless),
        "relative_l2": relative_l2(scores, noiseless),
    }


def broadcast_frames(broadcast: Broadcast, config: DemoConfig) -> Iterator[npt.NDArray[np.uint8]]:
    """Pictures of a broadcast before encoding: RGB, shape ``(height, width, 3)`` each."""
    venue = make_venue(
        np.random.default_rng(broadcast.seed), width=config.width, height=config.height
    )
    for shot in broadcast.shots:
        yield from render_shot(
            shot, venue, width=config.width, height=config.height, fps=config.fps
        )


# --- files ---------------------------------------------------------------------------------


def _fingerprint(broadcast: Broadcast, config: DemoConfig) -> str:
    made_from = {
        "picture_version": PICTURE_VERSION,
        "frame": (config.width, config.height, config.fps),
        "broadcast": asdict(broadcast),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _is_finished(folder: Path, broadcast: Broadcast, config: DemoConfig) -> bool:
    video = folder / broadcast.name
    try:
        record = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
        size = video.stat().st_size
    except (OSError, ValueError):
        return False
    return bool(record == {"fingerprint": _fingerprint(broadcast, config), "bytes": size})


def _write_broadcast(folder: Path, broadcast: Broadcast, config: DemoConfig) -> None:
    video = folder / broadcast.name
    with atomic_path(video) as temporary:
        _encode(temporary, broadcast, config)
        size = temporary.stat().st_size
    record = {"fingerprint": _fingerprint(broadcast, config), "bytes": size}
    write_json_atomically(video.with_suffix(".json"), record)


def _encode(path: Path, broadcast: Broadcast, config: DemoConfig) -> None:
    # Imported here, so that planning a demo and reading its manifest need no FFmpeg.
    import av
    from av.codec.codec import UnknownCodecError

    with av.open(str(path), "w", format="mp4") as container:
        try:
            stream = container.add_stream("libx264", rate=config.fps)
        except UnknownCodecError as error:
            raise SetupError(
                "this build of PyAV has no H.264 encoder (libx264), which the demo needs; "
                "type: pip install --force-reinstall --only-binary=:all: av"
            ) from error
        stream.width, stream.height, stream.pix_fmt = config.width, config.height, "yuv420p"
        # One thread: broadcasts already run side by side, and the bytes repeat.
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "veryfast", "crf": str(broadcast.quality), "g": "50"}
        for number, pixels in enumerate(broadcast_frames(broadcast, config)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

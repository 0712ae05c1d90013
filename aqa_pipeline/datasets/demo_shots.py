"""The demo's camera: one shot for each dive, and the footage between dives.

A :class:`Shot` says all that is needed to draw it, so a broadcast is planned (and its
frames counted) before a single pixel is painted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from aqa_pipeline.datasets.demo_diver import (
    GROUPS,
    PLATFORM_METRES,
    DiveKind,
    Faults,
    FloatArray,
    dive_motion,
    walk_motion,
)
from aqa_pipeline.datasets.demo_figures import Splash, make_look, paint_diver
from aqa_pipeline.datasets.demo_venue import Venue, View, background, develop

FillerKind = Literal["platform", "walk", "stand", "pool", "crowd"]
FILLER_KINDS: tuple[FillerKind, ...] = get_args(FillerKind)

#: What a camera may show between two dives, and where it points first, in metres.
_FILLER_VIEWS: dict[FillerKind, tuple[float, float]] = {
    "platform": (-0.4, PLATFORM_METRES + 0.6),
    "walk": (-1.2, PLATFORM_METRES + 0.8),
    "stand": (-0.3, PLATFORM_METRES + 1.0),
    "pool": (2.5, 0.4),
    "crowd": (4.0, 5.5),
}
#: Lowest point the camera follows a diver to: the surface stays in the lower half.
_LOWEST_CENTRE = 0.75


@dataclass(frozen=True)
class Shot:
    """One uninterrupted stretch of a broadcast.

    Attributes
    ----------
    frames : int
        Its length.
    seed : tuple of int
        Draws everything in it that is random.
    filler : str or None
        What it shows, if it is no dive.
    kind, faults : DiveKind, Faults or None
        The dive, if it is one.
    take_off_frame : float
        Frame of the shot at which the toes leave the platform; between two frames as a rule.
    """

    frames: int
    seed: tuple[int, ...]
    filler: FillerKind | None = None
    kind: DiveKind | None = None
    faults: Faults | None = None
    take_off_frame: float = 0.0


def render_shot(
    shot: Shot, venue: Venue, *, width: int, height: int, fps: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draw a shot frame by frame.

    Parameters
    ----------
    shot : Shot
    venue : Venue
        Made for frames of the same size.
    width, height : int
        Pixels.
    fps : int
        Frames a second.

    Yields
    ------
    ndarray of uint8, shape=(height, width, 3)
        RGB.
    """
    rng = np.random.default_rng(shot.seed)
    look = make_look(rng)
    # Brightness breathes by a percent or two, as under the lamps of a hall.
    gains = rng.uniform(0.94, 1.06) + _wander(rng, shot.frames, 0.008, fps)
    times = (np.arange(shot.frames) - shot.take_off_frame) / fps
    clock = rng.uniform(0, 100) + np.arange(shot.frames) / fps
    # Metres to pixels grow with the frame: the same field of view at any size.
    zoom = min(width, height) / 128 * rng.uniform(31.0, 36.0)
    scales = zoom * (1 + _wander(rng, shot.frames, 0.012, fps))
    shake = np.stack([_wander(rng, shot.frames, 0.05, fps) for _ in "xy"], axis=1)
    shake += rng.normal(0, 0.006, shake.shape)

    joints: FloatArray | None = None
    splash: Splash | None = None
    facing, entry_seconds = 1.0, 0.0
    if shot.kind is not None and shot.faults is not None:
        motion = dive_motion(shot.kind, shot.faults, times)
        joints, entry_seconds = motion.joints, motion.entry_seconds
        facing = 1.0 if GROUPS[shot.kind.group][0] else -1.0
        splash = Splash(rng, strength=shot.faults.splash, entry_x=motion.entry_x)
        centres = _follow(motion.centre, rng)
    else:
        filler = shot.filler or "platform"
        start = np.array(_FILLER_VIEWS[filler]) + rng.normal(0, 0.3, 2)
        centres = start + np.outer(clock - clock[0], rng.normal(0, (0.5, 0.12)))
        if filler in ("walk", "stand"):
            speed = rng.uniform(0.9, 1.3) if filler == "walk" else 0.0
            joints = walk_motion(times, start_x=rng.uniform(-2.6, -1.6) * (speed > 0), speed=speed)
    centres = centres + shake

    for frame in range(shot.frames):
        centre_x, centre_y = centres[frame]
        view = View((float(centre_x), float(centre_y)), float(scales[frame]), width, height)
        canvas = background(venue, view, float(clock[frame]))
        if joints is not None:
            paint_diver(canvas, view, joints[frame], look, facing=facing)
        if splash is not None:
            splash.paint(canvas, view, float(times[frame]) - entry_seconds)
        yield develop(canvas, venue, frame=frame + shot.seed[-1], gain=float(gains[frame]))


def _follow(centre_of_mass: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Where an operator points who follows the diver down and stays at the surface.

    Sideways the camera moves less than the diver does, so the distance from the tower
    can be seen.
    """
    target = centre_of_mass.copy()
    target[:, 0] = 0.5 + 0.3 * (target[:, 0] - 0.5) + rng.normal(0, 0.1)
    target[:, 1] = np.maximum(target[:, 1], _LOWEST_CENTRE)
    return np.asarray(gaussian_filter1d(target, rng.uniform(1.5, 3.0), axis=0, mode="nearest"))


def _wander(rng: np.random.Generator, frames: int, spread: float, fps: int) -> FloatArray:
    """A slow random walk about zero with the given standard deviation. Shape ``(frames,)``."""
    sigma = 0.5 * fps
    # White noise loses this factor of its spread under a Gaussian of that width.
    gain = np.sqrt(2 * np.sqrt(np.pi) * sigma)
    return np.asarray(gaussian_filter1d(rng.normal(0, spread * gain, frames), sigma, mode="wrap"))

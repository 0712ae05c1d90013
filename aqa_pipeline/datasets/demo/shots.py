"""The demo's pictures: one shot per dive, the footage between dives, and what moves in them.

A :class:`Shot` says all that is needed to draw it, so a broadcast is planned (and its
frames counted) before a single pixel is painted. The diver and the water it throws up move; skin,
hair, suit and build (:class:`Look`) are drawn anew for each dive, so that no colour tells who
dives.

Conventions as in :mod:`aqa_pipeline.datasets.demo.venue`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from aqa_pipeline.datasets.demo.diver import (
    GRAVITY,
    GROUPS,
    JOINT,
    PLATFORM_METRES,
    DiveFaults,
    DiveKind,
    dive_motion,
    walk_motion,
)
from aqa_pipeline.datasets.demo.raster import (
    Canvas,
    Colour,
    FloatArray,
    paint_limb,
    paint_spray,
    rgb,
)
from aqa_pipeline.datasets.demo.venue import CameraView, Venue, background, develop

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
_SUITS = ((24, 28, 60), (170, 22, 36), (18, 110, 70), (230, 190, 40), (30, 30, 30), (90, 40, 130))

#: Metres, at the start and the end of each limb.
_ARM_RADII, _FOREARM_RADII = (0.050, 0.040), (0.040, 0.026)
_THIGH_RADII, _SHANK_RADII, _FOOT_RADII = (0.092, 0.062), (0.060, 0.038), (0.040, 0.024)
_FAR_SIDE_SHADE = np.float32(0.74)


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
    kind, faults : DiveKind, DiveFaults or None
        The dive, if it is one.
    take_off_frame : float
        Frame of the shot at which the toes leave the platform; between two frames as a rule.
    """

    frames: int
    seed: tuple[int, ...]
    filler: FillerKind | None = None
    kind: DiveKind | None = None
    faults: DiveFaults | None = None
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
        view = CameraView((float(centre_x), float(centre_y)), float(scales[frame]), width, height)
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


@dataclass(frozen=True)
class Look:
    """A diver's outside: carries nothing about the score.

    Attributes
    ----------
    skin, hair, suit : ndarray of float32, shape=(3,)
    one_piece : bool
        A suit over the trunk, else briefs.
    build : float
        Factor on every limb's thickness.
    """

    skin: Colour
    hair: Colour
    suit: Colour
    one_piece: bool
    build: float


def make_look(rng: np.random.Generator) -> Look:
    """Draw a diver's skin, hair, suit and build."""
    skin = np.exp(rng.uniform(np.log(0.42), 0.0)) * rgb(236, 188, 158)
    suit = np.array(_SUITS[rng.integers(len(_SUITS))]) + rng.normal(0, 12, 3)
    return Look(
        skin=skin.astype(np.float32),
        hair=rgb(*rng.uniform(0.3, 1.0) * np.array([95, 70, 50])),
        suit=rgb(*np.clip(suit, 0, 255)),
        one_piece=bool(rng.random() < 0.5),
        build=float(rng.uniform(1.0, 1.2)),
    )


def paint_diver(
    canvas: Canvas, view: CameraView, joints: FloatArray, look: Look, *, facing: float
) -> None:
    """Paint one body, far side first; what is under water shows only faintly.

    Parameters
    ----------
    canvas : ndarray, shape=(height, width, 3)
    view : CameraView
    joints : ndarray, shape=(len(JOINTS), 2)
        Metres in the scene.
    look : Look
    facing : {1.0, -1.0}
        Which way an upright diver looks along x.
    """
    surface = max(int(np.rint(view.row(0.0))), 0)
    dipped = joints[:, 1].min() < 0.1 and surface < len(canvas)
    water = canvas[surface:].copy() if dipped else None
    place = view.pixels(joints)
    size = view.scale * look.build

    def limb(
        start: FloatArray, end: FloatArray, radii: tuple[float, float], colour: Colour
    ) -> None:
        paint_limb(canvas, start, end, radii=(radii[0] * size, radii[1] * size), colour=colour)

    def side(name: str, shade: np.float32) -> None:
        knee, ankle, toe = (place[JOINT[name + joint]] for joint in ("knee", "ankle", "toe"))
        limb(hip, knee, _THIGH_RADII, look.skin * shade)
        limb(knee, ankle, _SHANK_RADII, look.skin * shade)
        limb(ankle, toe, _FOOT_RADII, look.skin * shade)
        limb(hip, hip + 0.18 * (knee - hip), (0.10, 0.094), look.suit * shade)

    def arm(name: str, shade: np.float32) -> None:
        elbow, hand = place[JOINT[name + "elbow"]], place[JOINT[name + "hand"]]
        limb(shoulder, elbow, _ARM_RADII, look.skin * shade)
        limb(elbow, hand, _FOREARM_RADII, look.skin * shade)

    hip, shoulder, head = (place[JOINT[joint]] for joint in ("hip", "shoulder", "head"))
    arm("far_", _FAR_SIDE_SHADE)
    side("far_", _FAR_SIDE_SHADE)
    limb(hip, shoulder, (0.105, 0.125), look.suit if look.one_piece else look.skin)
    limb(hip, hip + 0.16 * (shoulder - hip), (0.108, 0.106), look.suit)
    limb(shoulder, head, (0.055, 0.055), look.skin)
    limb(head, head, (0.105, 0.105), look.skin)
    crown = (head - shoulder) / max(float(np.hypot(*(head - shoulder))), 1e-6)
    back = -facing * np.array([-crown[1], crown[0]])
    hair = head + size * (0.035 * crown + 0.035 * back)
    limb(hair, hair, (0.088, 0.088), look.hair)
    side("", np.float32(1))
    arm("", np.float32(1))

    if water is not None:
        depth = np.arange(len(water), dtype=np.float32)[:, None, None] / view.scale
        seen = 0.3 * np.exp(-depth / np.float32(0.5))
        canvas[surface:] = water + seen * (canvas[surface:] - water)


class Splash:
    """The water that one entry throws up: drops on parabolas and foam on the surface.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the drops.
    strength : float
        0..1: how many drops, how high, how wide.
    entry_x : float
        Where the diver enters, in metres.
    """

    def __init__(self, rng: np.random.Generator, *, strength: float, entry_x: float) -> None:
        drops = int(70 + 430 * strength)
        self._x = entry_x
        self._start = rng.normal(0, 0.10 + 0.10 * strength, drops)
        self._speed_x = rng.normal(0, 0.35 + 1.1 * strength, drops)
        self._speed_y = (1.0 + 5.2 * strength) * rng.beta(1.6, 1.8, drops)
        self._delay = rng.uniform(0.0, 0.22, drops)
        self._radius = rng.uniform(0.016, 0.042, drops)
        angle, radius = rng.uniform(0, 2 * np.pi, 220), np.sqrt(rng.uniform(0, 1, 220))
        self._foam = np.stack([radius * np.cos(angle), 0.3 * radius * np.sin(angle)], axis=1)
        self._foam_metres = 0.35 + 0.85 * strength
        self._foam_weight = 0.5 + 0.5 * strength

    def paint(self, canvas: Canvas, view: CameraView, seconds: float) -> None:
        """Paint the splash `seconds` after the entry; before it, nothing."""
        if seconds <= 0:
            return
        white = rgb(238, 244, 247)
        extent = self._foam_metres * -np.expm1(-seconds / 0.25)
        foam = view.pixels(self._foam * extent + (self._x, 0.0))
        # As many bits of foam on a larger area each hide more pixels, then dissolve.
        weight = self._foam_weight * (extent * view.scale) ** 2 / 150 * np.exp(-seconds / 0.9)
        paint_spray(canvas, foam, np.full(len(foam), weight), blur=1.2, colour=white)
        age = seconds - self._delay
        y = self._speed_y * age - GRAVITY / 2 * age**2
        flying = (age > 0) & (y > 0)
        x = self._x + self._start + self._speed_x * age
        drops = view.pixels(np.stack([x, y], axis=1)[flying])
        areas = np.pi * (self._radius[flying] * view.scale) ** 2
        paint_spray(canvas, drops, areas, blur=0.7, colour=white)

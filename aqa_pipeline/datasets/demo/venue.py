"""The demo's venue: a pool hall, its light, and the camera in it.

One :class:`Venue` is drawn for each broadcast, and nothing in it bears on a score. The
hall is painted once as one large picture; a frame is a window cut out of it. A camera
that pans and zooms on a tripod shows no parallax, so this is exact enough.

Conventions
-----------
x, y
    Metres in the scene, y upwards; see :mod:`aqa_pipeline.datasets.demo.diver`.
colours
    RGB, float32, grey levels 0..255.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from aqa_pipeline.datasets.demo.diver import PLATFORM_METRES
from aqa_pipeline.datasets.demo.raster import (
    Canvas,
    Colour,
    FloatArray,
    paint_box,
    rgb,
    sample_window,
)

#: The painted hall, in metres, and its pixels per metre.
HALL_LEFT, HALL_RIGHT, HALL_BOTTOM, HALL_TOP = -6.5, 8.5, -4.0, 15.0
HALL_SCALE = 26.0
#: Where the far edge of the pool appears, for a camera a little above the water.
POOL_FAR_EDGE = 1.15
#: Where the pool ends below the platform, and the height of the deck there.
POOL_LEFT_EDGE, DECK_METRES = -0.75, 0.3
_RIPPLE_SIZE = 256
_NOISE_MARGIN = 101


@dataclass(frozen=True)
class CameraView:
    """Where the camera looks in one frame.

    Attributes
    ----------
    centre : (float, float)
        Metres in the scene.
    scale : float
        Pixels per metre.
    width, height : int
        Pixels.
    """

    centre: tuple[float, float]
    scale: float
    width: int
    height: int

    def pixels(self, points: FloatArray) -> FloatArray:
        """Scene to picture: ``(..., 2)`` metres -> ``(..., 2)`` pixels, y downwards."""
        middle = np.array([(self.width - 1) / 2, (self.height - 1) / 2])
        offset: FloatArray = points - np.array(self.centre)
        return np.asarray(middle + offset * np.array([self.scale, -self.scale]))

    def row(self, y: float) -> float:
        """Row at which a height appears."""
        return (self.height - 1) / 2 - (y - self.centre[1]) * self.scale


@dataclass(frozen=True, eq=False)
class Venue:
    """A pool hall as one broadcast shows it.

    Attributes
    ----------
    hall : ndarray of float32, shape=(H, W, 3)
        The painted hall without people in front.
    ripples : ndarray of float32, shape=(_RIPPLE_SIZE, _RIPPLE_SIZE)
        Zero mean, unit variance, repeats seamlessly.
    ripple_strength : float
        Grey levels.
    light : ndarray of float32, shape=(3,)
        Gain of the camera for each channel.
    noise : ndarray of float32, shape=(height + _NOISE_MARGIN, width + _NOISE_MARGIN, 1)
        Sensor noise, in grey levels; each frame takes another part of it.
    """

    hall: Canvas
    ripples: npt.NDArray[np.float32]
    ripple_strength: float
    light: Colour
    noise: npt.NDArray[np.float32]


def make_venue(rng: np.random.Generator, *, width: int, height: int) -> Venue:
    """Draw a hall, its light and its camera's noise, for frames of that many pixels."""
    axes = (np.fft.fftfreq(_RIPPLE_SIZE)[:, None], np.fft.fftfreq(_RIPPLE_SIZE)[None])
    spectrum = np.exp(-(((axes[0] * 9) ** 2) + (axes[1] * 26) ** 2))
    ripples = np.fft.ifft2(np.fft.fft2(rng.normal(size=(_RIPPLE_SIZE,) * 2)) * spectrum).real
    noise_shape = (height + _NOISE_MARGIN, width + _NOISE_MARGIN, 1)
    noise = rng.normal(0, rng.uniform(1.5, 4.5), noise_shape)
    return Venue(
        hall=_paint_hall(rng),
        ripples=(ripples / ripples.std()).astype(np.float32),
        ripple_strength=float(rng.uniform(3, 9)),
        light=(rng.uniform(0.82, 1.1) * rng.uniform(0.95, 1.05, 3)).astype(np.float32),
        noise=noise.astype(np.float32),
    )


def _muted(
    rng: np.random.Generator, darkest: float, brightest: float, *, spread: float = 0.4
) -> Colour:
    """A colour of that brightness whose channels differ by up to `spread`, as a share."""
    return rgb(*rng.uniform(darkest, brightest) * rng.uniform(1 - spread, 1 + spread, 3))


def _paint_hall(rng: np.random.Generator) -> Canvas:
    height = int((HALL_TOP - HALL_BOTTOM) * HALL_SCALE)
    width = int((HALL_RIGHT - HALL_LEFT) * HALL_SCALE)
    hall = np.empty((height, width, 3), dtype=np.float32)
    y = HALL_TOP - np.arange(height, dtype=np.float32)[:, None, None] / HALL_SCALE

    box = functools.partial(_paint_metres, hall)
    wall = _muted(rng, 70, 185, spread=0.15)
    hall[:] = wall * (0.75 + 0.03 * y)
    for panel in np.arange(HALL_LEFT + rng.uniform(0, 2), HALL_RIGHT, rng.uniform(1.6, 3.2)):
        box(panel, 8.4, panel + 0.12, HALL_TOP, wall * 0.7)
    if rng.random() < 0.6:  # a band of windows or lamps under the roof
        level = rng.uniform(11.0, 13.0)
        for left in np.arange(HALL_LEFT, HALL_RIGHT, 1.5):
            box(left, level, left + 1.1, level + rng.uniform(0.7, 1.4), rgb(220, 228, 235))
    _paint_crowd(hall, rng, low=3.0, high=rng.uniform(6.0, 8.0))
    banner = _muted(rng, 30, 210)
    box(HALL_LEFT, 2.2, HALL_RIGHT, 3.0, banner)
    for left in np.arange(HALL_LEFT + rng.uniform(0, 1), HALL_RIGHT, 2.2):
        box(left, 2.4, left + rng.uniform(0.6, 1.5), 2.8, 255 - banner)
    box(HALL_LEFT, POOL_FAR_EDGE, HALL_RIGHT, 2.2, _muted(rng, 130, 190, spread=0.2))
    hall[:] = gaussian_filter(hall, (1.1, 1.1, 0))

    deep = rgb(rng.uniform(5, 40), rng.uniform(85, 140), rng.uniform(140, 195))
    depth = np.clip((POOL_FAR_EDGE - y) / 5, 0, 1)
    below = (y < POOL_FAR_EDGE)[:, 0, 0]
    hall[below] = (deep * (1.25 - 0.5 * depth))[below]
    box(HALL_LEFT, POOL_FAR_EDGE - 0.06, HALL_RIGHT, POOL_FAR_EDGE + 0.08, rgb(225, 230, 230))

    concrete = rgb(*rng.uniform(120, 215) * rng.uniform(0.95, 1.05, 3))
    box(HALL_LEFT, HALL_BOTTOM, POOL_LEFT_EDGE, DECK_METRES, concrete * 0.85)
    box(POOL_LEFT_EDGE - 0.12, HALL_BOTTOM, POOL_LEFT_EDGE, DECK_METRES, rgb(225, 230, 230))
    pillar = rng.uniform(-3.6, -2.6)
    box(pillar, 0.1, pillar + rng.uniform(0.8, 1.3), PLATFORM_METRES - 0.1, concrete * 0.8)
    for level, edge in ((7.5, rng.uniform(-1.5, -0.8)), (5.0, rng.uniform(-1.5, -0.6))):
        box(HALL_LEFT, level - 0.25, edge, level, concrete * 0.9)
        box(HALL_LEFT, level - 0.33, edge, level - 0.25, concrete * 0.55)
    mat = _muted(rng, 30, 200)
    box(HALL_LEFT, PLATFORM_METRES - 0.3, 0.0, PLATFORM_METRES, concrete)
    box(HALL_LEFT, PLATFORM_METRES - 0.40, 0.0, PLATFORM_METRES - 0.3, concrete * 0.55)
    box(HALL_LEFT, PLATFORM_METRES - 0.05, 0.0, PLATFORM_METRES, mat)
    for post in np.arange(-5.7, -1.2, 1.1):
        box(post, PLATFORM_METRES, post + 0.05, PLATFORM_METRES + 0.95, concrete * 0.7)
    box(HALL_LEFT, PLATFORM_METRES + 0.9, -1.25, PLATFORM_METRES + 0.97, concrete * 0.7)
    side_light = np.linspace(rng.uniform(0.88, 1.08), rng.uniform(0.88, 1.08), width)
    hall *= side_light[:, None].astype(np.float32)
    return hall


def _paint_metres(
    hall: Canvas, left: float, bottom: float, right: float, top: float, colour: Colour
) -> None:
    """Paint a rectangle given in metres of the scene."""
    paint_box(
        hall,
        (left - HALL_LEFT) * HALL_SCALE,
        (HALL_TOP - top) * HALL_SCALE,
        (right - HALL_LEFT) * HALL_SCALE,
        (HALL_TOP - bottom) * HALL_SCALE,
        colour,
    )


def _paint_crowd(hall: Canvas, rng: np.random.Generator, *, low: float, high: float) -> None:
    """Rows of spectators: a body and a head each, some seats left empty."""
    box = functools.partial(_paint_metres, hall)
    seats = _muted(rng, 40, 150)
    box(HALL_LEFT, low, HALL_RIGHT, high, seats)
    filled = rng.uniform(0.3, 0.95)
    for level in np.arange(low + 0.1, high - 0.4, 0.55):
        for left in np.arange(HALL_LEFT + rng.uniform(0, 0.5), HALL_RIGHT, 0.5):
            if rng.random() > filled:
                continue
            left += rng.normal(0, 0.05)
            box(left, level, left + 0.34, level + 0.33, _muted(rng, 30, 190))
            face = rng.uniform(0.4, 0.95) * rgb(236, 188, 158)
            box(left + 0.09, level + 0.33, left + 0.25, level + 0.52, face.astype(np.float32))


def background(venue: Venue, view: CameraView, seconds: float) -> Canvas:
    """The hall as the camera sees it, with moving ripples; the frame's canvas."""
    columns = np.arange(view.width, dtype=np.float64) - (view.width - 1) / 2
    rows = np.arange(view.height, dtype=np.float64) - (view.height - 1) / 2
    step = HALL_SCALE / view.scale
    canvas = sample_window(
        venue.hall,
        columns * step + (view.centre[0] - HALL_LEFT) * HALL_SCALE,
        rows * step + (HALL_TOP - view.centre[1]) * HALL_SCALE,
    )
    top = max(int(np.ceil(view.row(POOL_FAR_EDGE))), 0)
    if top < view.height:
        # Two layers that drift apart: their sum never repeats within a shot.
        x = (columns + view.centre[0] * view.scale).astype(np.int64)
        y = (rows[top:] - view.centre[1] * view.scale).astype(np.int64)
        drift = int(30 * seconds)
        ripples = _wrapped(venue.ripples, y + drift // 2, x + drift)
        ripples += _wrapped(venue.ripples, 101 + y - drift // 3, 57 - x + drift)
        corner_x, corner_y = view.pixels(np.array([POOL_LEFT_EDGE, DECK_METRES])).astype(int)
        ripples[max(corner_y - top, 0) :, : max(corner_x, 0)] = 0.0
        canvas[top:] += (venue.ripple_strength * ripples)[..., None]
    return canvas


def _wrapped(
    texture: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    return texture[np.ix_(rows % _RIPPLE_SIZE, columns % _RIPPLE_SIZE)]


def develop(
    canvas: Canvas, venue: Venue, *, frame: int, gain: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Light and sensor noise: from a painted canvas to the picture a camera delivers.

    Parameters
    ----------
    canvas : ndarray of float32, shape=(height, width, 3)
        Changed.
    venue : Venue
    frame : int
        Chooses the noise.
    gain : float
        Extra gain, for light that flickers.

    Returns
    -------
    ndarray of uint8, shape=(height, width, 3)
    """
    canvas *= venue.light * np.float32(gain)
    # Cut out at changing places, one field of noise looks new in every frame.
    top, left = (frame * 37) % _NOISE_MARGIN, (frame * 23) % _NOISE_MARGIN
    height, width = canvas.shape[:2]
    canvas += venue.noise[top : top + height, left : left + width]
    np.maximum(canvas, 0, out=canvas)
    return np.minimum(canvas, 255, out=canvas).astype(np.uint8)

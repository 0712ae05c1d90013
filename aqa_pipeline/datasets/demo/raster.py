"""A small anti-aliased rasteriser for the demo's pictures.

Every shape is painted from its signed distance inside its own bounding box, so a limb
costs a few hundred pixels and not a frame.

Conventions
-----------
canvas
    float32, shape ``(height, width, 3)``, RGB, grey levels 0..255, changed in place.
points
    ``(x, y)`` in pixels, y downwards; the centre of the upper left pixel is (0, 0).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Canvas = npt.NDArray[np.float32]
Colour = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

#: Direction of the light in the picture, for the shading of round limbs.
_LIGHT = (-0.55, -0.83)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


def rgb(*levels: float) -> Colour:
    """A colour from its three grey levels."""
    return np.array(levels, dtype=np.float32)


def paint_limb(
    canvas: Canvas,
    start: FloatArray,
    end: FloatArray,
    *,
    radii: tuple[float, float],
    colour: Colour,
    shading: float = 0.22,
) -> None:
    """Paint a rounded limb that tapers from one radius to the other.

    Parameters
    ----------
    canvas : ndarray, shape=(height, width, 3)
    start, end : ndarray, shape=(2,)
        May lie outside the picture, and may be equal: a disc.
    radii : (float, float)
        At `start` and `end`, in pixels.
    colour : ndarray of float32, shape=(3,)
    shading : float
        How much brighter the lit edge is than the middle, as a share.
    """
    height, width = canvas.shape[:2]
    reach = max(radii) + 1.0
    left = max(int(min(start[0], end[0]) - reach), 0)
    right = min(int(max(start[0], end[0]) + reach) + 2, width)
    top = max(int(min(start[1], end[1]) - reach), 0)
    bottom = min(int(max(start[1], end[1]) + reach) + 2, height)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) - np.float32(start[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(start[1])
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    squared = max(dx * dx + dy * dy, np.float32(1e-6))
    # minimum and maximum: np.clip costs several times as much on arrays this small.
    along = np.minimum(np.maximum(x * (dx / squared) + y * (dy / squared), _ZERO), _ONE)
    across_x = x - along * dx
    across_y = y - along * dy
    radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
    distance = np.sqrt(across_x * across_x + across_y * across_y)
    cover = np.minimum(np.maximum(radius - distance + _HALF, _ZERO), _ONE)
    lit = across_x * np.float32(_LIGHT[0] * shading) + across_y * np.float32(_LIGHT[1] * shading)
    light = _ONE + lit / radius
    box = canvas[top:bottom, left:right]
    box += cover[..., None] * (light[..., None] * colour - box)


def paint_box(
    canvas: Canvas, left: float, top: float, right: float, bottom: float, colour: Colour
) -> None:
    """Paint an axis-aligned rectangle with soft edges, clipped to the picture."""
    height, width = canvas.shape[:2]
    columns = slice(max(int(left) - 1, 0), max(min(int(right) + 2, width), 0))
    rows = slice(max(int(top) - 1, 0), max(min(int(bottom) + 2, height), 0))
    box = canvas[rows, columns]
    if box.size == 0:
        return
    x = np.arange(columns.start, columns.start + box.shape[1])
    y = np.arange(rows.start, rows.start + box.shape[0])
    cover_x = np.clip(np.minimum(x - left, right - x) + 0.5, 0, 1).astype(np.float32)
    cover_y = np.clip(np.minimum(y - top, bottom - y) + 0.5, 0, 1).astype(np.float32)
    box += (cover_y[:, None] * cover_x)[..., None] * (colour - box)


def paint_spray(
    canvas: Canvas, points: FloatArray, weights: FloatArray, *, blur: float, colour: Colour
) -> None:
    """Paint many tiny drops at once, as a cloud that grows opaque where they are dense.

    Parameters
    ----------
    canvas : ndarray, shape=(height, width, 3)
    points : ndarray, shape=(n, 2)
    weights : ndarray, shape=(n,)
        How much of a pixel each drop hides.
    blur : float
        Standard deviation of one drop, in pixels.
    colour : ndarray of float32, shape=(3,)
    """
    height, width = canvas.shape[:2]
    cell = np.rint(points).astype(np.int64)
    inside = (cell >= 0).all(axis=1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    if not inside.any():
        return
    cell, weights = cell[inside], weights[inside]
    margin = int(3 * blur) + 1
    low = np.maximum(cell.min(axis=0) - margin, 0)
    high = np.minimum(cell.max(axis=0) + margin + 1, (width, height))
    box_width, box_height = high - low
    flat = (cell[:, 1] - low[1]) * box_width + cell[:, 0] - low[0]
    density = np.bincount(flat, weights, minlength=box_width * box_height)
    density = gaussian_filter(
        density.reshape(box_height, box_width).astype(np.float32), blur, truncate=2.5
    )
    box = canvas[low[1] : high[1], low[0] : high[0]]
    box += -np.expm1(-density)[..., None] * (colour - box)


def sample_window(panorama: Canvas, columns: FloatArray, rows: FloatArray) -> Canvas:
    """Cut a window out of a larger picture, at any scale, bilinearly.

    Parameters
    ----------
    panorama : ndarray of float32, shape=(H, W, 3)
    columns : ndarray, shape=(width,)
    rows : ndarray, shape=(height,)
        Where the window's pixels lie in the panorama; beyond its border the border repeats.

    Returns
    -------
    ndarray of float32, shape=(height, width, 3)
        A new array.
    """
    y0, y_part = _split(rows, len(panorama))
    x0, x_part = _split(columns, panorama.shape[1])
    first = int(x0.min())
    strip = panorama[:, first : int(x0.max()) + 2]
    x0 = x0 - first
    upper = strip[y0]
    upper += y_part[:, None, None] * (strip[y0 + 1] - upper)
    left = upper.take(x0, axis=1)
    left += x_part[None, :, None] * (upper.take(x0 + 1, axis=1) - left)
    return left


def _split(places: FloatArray, size: int) -> tuple[npt.NDArray[np.int64], Canvas]:
    whole = np.clip(np.floor(places), 0, size - 2).astype(np.int64)
    return whole, np.clip(places - whole, 0, 1).astype(np.float32)

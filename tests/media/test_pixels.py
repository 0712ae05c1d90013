"""From a decoded frame to the network's pixels: resizing and cropping."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset
from aqa_pipeline.media.reader import VideoReader, _Crop, planes_are_equal
from tests.support.videos import write_video

SMALL = PixelPreset("small", crop=48, short_side=48)


@pytest.mark.parametrize(
    ("preset", "size", "expected"),
    [
        (PIXEL_PRESETS["kinetics"], (320, 240), 224),
        (PIXEL_PRESETS["core"], (240, 320), 224),
        (PixelPreset("as it is", crop=40), (64, 48), 40),
    ],
)
def test_pixel_presets_give_the_crop(
    tmp_path: Path, preset: PixelPreset, size: tuple[int, int], expected: int
) -> None:
    path = write_video(tmp_path / "v.mp4", 3, size=size)
    with VideoReader(path, preset) as reader:
        frames = reader.read(np.arange(3)).frames
    assert frames.shape == (3, expected, expected, 3)
    assert frames.dtype == np.uint8


def test_short_side_keeps_the_aspect_and_crops_the_middle(tmp_path: Path) -> None:
    # A grey ramp from left to right: the crop holds the middle 48 of 96 columns.
    folder = tmp_path / "ramp"
    folder.mkdir()
    ramp = np.tile(np.arange(192, dtype=np.uint8)[None, :, None], (96, 1, 3))
    av.VideoFrame.from_ndarray(ramp, format="rgb24").save(folder / "1.png")
    with VideoReader(folder, SMALL) as reader:
        columns = reader.read(np.array([0])).frames[0, 24, :, 0].astype(int)
    np.testing.assert_allclose(columns, 48.5 + 2 * np.arange(48), atol=1.5)


def noise(size: tuple[int, int], pixel_format: str, *, colorspace: int = 0) -> av.VideoFrame:
    frame = av.VideoFrame(*size, pixel_format)
    rng = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    if colorspace:
        frame.colorspace = colorspace
    return frame


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("colorspace", [0, 1])  # unspecified, and that of HD television
@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((640, 360), (455, 256)),
        ((1280, 720), (455, 256)),
        ((640, 480), (341, 256)),
        ((641, 361), (455, 256)),
        ((454, 256), (455, 256)),
        ((300, 170), (229, 129)),
    ],
)
def test_resizing_to_planes_is_equal_to_the_bit_where_it_is_done(
    pixel_format: str, colorspace: int, size: tuple[int, int], resized: tuple[int, int]
) -> None:
    frame = noise(size, pixel_format, colorspace=colorspace)
    width, height = resized
    assert planes_are_equal(frame, width=width, height=height)
    found = _Crop(PixelPreset("x", crop=100, size=resized))(frame, where="")
    rgb = frame.reformat(
        width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
    ).to_ndarray()
    top, left = (height - 100) // 2, (width - 100) // 2
    assert np.array_equal(found, rgb[top : top + 100, left : left + 100])


@pytest.mark.parametrize(
    ("size", "pixel_format", "resized"),
    [
        ((640, 360), "yuv420p", (456, 256)),  # pairs of pixels share a colour
        ((176, 128), "yuv420p", (455, 256)),  # enlarged: a level apart
        ((455, 256), "yuv420p", (455, 256)),  # not resized: another function
        ((640, 360), "yuv420p10le", (455, 256)),
    ],
)
def test_other_pictures_are_resized_to_rgb(
    size: tuple[int, int], pixel_format: str, resized: tuple[int, int]
) -> None:
    frame = noise(size, pixel_format)
    assert not planes_are_equal(frame, width=resized[0], height=resized[1])

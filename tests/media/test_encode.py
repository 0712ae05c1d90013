"""Pictures and films for browsers, read back by another reader."""

from __future__ import annotations

import base64
import io

import av
import numpy as np

from aqa_pipeline.media.encode import data_address, jpeg, mp4, png, side_by_side
from tests.support.videos import frame_numbers, picture


def test_a_film_has_its_frames_rate_and_a_size_that_plays() -> None:
    frames = np.stack([picture(n, size=(65, 49)) for n in range(20)])
    with av.open(io.BytesIO(mp4(frames, frames_per_second=12.5)), "r") as film:
        stream = film.streams.video[0]
        assert (stream.width, stream.height) == (64, 48)
        assert stream.average_rate == 12.5
        assert stream.codec_context.pix_fmt == "yuv420p"
        decoded = [np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in film.decode(stream)]
    assert frame_numbers(decoded) == list(range(20))


def test_pictures_and_their_addresses() -> None:
    frame = np.zeros((16, 24, 3), np.uint8)
    frame[:, 12:] = (250, 10, 10)
    assert jpeg(frame)[:3] == b"\xff\xd8\xff"
    kind, content = data_address(png(frame), "image/png").split(",")
    assert kind == "data:image/png;base64"
    with av.open(io.BytesIO(base64.b64decode(content)), "r") as file:
        (read,) = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    np.testing.assert_array_equal(read, frame)


def test_films_stand_beside_each_other() -> None:
    film = side_by_side(np.zeros((3, 4, 6, 3), np.uint8), np.ones((3, 4, 2, 3), np.uint8), gap=2)
    assert film.shape == (3, 4, 10, 3)
    np.testing.assert_array_equal(film[0, 0, :, 0], [0] * 6 + [255] * 2 + [1] * 2)

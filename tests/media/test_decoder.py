"""Signs of damage that a decoder gives one at a time, each in a file that has no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from aqa_pipeline.config import PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.decoder import _configure
from aqa_pipeline.media.index import open_container
from aqa_pipeline.media.reader import VideoReader, read_index
from tests.support.videos import frame_numbers, write_folder, write_video

SMALL = PixelPreset("small", crop=48, short_side=48)


def packet_bytes(path: Path, rank: int) -> tuple[int, int]:
    """Where a packet lies in its file: first byte and the one after its last."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][rank]
    assert packet.pos is not None
    return packet.pos, packet.pos + packet.size


def overwritten(path: Path, at: int, value: bytes) -> Path:
    """A copy of a file with some bytes changed."""
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    copy = path.with_stem("damaged")
    copy.write_bytes(data)
    return copy


def is_only_flagged(path: Path) -> bool:
    """Whether the decoder refuses no packet, yet calls a picture corrupt."""
    container, stream = open_container(path)
    _configure(stream.codec_context)
    with container:
        try:
            pictures = [frame for packet in container.demux(stream) for frame in packet.decode()]
        except av.error.FFmpegError:
            return False
    return len(pictures) == 24 and any(frame.is_corrupt for frame in pictures)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_picture_that_the_decoder_calls_corrupt_fails_its_window(
    tmp_path: Path, codec: str
) -> None:
    path = write_video(tmp_path / "v.mp4", 24, codec=codec, b_frames=0)
    begin, end = packet_bytes(path, 5)

    def damaged() -> Iterator[Path]:
        for at in reversed(range(begin + 5, end - 1)):
            for value in (b"\x94\x66", b"\xaa", b"\x00\x00"):
                yield overwritten(path, at, value)

    found = next((copy for copy in damaged() if is_only_flagged(copy)), None)
    assert found is not None, "no damage of this packet leaves a corrupt picture without an error"
    with VideoReader(found, SMALL) as reader:
        with pytest.raises(ClipError, match=r"damaged at or before .*frame 5 is corrupt"):
            reader.read(np.arange(4, 7))
        assert frame_numbers(reader.read(np.arange(5)).frames) == [0, 1, 2, 3, 4]


def test_a_picture_that_the_decoder_leaves_out_is_missed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 24, codec="mpeg4", b_frames=0)
    begin, _ = packet_bytes(path, 4)
    # Behind its start code a picture says its type in two bits: one that leans on a later
    # picture, of which there is none, is left out without a word.
    assert path.read_bytes()[begin : begin + 4] == b"\x00\x00\x01\xb6"
    kind = path.read_bytes()[begin + 4]
    found = overwritten(path, begin + 4, bytes([kind & 0x3F | 0x80]))
    assert read_index(found).num_frames == 24
    with VideoReader(found, SMALL) as reader:
        with pytest.raises(ClipError, match=r"damaged at or before .*frame 4 is lost"):
            reader.read(np.arange(3, 6))
        assert frame_numbers(reader.read(np.arange(4)).frames) == [0, 1, 2, 3]


def test_damage_of_the_last_packet_that_a_window_needs_fails_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.ts", 24, codec="mpeg2video", b_frames=0)
    with av.open(str(path)) as container:
        number = container.streams.video[0].id
    data = path.read_bytes()
    starts = [
        at
        for at in range(0, len(data), 188)
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == number and data[at + 1] & 0x40
    ]
    # The transport error indicator: the packet is whole, and says that it may not be.
    found = overwritten(path, starts[6] + 1, bytes([data[starts[6] + 1] | 0x80]))
    with av.open(str(found)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    (last,) = [position for position, packet in enumerate(packets) if packet.is_corrupt]
    assert last > 0
    with VideoReader(found, SMALL) as reader:
        assert frame_numbers(reader.read(np.arange(last)).frames) == list(range(last))
    marked = "a packet is cut short or marked as corrupt"
    with VideoReader(found, SMALL) as reader, pytest.raises(ClipError, match=marked):
        reader.read(np.arange(last + 1))


def test_a_picture_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", 3)
    picture = folder / "00000002.png"
    data = bytearray(picture.read_bytes())
    checksum = data.index(b"IEND") - 8  # of the pixels: before the length of what follows
    data[checksum] ^= 1
    picture.write_bytes(data)
    with VideoReader(folder, SMALL) as reader:
        with pytest.raises(ClipError, match=r"00000002\.png"):
            reader.read(np.arange(3))
        assert frame_numbers(reader.read(np.array([0, 2])).frames) == [0, 2]


@pytest.mark.parametrize(
    "settings",
    [
        "open-gop=1:bframes=3:keyint=8:min-keyint=8",  # broadcasts, Blu-ray discs
        "intra-refresh=1:bframes=0:keyint=8",  # low-latency streams
    ],
)
def test_keyframes_that_others_lean_across_are_no_damage(tmp_path: Path, settings: str) -> None:
    options = {"x264-params": settings}
    path = write_video(tmp_path / "v.mp4", 40, options=options)
    for start in range(38):
        with VideoReader(path, SMALL) as reader:
            frames = reader.read(np.arange(start, start + 2)).frames
        assert frame_numbers(frames) == [start, start + 1]


def test_pictures_that_lead_their_keyframe_are_passed_over(tmp_path: Path) -> None:
    """HEVC has leading pictures that can be decoded: they come before the keyframe."""
    try:
        av.Codec("libx265", "w")
    except av.error.FFmpegError:
        pytest.skip("this build of PyAV cannot encode libx265")
    settings = "log-level=none:open-gop=0:radl=2:bframes=3:keyint=8:min-keyint=8:scenecut=0"
    options = {"x265-params": f"{settings}:b-adapt=0"}
    path = write_video(tmp_path / "v.mp4", 40, codec="libx265", options=options)
    index = read_index(path)
    key = index.key_position(3)
    leading = index.rank[:key] > index.key_rank[3]
    assert leading.sum() == 2
    with VideoReader(path, SMALL, index=index) as reader:
        assert frame_numbers(reader.read(np.arange(key, key + 2)).frames) == [key, key + 1]
        # The two that lead, the window, and the few that come with its last packet: it did not
        # start at an earlier keyframe.
        assert reader.num_decoded <= 2 + 2 + 3
        assert frame_numbers(reader.read(np.arange(key - 2, key)).frames) == [key - 2, key - 1]

"""Decoding, checked to the frame on videos whose pictures say their number."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset
from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.reader import VideoReader, read_index
from tests.support.places import ROOT
from tests.support.videos import frame_number, frame_numbers, picture, write_folder, write_video

SMALL = PixelPreset("small", crop=48, short_side=48)

#: file name, encoder, whether packet times can be trusted
FORMATS = [
    ("h264.mp4", "libx264", True),
    ("h264.mkv", "libx264", True),
    ("h264.ts", "libx264", True),
    ("h264.avi", "libx264", False),
    ("raw.h264", "libx264", False),
    ("hevc.mp4", "libx265", True),
    ("vp8.webm", "libvpx", True),
    ("vp9.webm", "libvpx-vp9", True),
    ("mpeg4.mp4", "mpeg4", True),
    ("mpeg4.avi", "mpeg4", False),
    ("mpeg2.mpg", "mpeg2video", True),
    ("mjpeg.avi", "mjpeg", True),
    ("ffv1.mkv", "ffv1", True),
    ("anim.gif", "gif", True),
]


def read_numbers(path: Path, positions: list[int] | range) -> list[int]:
    with VideoReader(path, SMALL) as reader:
        return frame_numbers(reader.read(np.array(positions)).frames)


def require_encoder(codec: str) -> None:
    try:
        av.Codec(codec, "w")
    except av.error.FFmpegError:
        pytest.skip(f"this build of PyAV cannot encode {codec}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of H.264 with B-frames, a keyframe every 12."""
    return write_video(tmp_path_factory.mktemp("plain") / "plain.mp4", 60)


@pytest.mark.parametrize(("name", "codec", "timed"), FORMATS)
def test_every_format_gives_each_position_its_frame(
    tmp_path: Path, name: str, codec: str, timed: bool
) -> None:
    require_encoder(codec)
    path = write_video(tmp_path / name, 40, codec=codec)
    index = read_index(path)
    assert (index.num_frames, index.timed) == (40, timed)
    assert (index.width, index.height) == (64, 48)
    assert read_numbers(path, range(40)) == list(range(40))
    with VideoReader(path, SMALL, index=index) as reader:
        for start in (25, 3, 30, 37, 12, 11):  # forward, back, on and before a keyframe
            window = reader.read(np.arange(start, start + 3))
            assert frame_numbers(window.frames) == [start, start + 1, start + 2]
            seconds = window.pts_seconds - index.pts_seconds(np.array([0]))
            np.testing.assert_allclose(seconds, np.arange(start, start + 3) / 25, atol=1e-3)


def test_times_that_do_not_start_at_zero_nor_step_evenly(tmp_path: Path) -> None:
    pts = np.cumsum([7000] + [40, 1, 500, 33] * 9)
    path = write_video(tmp_path / "v.mkv", 37, pts=pts.tolist(), time_base=Fraction(1, 1000))
    with VideoReader(path, SMALL) as reader:
        window = reader.read(np.array([0, 5, 18, 36]))
    assert frame_numbers(window.frames) == [0, 5, 18, 36]
    np.testing.assert_allclose(window.pts_seconds, pts[[0, 5, 18, 36]] / 1000)


@pytest.mark.parametrize("cut", [5, 14])
def test_frames_an_edit_list_hides_are_not_counted(plain: Path, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "edited.mp4"
    muxer = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(plain)) as source, av.open(str(path), "w", options=muxer) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            shift = cut * 512
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            target.mux(packet)
    num_frames = read_index(path).num_frames
    assert num_frames < 60
    # What a player shows: the decoder drops what the demuxer marks.
    with av.open(str(path)) as container:
        shown = [
            frame_number(np.asarray(f.to_ndarray(format="rgb24"), np.uint8))
            for f in container.decode(video=0)
        ]
    assert shown == list(range(60 - num_frames, 60))
    assert read_numbers(path, range(num_frames)) == shown
    assert read_numbers(path, [0, 1]) == shown[:2]
    assert read_numbers(path, [20, 21]) == shown[20:22]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_in_the_metadata_is_applied(tmp_path: Path, degrees: int) -> None:
    path = write_video(tmp_path / "v.mp4", 12, rotation=degrees)
    with VideoReader(path, SMALL) as reader:
        image = reader.read(np.array([9])).frames[0]
    # Turned back, the 64x48 picture was cropped to its middle 48 columns.
    upright = np.rot90(image, -degrees // 90)
    assert frame_number(upright) == 9
    if degrees != 180:
        assert np.ptp(image[10:38, :, 0].mean(axis=0)) > 30  # the bands now run downwards


def test_cover_art_is_not_the_video(plain: Path, tmp_path: Path) -> None:
    cover_only, with_video = tmp_path / "sound.mp4", tmp_path / "cover.mp4"
    for path in (cover_only, with_video):
        with av.open(str(plain)) as source, av.open(str(path), "w") as target:
            cover = target.add_stream("png", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
            cover.disposition = av.stream.Disposition.attached_pic
            image = av.VideoFrame.from_ndarray(picture(63, size=(32, 32)), format="rgb24")
            if path is cover_only:
                sound = target.add_stream("aac", rate=8000)
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate = 8000
                target.mux([*sound.encode(silence), *sound.encode(None)])
            else:
                copy = target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(source.streams.video[0]):
                    if packet.dts is not None:
                        packet.stream = copy
                        target.mux(packet)
            target.mux([*cover.encode(image), *cover.encode(None)])
        with av.open(str(path)) as container:
            pictures = [stream.disposition for stream in container.streams.video]
        assert any(flags & av.stream.Disposition.attached_pic for flags in pictures)
    assert read_index(with_video).num_frames == 60
    assert read_numbers(with_video, [0, 33]) == [0, 33]
    with pytest.raises(ClipError, match="no video stream that can be decoded"):
        read_index(cover_only)


def test_a_late_window_decodes_from_its_keyframe_only(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", 5300, gop=50)
    with VideoReader(path, SMALL) as reader:
        assert frame_numbers(reader.read(np.arange(5010, 5113)).frames) == list(range(5010, 5113))
        # 10 from the keyframe at 5000 on, 103 wanted, and the few that come with the last.
        assert 113 <= reader.num_decoded <= 118


def test_windows_in_order_decode_each_frame_once(plain: Path) -> None:
    with VideoReader(plain, SMALL) as reader:
        for start in (0, 10, 20, 22, 23):  # overlapping, then nearly equal
            window = reader.read(np.arange(start, start + 20))
            assert frame_numbers(window.frames) == list(range(start, start + 20))
        assert reader.num_decoded <= 43 + 3


def test_a_spread_window_jumps_to_keyframes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "spread.mp4", 600, gop=10)
    with VideoReader(path, SMALL) as reader:
        wanted = np.arange(0, 600, 60)
        assert frame_numbers(reader.read(wanted).frames) == wanted.tolist()
        assert reader.num_decoded < 60


def test_repeated_positions_are_decoded_once(plain: Path) -> None:
    with VideoReader(plain, SMALL) as reader:
        window = reader.read(np.array([0, 0, 0, 1, 2, 2]))
        assert frame_numbers(window.frames) == [0, 0, 0, 1, 2, 2]
        window = reader.read(np.array([2, 2, 3, 3]))
        assert frame_numbers(window.frames) == [2, 2, 3, 3]
        assert not window.frames.flags.writeable


def test_a_crop_larger_than_the_picture_is_refused(plain: Path) -> None:
    preset = PixelPreset("big", crop=50, size=(64, 48))
    with (
        VideoReader(plain, preset) as reader,
        pytest.raises(ClipError, match="too small for the 50x50"),
    ):
        reader.read(np.array([0]))


def test_a_change_of_picture_size_midway(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{width}.h264", 12, size=(width, width * 3 // 4), b_frames=0)
        for width in (64, 128)
    ]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read_numbers(path, range(24)) == [*range(12), *range(12)]


@pytest.mark.parametrize("pattern", ["{:08d}.png", "img_{:05d}.jpg", "{}.png"])
def test_a_frame_folder_is_a_video(tmp_path: Path, pattern: str) -> None:
    folder = write_folder(tmp_path / "frames", 12, first=7, pattern=pattern)
    (folder / "readme.txt").write_text("not a picture")
    assert read_index(folder).num_frames == 12
    with VideoReader(folder, SMALL) as reader:
        window = reader.read(np.array([0, 0, 5, 11]))
        assert frame_numbers(window.frames) == [0, 0, 5, 11]
        assert np.isnan(window.pts_seconds).all()
        reader.read(np.array([5, 6, 11]))
        assert reader.num_decoded == 4


def test_a_gap_in_a_frame_folder_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", 6)
    (folder / "00000003.png").unlink()
    with pytest.raises(ClipError, match=r"number 3 missing between 00000002.png and .*4.png"):
        read_index(folder)


def test_two_pictures_of_one_number_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", 3)
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(ClipError, match="both have number 2"):
        read_index(folder)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_damaged_picture_fails_only_its_window(tmp_path: Path, suffix: str) -> None:
    folder = write_folder(tmp_path / "frames", 4, pattern="{:04d}." + suffix)
    bad = folder / f"0003.{suffix}"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    with VideoReader(folder, SMALL) as reader:
        with pytest.raises(ClipError, match=f"0003.{suffix}") as caught:
            reader.read(np.arange(4))
        assert caught.value.stage == "decode"
        assert frame_numbers(reader.read(np.array([0, 1, 3])).frames) == [0, 1, 3]


def damage_packet(path: Path, rank: int) -> None:
    """Overwrite the middle of one packet, in decode order, with noise."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][rank]
        begin, size = packet.pos, packet.size
    assert begin is not None
    data = bytearray(path.read_bytes())
    data[begin : begin + size] = b"\xff" * size
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "codec"), [("v.mp4", "libx264"), ("h.mp4", "libx265"), ("m.mp4", "mpeg4")]
)
def test_damage_fails_the_windows_that_depend_on_it_and_no_other(
    tmp_path: Path, name: str, codec: str
) -> None:
    require_encoder(codec)
    path = write_video(tmp_path / name, 48, codec=codec, b_frames=0, options={"sc_threshold": "0"})
    index = read_index(path)
    keys = [index.key_position(key) for key in range(len(index.key_pts))]
    begin, end = keys[1], keys[2]
    damage_packet(path, begin + 4)
    with VideoReader(path, SMALL) as reader:
        for first, last in ((begin, end), (begin + 4, begin + 5), (end - 1, end), (0, 48)):
            with pytest.raises(ClipError, match="damaged at or before the frames") as caught:
                reader.read(np.arange(first, last))
            assert caught.value.stage == "decode"
            assert caught.value.detail
        for first, last in ((0, begin), (begin, begin + 4), (end, 48)):
            window = reader.read(np.arange(first, last))
            assert frame_numbers(window.frames) == list(range(first, last))
    # Also when the reader reaches the damage by going on from a whole window.
    with VideoReader(path, SMALL) as reader:
        reader.read(np.arange(begin, begin + 4))
        with pytest.raises(ClipError, match="damaged at or before"):
            reader.read(np.arange(begin + 5, begin + 7))
        assert frame_numbers(reader.read(np.arange(end, end + 2)).frames) == [end, end + 1]


def test_a_file_cut_short_has_the_frames_it_has(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    num_frames = read_index(path).num_frames
    assert 20 < num_frames < 60
    assert read_numbers(path, range(20)) == list(range(20))


def test_a_video_that_cannot_be_opened_says_why(plain: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    no_moov = tmp_path / "cut.mp4"
    no_moov.write_bytes(plain.read_bytes()[:600])
    text = tmp_path / "text.mp4"
    text.write_text("not a video " * 100)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        silence.sample_rate = 8000
        output.mux([*stream.encode(silence), *stream.encode(None)])
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, sentence in (
        (tmp_path / "absent.mp4", "no video at .*absent.mp4: check the column `video`"),
        (empty, "has zero bytes"),
        (no_moov, "cannot read .*cut.mp4 as a video"),
        (text, "cannot read .*text.mp4 as a video"),
        (sound, "no video stream that can be decoded .it holds: audio"),
        (folder, "holds no numbered picture"),
    ):
        with pytest.raises(ClipError, match=sentence) as caught:
            read_index(path)
        assert caught.value.stage == "open"


@pytest.mark.parametrize("positions", [[-1, 0], [58, 59, 60]])
def test_positions_outside_the_video_are_refused(plain: Path, positions: list[int]) -> None:
    with VideoReader(plain, SMALL) as reader:
        with pytest.raises(ClipError, match="the video has frames 0 to 59") as caught:
            reader.read(np.array(positions))
        assert caught.value.stage == "window"


@pytest.mark.parametrize("positions", [[3, 2], []])
def test_a_window_is_ascending_and_not_empty(plain: Path, positions: list[int]) -> None:
    with VideoReader(plain, SMALL) as reader, pytest.raises(ClipError, match="non-empty list"):
        reader.read(np.array(positions, dtype=np.int64))


def test_a_name_with_a_colon_or_percent_sign_is_a_file(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "http: 50%d.mp4"
    path.write_bytes(plain.read_bytes())
    assert read_numbers(path, [7]) == [7]


MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from aqa_pipeline.config import PixelPreset
from aqa_pipeline.media.reader import VideoReader
reader = VideoReader(Path(sys.argv[1]), PixelPreset("small", crop=48, short_side=48))
reader.read(np.arange(5))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reader.read(np.array([5, 599]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_frames_passed_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 600, size=(640, 360), gop=600)
    output = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    # All frames passed over would be 600 * 345,600 bytes = 207 MB.
    assert int(output) * unit < 40e6


#: frames, and whether all of them decode
REAL_FILES = {
    "demo.mp4": (280, True),
    "test.avi": (164, True),
    "no_duration.webm": (74, True),
    "unordered.mov": (4, True),
    "video_90.mov": (3, True),
    "corrupted.mp4": (50, False),
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_awkward_real_files(name: str) -> None:
    folder = os.environ.get("AQA_REAL_DATA")
    if not folder or not (Path(folder) / "media" / name).exists():
        pytest.skip(f"AQA_REAL_DATA does not name a folder with media/{name}")
    path = Path(folder) / "media" / name
    num_frames, is_whole = REAL_FILES[name]
    assert read_index(path).num_frames == num_frames
    with VideoReader(path, PIXEL_PRESETS["kinetics"]) as reader:
        reader.read(np.arange(min(num_frames, 28)))
        if is_whole:
            reader.read(np.arange(num_frames))
        else:
            with pytest.raises(ClipError, match="damaged at or before the frames"):
                reader.read(np.arange(num_frames))

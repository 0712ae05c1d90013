"""Bad videos as people and strangers hand them in, each with the words that refuse it.

``BAD`` is a table of makers. Each writes into an empty folder and returns the path to hand in;
``says`` is found in the one line that refuses it. ``ODD`` is the same for what looks odd and must
be scored all the same.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import wave
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.support.videos import write_folder, write_video

#: Enough for the window of the tests that use the table.
FRAMES = 24


@dataclass(frozen=True)
class BadVideo:
    """One thing to hand in.

    Attributes
    ----------
    name : str
    make : callable
        Writes it into a folder, returns its path.
    says : str
        Regular expression found in the refusal; empty for what is scored.
    is_upload : bool
        Whether a browser could send it: one file with contents.
    """

    name: str
    make: Callable[[Path], Path]
    says: str = ""
    is_upload: bool = True


def _written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


def good_video(folder: Path, name: str = "good.mp4", **options: Any) -> Path:
    """A video that is scored."""
    return write_video(folder / name, FRAMES, **{"size": (160, 128), **options})


def _truncated(folder: Path) -> Path:
    path = good_video(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _truncated_after_the_index(folder: Path) -> Path:
    path = good_video(folder, container={"movflags": "faststart"}, gop=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def _damaged(folder: Path) -> Path:
    path = good_video(folder, options={"crf": "1"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 800
    content[start : start + 2000] = bytes(2000)
    path.write_bytes(content)
    return path


def _patched(folder: Path, box: bytes, offset: int, value: bytes) -> Path:
    """A good video with bytes of one box overwritten, counted from behind the box's name."""
    path = good_video(folder)
    content = bytearray(path.read_bytes())
    place = content.index(box) + 4 + offset
    content[place : place + len(value)] = value
    path.write_bytes(content)
    return path


def _sound(folder: Path, name: str = "sound.wav") -> Path:
    with wave.open(str(folder / name), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    return folder / name


def _sound_in_mp4(folder: Path) -> Path:
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def _song_with_cover(folder: Path) -> Path:
    picture = _png(32, 32)
    art = b"\x00image/png\x00\x03\x00" + picture
    size = len(art)
    frame = b"APIC" + struct.pack(">I", size) + b"\x00\x00" + art
    total = len(frame)
    synchsafe = bytes((total >> shift) & 0x7F for shift in (21, 14, 7, 0))
    # MPEG 1 layer 3, 128 kbit/s, 44.1 kHz: 417 bytes a frame.
    sound = (b"\xff\xfb\x90\x00" + bytes(413)) * 20
    path = folder / "song.mp3"
    path.write_bytes(b"ID3\x03\x00\x00" + synchsafe + frame + sound)
    return path


def _png(width: int, height: int, *, data: bytes | None = None) -> bytes:
    """A grey picture; ``data`` in place of its pixels, for sizes nobody should allocate."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height)) if data is None else data
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _picture_folder(width: int, height: int, *, data: bytes | None = None) -> Callable[..., Path]:
    def make(folder: Path) -> Path:
        frames = folder / "frames"
        frames.mkdir()
        for number in range(FRAMES):
            (frames / f"{number:04d}.png").write_bytes(_png(width, height, data=data))
        return frames

    return make


def _gif_bomb(folder: Path) -> Path:
    """A few bytes that claim 65,535 x 65,535 pixels, many times."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00"
    path = folder / "bomb.gif"
    path.write_bytes(screen + (b"\x21\xf9\x04\x00\x0a\x00\x00\x00" + picture) * 500 + b"\x3b")
    return path


def _raw_avi(width: int, height: int, frames: int = FRAMES) -> Callable[[Path], Path]:
    """Uncompressed pictures of any size a header can name, few bytes of each."""

    def make(folder: Path) -> Path:
        def box(kind: bytes, content: bytes) -> bytes:
            return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

        main = struct.pack("<14I", 40000, 0, 0, 16, frames, 0, 1, 0, width, height, 0, 0, 0, 0)
        stream = b"vids" + struct.pack(
            "<IIHHIIIIIIII4H", 0, 0, 0, 0, 0, 1, 25, 0, frames, 0, 0, 0, 0, 0, 0, 0
        )
        form = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        row = (width * 3 + 3) // 4 * 4
        picture = box(b"00db", bytes(min(row * height, 300_000)))
        header = b"hdrl" + box(b"avih", main)
        header += box(b"LIST", b"strl" + box(b"strh", stream) + box(b"strf", form))
        content = b"AVI " + box(b"LIST", header) + box(b"LIST", b"movi" + picture * frames)
        path = folder / "raw.avi"
        path.write_bytes(box(b"RIFF", content))
        return path

    return make


def _zip(folder: Path) -> Path:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("video.mp4", bytes(1000))
    return _written("video.mp4", data.getvalue())(folder)


def _playlist(name: str, text: str) -> Callable[[Path], Path]:
    """A text that names a good video beside it, which must not be opened."""

    def make(folder: Path) -> Path:
        good_video(folder)
        return _written(name, text.encode())(folder)

    return make


def _pattern(folder: Path) -> Path:
    write_folder(folder / "frames", 30, pattern="{:03d}.png", size=(160, 128))
    return _written("%03d.png", (folder / "frames" / "001.png").read_bytes())(folder / "frames")


def _loop(folder: Path) -> Path:
    (folder / "a.mp4").symlink_to(folder / "b.mp4")
    (folder / "b.mp4").symlink_to(folder / "a.mp4")
    return folder / "a.mp4"


def _dangling(folder: Path) -> Path:
    (folder / "a.mp4").symlink_to(folder / "gone.mp4")
    return folder / "a.mp4"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def _socket(folder: Path) -> Path:
    path = folder / "s.mp4"
    before = Path.cwd()
    os.chdir(folder)  # the name of a socket has at most 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)
    return path


def _empty_folder(folder: Path) -> Path:
    (folder / "video.mp4").mkdir()
    return folder / "video.mp4"


def _gap(folder: Path) -> Path:
    frames = write_folder(folder / "frames", FRAMES, size=(160, 128))
    (frames / "00000007.png").unlink()
    return frames


def _broken_picture(folder: Path) -> Path:
    frames = write_folder(folder / "frames", FRAMES, size=(160, 128))
    for picture in frames.iterdir():
        picture.write_bytes(picture.read_bytes()[:40])
    return frames


def _one_frame(folder: Path) -> Path:
    return write_video(folder / "one.mp4", 1, size=(160, 128))


def _thin(folder: Path) -> Path:
    return write_video(folder / "thin.mov", FRAMES, codec="png", size=(2, 4000))


def _header_only(folder: Path) -> Path:
    path = folder / "none.mkv"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        output.start_encoding()
    return path


def _named(name: str) -> Callable[[Path], Path]:
    return lambda folder: good_video(folder).rename(folder / name)


def _odd(pixel_format: str, codec: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        with av.open(str(path), "w") as output:
            stream: Any = output.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 160, 128, pixel_format
            stream.codec_context.time_base = Fraction(1, 25)
            for number in range(FRAMES):
                frame = av.VideoFrame(160, 128, "rgb24").reformat(format=pixel_format)
                frame.pts = number
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path

    return make


_SUBTITLES = b"1\n00:00:01,000 --> 00:00:04,000\nHello\n"
_SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
_HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"
_DASH = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>'
_NOT_READ = "cannot read|is not a video|no video|not one frame|nothing"

BAD: tuple[BadVideo, ...] = (
    BadVideo("a text", _written("clip.mp4", b"this is not a video\n" * 50), _NOT_READ),
    BadVideo("zero bytes", _written("clip.mp4", b""), "zero bytes"),
    BadVideo("random bytes", _written("clip.mp4", np.random.default_rng(0).bytes(9999)), _NOT_READ),
    BadVideo("a web page", _written("clip.mp4", b"<!DOCTYPE html><p>404"), "web page"),
    BadVideo("sound", _sound, "no video stream"),
    BadVideo("sound in mp4", _sound_in_mp4, "no video stream"),
    BadVideo("a song with a cover", _song_with_cover, "no video stream"),
    BadVideo("one frame", _one_frame, "1 frame"),
    BadVideo("no frame", _header_only, _NOT_READ),
    BadVideo("cut in half", _truncated, _NOT_READ),
    BadVideo("cut behind the index", _truncated_after_the_index, "damaged|cut|corrupt"),
    BadVideo("damaged pictures", _damaged, "damaged"),
    BadVideo("100,000 x 1 pixels", _raw_avi(100_000, 1), "100000 x 1 pixels"),
    BadVideo("2 x 4000 pixels", _thin, "2 x 4000 pixels"),
    BadVideo("1 x 1 pixel", _raw_avi(1, 1), "1 x 1 pixels"),
    BadVideo("0 x 0 pixels", _raw_avi(0, 0), "no size|not one frame"),
    BadVideo("60,000 x 60,000 pixels", _raw_avi(60_000, 60_000, 2), "no size"),
    BadVideo("a GIF bomb", _gif_bomb, "no size"),
    BadVideo("a playlist", _playlist("clip.m3u8", _HLS), "playlist"),
    BadVideo("a playlist as mp4", _playlist("clip.mp4", _HLS), "playlist"),
    BadVideo(
        "a concat script",
        _playlist("clip.mp4", "ffconcat version 1.0\nfile good.mp4\n"),
        "playlist",
    ),
    BadVideo("a DASH manifest", _playlist("clip.mpd", _DASH), "XML"),
    BadVideo("a session description", _written("clip.sdp", _SDP), _NOT_READ),
    BadVideo("subtitles", _written("clip.srt", _SUBTITLES), _NOT_READ),
    BadVideo("a PNG", _written("clip.mp4", _png(160, 128)), "a picture"),
    BadVideo("a JPEG", _written("clip.jpg", b"\xff\xd8\xff\xe0" + bytes(500)), "a picture"),
    BadVideo("an SVG", _written("clip.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG"),
    BadVideo("a PDF", _written("clip.pdf", b"%PDF-1.7\n" + bytes(500)), "a PDF"),
    BadVideo("a zip archive", _zip, "a zip archive"),
    BadVideo("a program", _written("clip.mp4", b"\x7fELF" + bytes(500)), "a program"),
    BadVideo("a name like a pattern", _pattern, "a picture", is_upload=False),
    BadVideo("nothing there", lambda folder: folder / "gone.mp4", "no such", is_upload=False),
    BadVideo("a dangling link", _dangling, "no such", is_upload=False),
    BadVideo("a loop of links", _loop, "symbolic links", is_upload=False),
    BadVideo("a named pipe", _pipe, "named pipe", is_upload=False),
    BadVideo("a socket", _socket, "a socket", is_upload=False),
    BadVideo("a device", lambda folder: Path("/dev/zero"), "a device", is_upload=False),
    BadVideo("memory", lambda folder: Path("/proc/self/mem"), "zero bytes", is_upload=False),
    BadVideo("a name too long", lambda folder: folder / ("x" * 300), "too long", is_upload=False),
    BadVideo("an address", lambda folder: Path("https://a.b/c.mp4"), "address", is_upload=False),
    BadVideo("an empty folder", _empty_folder, "no numbered picture", is_upload=False),
    BadVideo("a folder with a gap", _gap, "7 missing", is_upload=False),
    BadVideo("broken pictures", _broken_picture, "damaged|cannot decode", is_upload=False),
    BadVideo(
        "pictures of 100,000 x 100,000",
        _picture_folder(100_000, 100_000, data=zlib.compress(bytes(1000))),
        "cannot decode|pixels",
        is_upload=False,
    ),
    BadVideo("pictures of 8000 x 2", _picture_folder(8000, 2), "8000 x 2", is_upload=False),
    BadVideo(
        "a bad file, its name two lines",
        _written("two\nlines \N{VIDEO CAMERA}.mp4", b"text" * 99),
        _NOT_READ,
    ),
)

#: Boxes of the MP4 format and what is overwritten in them: mvhd has its duration at 16, stsz its
#: number of samples at 8.
ODD: tuple[BadVideo, ...] = (
    BadVideo("a name of two lines and a picture", _named("two\nlines \N{VIDEO CAMERA}.mp4")),
    BadVideo("another ending", _named("clip.txt")),
    BadVideo("a colon and a percent sign", _named("a:b%20c%03d.mp4")),
    BadVideo(
        "a year in the header", lambda f: _patched(f, b"mvhd", 16, struct.pack(">I", 2**32 - 2))
    ),
    BadVideo("10 bits, 4:4:4", _odd("yuv444p10le", "ffv1", "a.mkv")),
    BadVideo("grey", _odd("gray", "ffv1", "a.mkv")),
    BadVideo("16 bits a colour", _odd("rgb48be", "png", "a.mov")),
    BadVideo("with transparency", _odd("bgra", "ffv1", "a.mkv")),
    BadVideo("a GIF", lambda f: write_video(f / "a.gif", FRAMES, codec="gif", size=(160, 128))),
    BadVideo("rotated", lambda f: good_video(f, rotation=90)),
    BadVideo(
        "a folder of pictures",
        lambda f: write_folder(f / "frames", FRAMES, size=(160, 128)),
        is_upload=False,
    ),
)

"""Demux-only index of a video: its frames and when each is shown, remembered per file.

Conventions
-----------
position
    0-based place of a frame in presentation order, over the frames a player shows:
    packets that an edit list discards, and frames that come before the first keyframe,
    have no position.
rank
    0-based place of a packet in the file (decode order), discarded ones included.
timed
    Packet times are trusted, so that a decoded frame's time says its position. Where
    they cannot be (none, repeated, or AVI with B-frames, whose times are made up
    from decode order) a position is found by counting decoded frames from the start.

Nothing is decoded here. The times are those of libavformat, after edit lists.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.stream
import av.video.stream
import numpy as np
import numpy.typing as npt

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.frame_folder import list_frames
from aqa_pipeline.media.identity import FileMemo, remember_length

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]

#: Part of a remembered index's key: goes up with the meaning of its arrays, and another
#: libavformat may read an edit list differently.
_INDEX_VERSION = f"1-{'.'.join(map(str, av.library_versions['libavformat']))}"

#: The kinds of file that are opened: those that hold their pictures themselves. A playlist, or a
#: name with a pattern, would make FFmpeg open other files and addresses.
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpegts,mpeg,mpegvideo,mpegtsraw,gif,apng,"
    "ogg,nut,mxf,rm,ivf,dv,wtv,h264,hevc,vvc,av1,obu,m4v,mjpeg,yuv4mpegpipe,webp_anim,"
    "wav,mp3,flac,aac"  # opened to say that they hold sound only
)

#: No larger picture is decoded: 8K, which is 7680 x 4320 or 8192 x 4320.
MAX_PICTURE_PIXELS = 8192 * 4320

#: Each frame is painted over the one before, whatever the packet's keyframe flag says.
_NO_RANDOM_ACCESS = frozenset({"gif", "apng"})
_INDEX_KEYS = {"index_version", "pts", "rank", "key_pts", "key_rank", "shape", "time_base"}


@dataclass(frozen=True)
class VideoIndex:
    """Frames of one video in presentation order, and where decoding can start.

    Attributes
    ----------
    num_frames : int
    pts : ndarray of int64, shape=(num_frames,)
        Presentation time of each position, in ``time_base`` units. Of a video that is
        not ``timed`` only a count of frame periods.
    rank : ndarray of int64, shape=(num_frames,)
        Place of each position's packet in the file.
    key_pts, key_rank : ndarray of int64, shape=(num_keys,)
        Time and rank of each keyframe, ascending in time.
    timed : bool
        See the head of this module. If not, the only keyframe is the first.
    time_base : Fraction or None
        Seconds a unit of ``pts``; None where the file has no time (a frame folder).
    width, height : int
        Pixels as stored, before rotation; 0 where unknown (a frame folder).
    """

    num_frames: int
    pts: IntArray
    rank: IntArray
    key_pts: IntArray
    key_rank: IntArray
    timed: bool
    time_base: Fraction | None
    width: int
    height: int

    def key_of(self, position: int) -> int:
        """Latest keyframe at or before a position, as an index into ``key_pts``."""
        return max(int(np.searchsorted(self.key_pts, self.pts[position], side="right")) - 1, 0)

    def key_position(self, key: int) -> int:
        """First position shown at or after a keyframe."""
        return int(np.searchsorted(self.pts, self.key_pts[key]))

    def position_of(self, pts: int | None) -> int | None:
        """Position of a presentation time, None for a time that is not shown."""
        if pts is None:
            return None
        position = int(np.searchsorted(self.pts, pts))
        return position if position < self.num_frames and self.pts[position] == pts else None

    def pts_seconds(self, frame_index: IntArray) -> npt.NDArray[np.float64]:
        """Time of each position in seconds; NaN where the file has no time."""
        if self.time_base is None:
            return np.full(len(frame_index), np.nan)
        # Divide last: the numerator is exact in float64, a rounded time base is not.
        ticks = self.pts[frame_index].astype(np.float64) * self.time_base.numerator
        return ticks / self.time_base.denominator


def open_container(
    path: Path,
) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
    """Open a video file and choose its video stream; other streams are not read.

    The first stream flagged as default is taken, else the first; cover art and
    thumbnails never.

    Raises
    ------
    ClipError
        ``open``: no such file, not a video, or no video stream in it.
    """
    if not path.exists():
        raise ClipError(
            f"no video at {path}: check the column `video` of the manifest", stage="open"
        )
    try:
        if path.stat().st_size == 0:
            raise ClipError(f"{path} has zero bytes: copy or download it again", stage="open")
        # "file:" keeps a colon or a percent sign in the name from being read as a
        # protocol; metadata in a foreign encoding must not make a video unreadable.
        container = av.open(
            f"file:{path.absolute()}",
            metadata_errors="replace",
            options={"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"},
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ClipError(
            f"cannot read {path} as a video ({error_text(error)}): "
            "is it complete, and does a player show it?",
            stage="open",
            detail=error_text(error),
        ) from error
    not_video = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & not_video]
    # A stream with no decoder has no codec context in PyAV.
    streams = [stream for stream in streams if getattr(stream, "codec_context", None) is not None]
    if not streams:
        kinds = sorted(
            {
                "cover art" if stream.disposition & not_video else str(stream.type)
                for stream in container.streams
            }
        ) or ["nothing"]
        container.close()
        raise ClipError(
            f"{path} has no video stream that can be decoded (it holds: {', '.join(kinds)})",
            stage="open",
        )
    chosen = next(
        (stream for stream in streams if stream.disposition & av.stream.Disposition.default),
        streams[0],
    )
    for stream in container.streams:
        if stream.index != chosen.index:
            stream.discard = av.stream.Discard.all
    return container, chosen


def error_text(error: BaseException) -> str:
    """What the decoder said, without path and error number."""
    return str(getattr(error, "strerror", None) or error)


def read_index(path: Path, *, index_folder: Path | None = None) -> VideoIndex:
    """Index of a video file or of a folder of numbered pictures.

    Parameters
    ----------
    path : Path
    index_folder : Path or None
        Where the index of a file is remembered; used again only while the file's size
        and modification time are the same. Created if missing.

    Raises
    ------
    ClipError
        ``open`` or ``index``, see :func:`open_container` and
        :func:`aqa_pipeline.media.frame_folder.list_frames`; ``index`` also when the file has
        no frame.
    """
    if path.is_dir():
        return _folder_index(len(list_frames(path)))
    if not path.exists() or index_folder is None:
        return _scan(path)
    memo = FileMemo(path, index_folder)
    known = memo.read()
    if known.keys() >= _INDEX_KEYS and str(known["index_version"]) == _INDEX_VERSION:
        return _index_from_arrays(known)
    index = _scan(path)
    memo.write(_index_to_arrays(index))
    remember_length(memo, index.num_frames)
    return index


def _folder_index(num_frames: int) -> VideoIndex:
    positions = np.arange(num_frames, dtype=np.int64)
    return VideoIndex(
        num_frames=num_frames,
        pts=positions,
        rank=positions,
        key_pts=positions,
        key_rank=positions,
        timed=True,
        time_base=None,
        width=0,
        height=0,
    )


def is_hidden(codec_name: str, packet: av.Packet[Any]) -> bool:
    """Whether a packet holds a frame that is decoded but never shown.

    VP8 keeps its "alternate reference" in packets of their own: bit 4 of the first byte
    is show_frame (RFC 6386, 9.1). Later codecs pack such a frame with a shown one.
    """
    return codec_name == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _scan(path: Path) -> VideoIndex:
    """Demux the whole file once."""
    container, stream = open_container(path)
    missing = np.iinfo(np.int64).min
    pts: list[int] = []
    flags: list[tuple[bool, bool]] = []
    with container:
        codec = stream.codec_context
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                pts.append(missing if packet.pts is None else packet.pts)
                hidden = packet.is_discard or is_hidden(codec.name, packet)
                flags.append((packet.is_keyframe, not hidden))
        except av.error.FFmpegError as error:
            # A file that was cut short has the frames it has.
            logger.warning(
                "%s: stops being readable after %d packets (%s); its frames end there",
                path,
                len(pts),
                error_text(error),
            )
        is_avi = container.format.name == "avi"
        time_base, rate = stream.time_base, stream.average_rate
        width, height, codec_name = codec.width, codec.height, codec.name
        reorders = bool(codec.has_b_frames)

    if not pts:
        raise ClipError(f"{path} has a video stream but not one frame", stage="index")
    times = np.array(pts, dtype=np.int64)
    is_key, is_shown = np.array(flags, dtype=bool).reshape(-1, 2).T
    ranks = np.arange(len(times), dtype=np.int64)
    if not is_key.any() or codec_name in _NO_RANDOM_ACCESS:
        is_key = ranks == 0
    shown_times = times[is_shown]
    timed = (
        bool((times != missing).all())
        and len(np.unique(shown_times)) == len(shown_times)
        and not (is_avi and (reorders or bool((np.diff(times) < 0).any())))
    )
    if timed:
        keys = ranks[is_key]
        keys = keys[np.argsort(times[keys], kind="stable")]
        # What is shown before the first keyframe needs frames the file does not have.
        shown = ranks[is_shown & (ranks >= keys.min()) & (times >= times[keys.min()])]
        shown = shown[np.argsort(times[shown], kind="stable")]
        shown_pts, key_pts, key_rank = times[shown], times[keys], keys
    else:
        shown = ranks[is_shown]
        shown_pts, key_pts, key_rank = np.arange(len(shown)), ranks[:1], ranks[:1]
        time_base = 1 / rate if rate else None
    if len(shown) == 0:
        raise ClipError(f"{path} has packets but no frame that is shown", stage="index")
    return VideoIndex(
        num_frames=len(shown),
        pts=shown_pts.astype(np.int64),
        rank=shown,
        key_pts=key_pts,
        key_rank=key_rank,
        timed=timed,
        time_base=time_base,
        width=width,
        height=height,
    )


def _index_to_arrays(index: VideoIndex) -> dict[str, npt.NDArray[Any]]:
    ratio = index.time_base.as_integer_ratio() if index.time_base else (0, 0)
    return {
        "index_version": np.array(_INDEX_VERSION),
        "pts": index.pts,
        "rank": index.rank,
        "key_pts": index.key_pts,
        "key_rank": index.key_rank,
        "shape": np.array([index.width, index.height, int(index.timed)]),
        "time_base": np.array(ratio),
    }


def _index_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> VideoIndex:
    width, height, timed = (int(number) for number in arrays["shape"])
    numerator, denominator = (int(number) for number in arrays["time_base"])
    return VideoIndex(
        num_frames=len(arrays["pts"]),
        pts=arrays["pts"],
        rank=arrays["rank"],
        key_pts=arrays["key_pts"],
        key_rank=arrays["key_rank"],
        timed=bool(timed),
        time_base=Fraction(numerator, denominator) if denominator else None,
        width=width,
        height=height,
    )

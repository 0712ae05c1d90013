"""Wanted frames out of a decoder, each checked against the index.

Conventions
-----------
position, rank, timed
    As in :mod:`aqa_pipeline.media.index`.
run
    Wanted positions near enough to be decoded through in one go.

Decoding starts at the keyframe before each run and goes forward from there; it never
seeks per frame. Each decoded frame is checked against the index, so that a position
cannot silently shift, and whatever goes wrong between that keyframe and the last frame
of a run fails the run. One thread: many clips are decoded at once by as many processes,
and a frame then leaves the decoder with the packet that completes it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import av.error

from aqa_pipeline.errors import ClipError
from aqa_pipeline.media.frame_folder import list_frames
from aqa_pipeline.media.index import MAX_PICTURE_PIXELS, VideoIndex, error_text, open_container

#: A jump over fewer frames is cheaper to decode through than to start again after.
_NEAR_FRAMES = 16
#: A keyframe at most this many packets ahead is reached by reading on, undecoded.
_NEAR_PACKETS = 500

_PNG_MAGIC = b"\x89PNG"


class FrameSource(Protocol):
    num_decoded: int

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Each wanted position (ascending, no repeats) with its frame."""
        ...

    def close(self) -> None: ...


class FolderFrames:
    """Numbered pictures."""

    def __init__(self, folder: Path) -> None:
        self.num_decoded = 0
        self._paths = list_frames(folder)
        self._decoders: dict[str, Any] = {}

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for position in wanted:
            yield position, self._decode(self._paths[position])
            self.num_decoded += 1

    def _decode(self, path: Path) -> av.VideoFrame:
        frames: list[av.VideoFrame]
        try:
            data = path.read_bytes()
            # By content: png pictures under a .jpg name are not rare.
            codec = "png" if data.startswith(_PNG_MAGIC) else "mjpeg"
            if codec not in self._decoders:
                self._decoders[codec] = av.CodecContext.create(codec, "r")
                _configure(self._decoders[codec])
            packet = av.Packet(data)
            # A png without this flag is taken for a difference from the one before.
            packet.is_keyframe = True
            frames = self._decoders[codec].decode(packet) if data else []
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(
                f"cannot decode picture {path} ({error_text(error)}): extract it again",
                stage="decode",
                detail=error_text(error),
            ) from error
        if len(frames) != 1 or frames[0].is_corrupt:
            raise ClipError(
                f"picture {path} is damaged or empty: extract it again",
                stage="decode",
                detail="no whole picture",
            )
        return frames[0]

    def close(self) -> None:
        self._decoders.clear()


@dataclass(frozen=True)
class _Damage:
    rank: int
    message: str


class FileFrames:
    """A video file: knows where its decoder stands."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self.num_decoded = 0
        self._path = path
        self._index = index
        #: Position the decoder delivers next; None where it must be placed first.
        self._expected: int | None = None
        self._rank = -1  # of the last packet read
        self._count = 0  # frames delivered since the start, for an index without times
        self._ready: deque[tuple[int, av.VideoFrame]] = deque()
        self._damage: list[_Damage] = []
        self._packets: Iterator[av.Packet[Any]]
        self._open()

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for run in self._runs(wanted):
            try:
                yield from self._decode_run(run)
            except ClipError:
                self._expected = None
                raise

    def close(self) -> None:
        self._expected = None
        self._ready.clear()
        self._container.close()

    def _runs(self, wanted: list[int]) -> Iterator[list[int]]:
        """Split where a keyframe well past the frame before makes a jump worth while."""
        run: list[int] = []
        for position in wanted:
            if run and self._key_position(position) - run[-1] > _NEAR_FRAMES:
                yield run
                run = []
            run.append(position)
        if run:
            yield run

    def _key_position(self, position: int) -> int:
        return self._index.key_position(self._index.key_of(position))

    def _decode_run(self, run: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        first, last = run[0], run[-1]
        self._approach(first)
        wanted = set(run)
        # The last packet this run depends on: damage beyond it belongs to later windows,
        # though the decoder may have to be fed that far to let go of a frame.
        begin = min(self._key_position(first), first)
        last_rank = int(self._index.rank[begin : last + 1].max())
        if not self._index.timed:
            last_rank = len(self._index.rank)
        while self._expected is not None and self._expected <= last:
            delivered = self._next_frame()
            for damage in self._damage:
                if damage.rank <= last_rank:
                    raise self._damaged(f"{first} to {last}", damage.message)
            if delivered is None:
                raise self._damaged(f"{first} to {last}", f"no frame {self._expected} comes")
            position, frame = delivered
            if position != self._expected:
                raise self._damaged(f"{first} to {last}", f"frame {self._expected} is lost")
            if frame.is_corrupt:
                raise self._damaged(f"{first} to {last}", f"frame {position} is corrupt")
            self._expected = position + 1
            if position in wanted:
                yield position, frame

    def _damaged(self, frames: str, message: str) -> ClipError:
        return ClipError(
            f"{self._path}: damaged at or before the frames {frames} ({message}); "
            "other clips of this video may be whole",
            stage="decode",
            detail=message,
        )

    def _approach(self, first: int) -> None:
        """Place the decoder so that ``first`` comes without decoding more than needed."""
        key = self._index.key_of(first)
        key_position = self._index.key_position(key)
        expected = self._expected
        if expected is not None and expected <= first:
            # Starting again at a keyframe ahead leaves damage before it behind.
            is_behind_us = key_position < expected
            if is_behind_us or (key_position == expected and not self._damage):
                return
        for start in dict.fromkeys((key, max(key - 1, 0), 0)):
            self._start_at(start)
            # A stream refreshed bit by bit has "keyframes" that do not decode alone:
            # then the one before is tried, at last the first.
            delivered = self._next_frame()
            # What leads the keyframe is shown before it.
            while delivered is not None and delivered[0] < self._index.key_position(start):
                delivered = self._next_frame()
            if delivered is not None:
                self._ready.appendleft(delivered)
            if not self._damage and delivered is not None and delivered[0] == self._expected:
                return

    def _start_at(self, key: int) -> None:
        """Make the keyframe's packet the next one to be decoded."""
        self._ready.clear()
        self._damage.clear()
        self._expected = self._index.key_position(key)
        ahead = int(self._index.key_rank[key]) - self._rank
        if not self._index.timed or key == 0:
            self._reopen()
        elif 0 < ahead <= _NEAR_PACKETS:
            self._stream.codec_context.flush_buffers()
        else:
            self._seek(int(self._index.key_pts[key]))
        if not self._skip_to(key):
            # Some containers seek past the keyframe, or not at all. Reading without
            # decoding up to it is slower, and certain.
            self._reopen()
            if not self._skip_to(key):
                raise ClipError(
                    f"{self._path}: a keyframe of its index is not there; has the file changed?",
                    stage="index",
                )

    def _skip_to(self, key: int) -> bool:
        if not self._index.timed:
            return True
        pts, rank = int(self._index.key_pts[key]), int(self._index.key_rank[key])
        try:
            for packet in self._packets:
                if packet.is_keyframe and packet.pts == pts:
                    self._packets = itertools.chain([packet], self._packets)
                    return True
                if self._rank_of(packet) > rank:
                    return False
        except av.error.FFmpegError:
            return False
        return False

    def _rank_of(self, packet: av.Packet[Any]) -> int:
        """Rank of a packet where its time tells it, else that of the one before."""
        position = self._index.position_of(packet.pts) if self._index.timed else None
        if position is not None:
            self._rank = int(self._index.rank[position])
        return self._rank

    def _next_frame(self) -> tuple[int, av.VideoFrame] | None:
        """Next frame that has a position, None at the end; notes damage on the way."""
        while not self._ready:
            try:
                packet = next(self._packets, None)
            except av.error.FFmpegError as error:
                self._note_damage(error_text(error))
                return None
            if packet is None:
                return None
            self._rank_of(packet)
            if packet.is_corrupt:
                self._note_damage("a packet is cut short or marked as corrupt")
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if not self._leads(packet):
                    self._note_damage(error_text(error))
                continue
            for frame in frames:
                self.num_decoded += 1
                position = self._position_of(frame)
                if position is not None:
                    self._ready.append((position, frame))
        return self._ready.popleft()

    def _leads(self, packet: av.Packet[Any]) -> bool:
        """Whether a picture is shown before the keyframe that decoding started at.

        In an open group of pictures it may lean on the group before, which was not decoded.
        """
        position = self._index.position_of(packet.pts) if self._index.timed else None
        return position is not None and self._expected is not None and position < self._expected

    def _position_of(self, frame: av.VideoFrame) -> int | None:
        if self._index.timed:
            return self._index.position_of(frame.pts)
        self._count += 1
        return self._count - 1

    def _note_damage(self, message: str) -> None:
        self._damage.append(_Damage(self._rank, message))

    def _open(self) -> None:
        self._container, self._stream = open_container(self._path)
        _configure(self._stream.codec_context)
        self._packets = self._container.demux(self._stream)
        self._rank = -1
        self._count = 0

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _seek(self, pts: int) -> None:
        try:
            self._container.seek(pts, stream=self._stream)
        except av.error.FFmpegError:
            self._reopen()
            return
        self._packets = self._container.demux(self._stream)
        self._rank = -1


def _configure(decoder: Any) -> None:
    decoder.thread_count = 1
    decoder.thread_type = "NONE"
    # Damage is an error, instead of being painted over.
    decoder.options = {
        "err_detect": "crccheck+explode",
        "max_pixels": str(MAX_PICTURE_PIXELS),
    }

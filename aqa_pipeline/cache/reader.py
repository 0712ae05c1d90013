"""Reading a feature cache: what is there, and all of it in memory.

A cache is a folder of segments that never change. A reader lists them, reads what each
holds and keeps that list as its snapshot: it takes no lock, and writers may go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aqa_pipeline.cache.fingerprint import (
    CacheIdentity,
    Fingerprint,
    check_fingerprint,
    read_identity,
)
from aqa_pipeline.cache.segment import (
    PLAIN_VIEW,
    BoolArray,
    FeatureArray,
    IntArray,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentIndex,
    encoded,
    mismatches,
)
from aqa_pipeline.cache.segment import ClipQuery as ClipQuery  # callers take it from here
from aqa_pipeline.cache.segment_file import list_segments, read_features, read_index, read_table
from aqa_pipeline.errors import CacheError

logger = logging.getLogger(__name__)

_ATTEMPTS = 10


@dataclass(frozen=True)
class Features:
    """Features of many clips, whole in memory, in the order they were asked for.

    Attributes
    ----------
    clip_ids : tuple of str, length n
    view_names : tuple of str, length v
    values : ndarray of float32, shape=(n, v, snippets, dim)
        Contiguous.
    """

    clip_ids: tuple[str, ...]
    view_names: tuple[str, ...]
    values: FeatureArray


@dataclass(frozen=True)
class Damage:
    """A file that looks like a segment and was not read as data."""

    path: Path
    reason: str


@dataclass
class FeatureCache:
    """A consistent snapshot of a cache folder. Made by :meth:`open`.

    ``len(cache)``, ``clip_id in cache`` and ``for clip_id in cache`` are about the clips whose
    plain view is here; ``cache[clip_id]`` are the features of one, float32, (snippets, dim).

    Attributes
    ----------
    folder : Path
    identity : CacheIdentity
    segments : list of SegmentIndex
        Those that validated, oldest first.
    damaged : list of Damage
        Those that did not.
    """

    folder: Path
    identity: CacheIdentity
    segments: list[SegmentIndex] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)

    @classmethod
    def open(cls, folder: str | Path, *, fingerprint: Fingerprint | None = None) -> FeatureCache:
        """Read what a cache folder holds.

        Parameters
        ----------
        folder : str or Path
        fingerprint : Fingerprint, optional
            What the folder must belong to.

        Returns
        -------
        FeatureCache

        Raises
        ------
        CacheError
            There is no cache, or its fingerprint is another one (the message says which
            settings differ).
        """
        folder = Path(folder)
        if fingerprint is None:
            identity = read_identity(folder)
        else:
            identity = check_fingerprint(folder, fingerprint)
        cache = cls(folder, identity)
        cache.refresh()
        return cache

    def refresh(self) -> None:
        """Take a new snapshot. What is already known is not read again: segments never change.

        Raises
        ------
        CacheError
            Segments kept vanishing while they were read.
        """
        known = {segment.path: segment for segment in self.segments}
        known_bad = {damage.path: damage for damage in self.damaged}
        sha256 = self.identity.fingerprint.sha256
        for _ in range(_ATTEMPTS):
            segments: list[SegmentIndex] = []
            damaged: list[Damage] = []
            try:
                for path in list_segments(self.folder):
                    if path in known_bad:
                        damaged.append(known_bad[path])
                        continue
                    try:
                        if path not in known:
                            known[path] = self._read(path, sha256)
                        segments.append(known[path])
                    except SegmentDamagedError as error:
                        known_bad[path] = self._reject(path, error)
                        damaged.append(known_bad[path])
            except SegmentGoneError:
                continue
            self.segments, self.damaged = segments, damaged
            return
        raise CacheError(
            f"{self.folder}: segments keep vanishing; is another compact or gc running?"
        )

    def _read(self, path: Path, sha256: str) -> SegmentIndex:
        index = read_index(path, fingerprint_sha256=sha256)
        snippets = index.feature_shape[2]
        expected = len(self.identity.fingerprint.snippet_starts)
        if snippets != expected:
            raise SegmentDamagedError(f"{path}: {snippets} snippets a clip, expected {expected}")
        return index

    def _reject(self, path: Path, error: SegmentDamagedError) -> Damage:
        reason = str(error).removeprefix(f"{path}: ")
        logger.warning("skipped a segment that cannot be trusted: %s: %s", path, reason)
        return Damage(path, reason)

    def _drop(self, segment: SegmentIndex, error: SegmentDamagedError) -> None:
        self.damaged.append(self._reject(segment.path, error))
        self.segments = [kept for kept in self.segments if kept.path != segment.path]

    @property
    def is_imported(self) -> bool:
        """Whether somebody else extracted the features: no video can be compared with them."""
        return self.identity.fingerprint.pixels is None

    def __len__(self) -> int:
        return len(self._plain_clip_ids())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._plain_clip_ids()))

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._plain_clip_ids()

    def __getitem__(self, clip_id: str) -> FeatureArray:
        """Newest features of a clip in the plain view, float32, shape=(snippets, dim).

        Nothing is compared with a video; many clips at once: :func:`aqa_pipeline.load_split`.

        Raises
        ------
        CacheError
            If they are not here.
        """
        wanted = self.stored([clip_id])
        if not wanted.clip_ids:
            raise self.missing([clip_id], asked=1)
        features: FeatureArray = self.load(wanted).values[0, 0]
        return features

    def __repr__(self) -> str:
        shapes = sorted({segment.feature_shape[2:] for segment in self.segments})
        said = [f"{len(self)} clips", *(f"{snippets} snippets x {dim}" for snippets, dim in shapes)]
        if self.damaged:
            said.append(f"{len(self.damaged)} damaged files")
        return f"FeatureCache({self.folder.parent.name}/{self.folder.name}: {', '.join(said)})"

    def _plain_clip_ids(self) -> set[str]:
        plain = [segment for segment in self.segments if PLAIN_VIEW in segment.view_names]
        return {name.decode("utf-8") for segment in plain for name in segment.clip_ids}

    def clip_ids(self) -> set[str]:
        """Ids of all clips of which any view is here."""
        return {name.decode("utf-8") for segment in self.segments for name in segment.clip_ids}

    def cached(self, wanted: ClipQuery, *, view_names: Sequence[str] = (PLAIN_VIEW,)) -> BoolArray:
        """Which views of which clips are here, for the same source and the same positions.

        Returns
        -------
        ndarray of bool, shape=(n, views)
        """
        found = np.zeros((len(wanted), len(view_names)), dtype=np.bool_)
        for part in self._parts(wanted, view_names):
            found[part.clips, part.view] = True
        return found

    def outdated(self, wanted: ClipQuery) -> BoolArray:
        """Clips that are here only for another source or other positions: extract again.

        Returns
        -------
        ndarray of bool, shape=(n,)
        """
        known = np.zeros(len(wanted), dtype=np.bool_)
        matched = np.zeros(len(wanted), dtype=np.bool_)
        for segment in self.segments:
            rows, exact = wanted.match(segment)
            known[rows[rows >= 0]] = True
            matched[rows[exact]] = True
        outdated: BoolArray = known & ~matched
        return outdated

    def stored(self, clip_ids: Sequence[str]) -> ClipQuery:
        """What the newest segment says of clips whose video cannot be reached now.

        Parameters
        ----------
        clip_ids : sequence of str

        Returns
        -------
        ClipQuery
            Those of the clips whose plain view is here, in the order given, each with the
            source and positions it was extracted from.
        """
        asked = {encoded(name, what="clip id"): name for name in clip_ids}
        found: dict[str, tuple[bytes, IntArray]] = {}
        for segment in self.segments:  # oldest first: a newer one overwrites
            if PLAIN_VIEW in segment.view_names:
                for row, clip_id in enumerate(segment.clip_ids):
                    if clip_id in asked:
                        known = (segment.source_ids[row], segment.frame_index[row])
                        found[asked[clip_id]] = known
        here = [name for name in clip_ids if name in found]
        shape = (len(here), self.identity.fingerprint.window_frames)
        frames = np.array([found[name][1] for name in here], dtype=np.int64).reshape(shape)
        return ClipQuery(here, [found[name][0].decode("utf-8") for name in here], frames)

    def load(
        self,
        wanted: ClipQuery,
        *,
        view_names: Sequence[str] = (PLAIN_VIEW,),
        verify: bool = False,
    ) -> Features:
        """Read features into memory, each segment once and in large pieces.

        Parameters
        ----------
        wanted : ClipQuery
        view_names : sequence of str
            Views, in the order wanted; they may lie in different segments.
        verify : bool
            Hash every clip that is read. A segment with a wrong hash counts as missing.

        Raises
        ------
        CacheError
            Some clips are not here; says how many, which, and what to type.
        """
        for _ in range(_ATTEMPTS):
            self._require(wanted, view_names)
            try:
                values = self._load(wanted, view_names, verify=verify)
            except _ReadError as error:
                if isinstance(error.cause, SegmentDamagedError):
                    self._drop(error.segment, error.cause)
                else:
                    self.refresh()
                continue
            return Features(tuple(wanted.clip_ids), tuple(view_names), values)
        raise CacheError(
            f"{self.folder}: segments keep vanishing; is another compact or gc running?"
        )

    def _load(self, wanted: ClipQuery, view_names: Sequence[str], *, verify: bool) -> FeatureArray:
        snippets, dim = self._clip_shape()
        values = np.empty((len(wanted), len(view_names), snippets, dim), dtype=np.float32)
        parts_of: dict[Path, list[_Part]] = {}
        for part in self._parts(wanted, view_names):
            parts_of.setdefault(part.segment.path, []).append(part)
        for parts in parts_of.values():
            segment = parts[0].segment
            try:
                table = read_table(segment) if verify else None
                first = min(int(part.rows.min()) for part in parts)
                end = max(int(part.rows.max()) for part in parts) + 1
                for start, block in read_features(segment, first=first, end=end):
                    if table is not None and mismatches(table, start, block):
                        raise SegmentDamagedError(f"{segment.path}: a clip has a wrong hash")
                    for part in parts:
                        inside = (part.rows >= start) & (part.rows < start + len(block))
                        values[part.clips[inside], part.view] = block[
                            part.rows[inside] - start, part.stored_view
                        ]
            except (SegmentDamagedError, SegmentGoneError) as error:
                raise _ReadError(segment, error) from error
        return values

    def _parts(self, wanted: ClipQuery, view_names: Sequence[str]) -> Iterator[_Part]:
        """Cut the request into (segment, view) parts; the newest segment that matches wins."""
        missing = np.ones((len(wanted), len(view_names)), dtype=np.bool_)
        for segment in reversed(self.segments):
            stored = [name for name in view_names if name in segment.view_names]
            if not stored or not missing.any():
                continue
            clips, exact = wanted.match(segment)
            for name in stored:
                view = view_names.index(name)
                rows = np.flatnonzero(exact)
                rows = rows[missing[clips[rows], view]]
                if len(rows):
                    missing[clips[rows], view] = False
                    yield _Part(segment, rows, clips[rows], view, segment.view_names.index(name))

    def _clip_shape(self) -> tuple[int, int]:
        shapes = {segment.feature_shape[2:]: segment.path.name for segment in self.segments}
        if len(shapes) > 1:
            found = ", ".join(f"{shape} in {name}" for shape, name in shapes.items())
            raise CacheError(f"{self.folder}: segments of different (snippets, dim): {found}")
        return next(iter(shapes), (len(self.identity.fingerprint.snippet_starts), 0))

    def _require(self, wanted: ClipQuery, view_names: Sequence[str]) -> None:
        found = self.cached(wanted, view_names=view_names)
        absent = np.flatnonzero(~found.all(axis=1))
        if not len(absent):
            return
        lacking = [name for name, there in zip(view_names, found.T, strict=True) if not there.all()]
        raise self.missing(
            [wanted.clip_ids[row] for row in absent.tolist()],
            asked=len(wanted),
            which="" if lacking == [PLAIN_VIEW] else f" in view {', '.join(lacking)}",
            num_outdated=int(self.outdated(wanted).sum()),
        )

    def missing(
        self, clip_ids: Sequence[str], *, asked: int, which: str = "", num_outdated: int = 0
    ) -> CacheError:
        """The error that says which of the clips that were ``asked`` for are not here."""
        first = ", ".join(map(repr, clip_ids[:3])) + (", ..." if len(clip_ids) > 3 else "")
        outdated = (
            f"; {num_outdated} of them are here for another video file or window"
            if num_outdated
            else ""
        )
        verb = "cache import" if self.is_imported else "extract"
        return CacheError(
            f"{self.folder}: features of {len(clip_ids)} of {asked} clips are missing{which} "
            f"({first}){outdated}; type `aqa {verb} --dataset {self.folder.parent.name}` first"
        )


@dataclass(frozen=True)
class _Part:
    """Clips that one view takes from one segment: `rows` there, `clips` in the request."""

    segment: SegmentIndex
    rows: IntArray
    clips: IntArray
    view: int
    stored_view: int


class _ReadError(Exception):
    """A segment could not be read after all. Never leaves this module."""

    def __init__(self, segment: SegmentIndex, cause: CacheError) -> None:
        super().__init__(str(cause))
        self.segment = segment
        self.cause = cause

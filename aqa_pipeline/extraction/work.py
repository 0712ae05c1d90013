"""One process at work on a plan: clips leased, decoded, encoded and written.

Decoding runs in other processes and the network in this one. On a CPU the network's
batch is one clip's snippets, always the same shape, so that no feature depends on which
clips were extracted beside it; a view is a clip of its own to the network.

Any number of processes may work through one manifest at once: a clip that another one
has leased (:mod:`aqa_pipeline.extraction.leases`) is left to it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aqa_pipeline.backbone.encoder import Backbone, Encode
from aqa_pipeline.cache.failures import FailureLog, read_failures
from aqa_pipeline.cache.fingerprint import ensure_cache, machine_facts
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.config import PIXEL_PRESETS, ExtractConfig
from aqa_pipeline.errors import ClipError
from aqa_pipeline.extraction.extract import (
    ExtractSummary,
    Progress,
    default_workers,
    failure_of,
)
from aqa_pipeline.extraction.leases import Leases
from aqa_pipeline.extraction.plan import ClipToDo, ExtractPlan, lacking_views
from aqa_pipeline.extraction.stream import encode_stream
from aqa_pipeline.media.clip import DecodeTask
from aqa_pipeline.media.decode_pool import Decoded, DecodePool, decode_runs
from aqa_pipeline.media.views import cut_view

_log = logging.getLogger(__name__)

_CLAMPS_TOLD = 5  #: more clamped clips than this are only counted
_POLL_SECONDS = 1.0  #: between two looks at what another process has in hand


class Extraction:
    """One process at work on a plan: what it has leased, written, and left to others."""

    def __init__(
        self, plan: ExtractPlan, summary: ExtractSummary, config: ExtractConfig, progress: Progress
    ) -> None:
        self._plan = plan
        self._summary = summary
        self._config = config
        self._progress = progress
        self._items = {item.clip.clip_id: item for item in plan.to_do}
        self._left_to_others: list[ClipToDo] = []
        self._unwritten: list[str] = []  # keys of clips that only the writer's memory holds
        ensure_cache(plan.folder, plan.fingerprint)
        self._log = FailureLog(plan.folder)
        self._leases = Leases(plan.folder)
        planned_with = [] if plan.cache is None else plan.cache.segments
        self._cache = (
            FeatureCache.open(plan.folder, fingerprint=plan.fingerprint)
            if plan.cache is None
            else plan.cache
        )
        self._known_segments = {segment.path for segment in planned_with}

    def run(self, backbone: Backbone) -> None:
        workers = self._config.workers or default_workers()
        timeout = self._config.clip_timeout_seconds
        to_do: Sequence[ClipToDo] = self._plan.to_do
        # The writer ends first, so that what is done is on the disk before anything can
        # take time; the leases end last, when nothing is left to be leased.
        with (
            self._leases,
            DecodePool(workers=workers, clip_timeout_seconds=timeout) as pool,
            contextlib.ExitStack() as stack,
        ):
            encode: Encode | None = None
            while to_do:
                self._left_to_others = []
                decoded = pool.decode(self._leased_runs(to_do))
                if encode is None:  # the first clips are decoded while it is loaded
                    encode = backbone()
                    if getattr(encode, "uploads_frames", False):
                        pool.lock_pages()
                    writer = stack.enter_context(self._new_writer(encode))
                for clip, features in encode_stream(decoded, self._windows, encode):
                    self._take(clip, features, writer)
                # Others may be waiting for what is only in memory here.
                writer.flush()
                self._give_back()
                to_do = self._left_to_others
                if to_do:
                    _log.info("waiting for %d clips in the hands of other processes", len(to_do))
                    time.sleep(_POLL_SECONDS)
                    to_do = self._not_failed_elsewhere(to_do)

    def _leased_runs(self, to_do: Sequence[ClipToDo]) -> Iterator[list[DecodeTask]]:
        """Runs of clips that are this process's to decode, leased when they are asked for."""
        for run in decode_runs([self._task(item) for item in to_do]):
            leased = []
            for task in run:
                item = self._items[task.clip_id]
                if self._leases.take(item.key):
                    leased.append(item)
                else:
                    self._left_to_others.append(item)
            # In this order: whoever had the clip before gave it back after writing it.
            still_lacking = self._still_lacking(leased)
            if still_lacking:
                yield [self._task(item) for item in still_lacking]

    def _still_lacking(self, leased: Sequence[ClipToDo]) -> list[ClipToDo]:
        """What other processes have not written since the plan was made."""
        self._cache.refresh()
        segments = [s for s in self._cache.segments if s.path not in self._known_segments]
        if not segments:
            return list(leased)
        news = FeatureCache(self._cache.folder, self._cache.identity, segments)
        rest = []
        for item, lacking in zip(
            leased, lacking_views(news, leased, self._plan.views), strict=True
        ):
            views = tuple(view for view in item.views if view in lacking)
            if views:
                self._items[item.clip.clip_id] = replace(item, views=views)
                rest.append(self._items[item.clip.clip_id])
            else:
                self._leases.release([item.key])
                self._summary.num_elsewhere += 1
                self._report()
        return rest

    def _not_failed_elsewhere(self, items: Sequence[ClipToDo]) -> list[ClipToDo]:
        failures = read_failures(self._plan.folder)
        rest = []
        for item in items:
            failure = failures.get(item.clip.clip_id)
            is_new = failure != self._plan.known_failures.get(item.clip.clip_id)
            if failure is not None and is_new and item.failed_as(failure):
                self._summary.failures.append(failure)
                self._report()
            else:
                rest.append(item)
        return rest

    def _task(self, item: ClipToDo) -> DecodeTask:
        return DecodeTask(
            clip_id=item.clip.clip_id,
            video=item.clip.video,
            positions=item.positions,
            pixels=PIXEL_PRESETS[self._plan.manifest.protocol.pixels],
            index_folder=self._plan.index_folder,
            strict_window=self._config.strict_window,
            shifts=tuple(sorted({view.shift for view in item.views})),
        )

    def _windows(self, decoded: Decoded) -> list[npt.NDArray[np.uint8]]:
        task, clip = decoded.task, decoded.clip
        if clip is None:
            return []
        return [
            cut_view(clip.frames, view, positions=task.positions, union=task.union)
            for view in self._items[task.clip_id].views
        ]

    def _new_writer(self, encode: Encode) -> SegmentWriter:
        machine = {**_facts(), **getattr(encode, "facts", {})}
        plan = self._plan
        return SegmentWriter(plan.folder, plan.fingerprint, config=self._config, machine=machine)

    def _take(
        self,
        decoded: Decoded,
        features: Sequence[npt.NDArray[np.float32]],
        writer: SegmentWriter,
    ) -> None:
        item = self._items[decoded.task.clip_id]
        try:
            row = _clip_features(decoded, item, features)
            self._unwritten.append(item.key)
            if writer.add(row):
                self._give_back()
        except ClipError as error:
            failure = failure_of(item.clip.clip_id, error, item, decoded.attempts)
            self._log.append(failure)
            self._leases.release([item.key])
            self._summary.failures.append(failure)
            _log.warning("clip %s failed: %s", item.clip.clip_id, error)
        else:
            self._summary.num_extracted += 1
            _note_clamped(self._summary, decoded)
        self._report()

    def _give_back(self) -> None:
        self._leases.release(self._unwritten)
        self._unwritten.clear()

    def _report(self) -> None:
        self._progress(self._summary.num_done, self._summary.num_wanted)


def _clip_features(
    decoded: Decoded, item: ClipToDo, features: Sequence[npt.NDArray[np.float32]]
) -> ClipFeatures:
    if decoded.clip is None:
        raise decoded.error or ClipError(f"{item.clip.video}: not decoded", stage="decode")
    return ClipFeatures(
        clip_id=item.clip.clip_id,
        source_id=item.source_id,
        frame_index=item.positions,
        pts_seconds=decoded.clip.pts_seconds,
        features=np.stack(features),
        view_names=tuple(view.name for view in item.views),
    )


def _note_clamped(summary: ExtractSummary, decoded: Decoded) -> None:
    clip, task = decoded.clip, decoded.task
    if clip is None or not clip.num_clamped:
        return
    summary.clamped[task.clip_id] = clip.num_clamped
    if len(summary.clamped) <= _CLAMPS_TOLD:
        _log.warning(
            "clip %s: %d of %d frames lie outside %s (%d frames); its first or last frame is "
            "repeated",
            task.clip_id,
            clip.num_clamped,
            len(task.positions),
            task.video,
            clip.video_frames,
        )


def _facts() -> dict[str, str | int | float | bool | None]:
    import torch

    return machine_facts(device="cpu", threads=torch.get_num_threads())

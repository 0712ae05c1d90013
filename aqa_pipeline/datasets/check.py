"""Check of a manifest against its protocol and the real files.

Conventions
-----------
finding
    One kind of trouble, with the clips it was found at. An *error* makes a clip fail or
    a number wrong; a *warning* is something the program copes with in a stated way.
window
    Two clips have the same one if they take the same frames of the same video. The rule
    ``last`` ignores where a clip starts, ``first`` where it ends.

The table alone is checked without opening a video; :mod:`aqa_pipeline.datasets.check_windows` does
the rest.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aqa_pipeline.config import FitConfig
from aqa_pipeline.datasets.manifest import Clip, Manifest

Severity = Literal["error", "warning"]

#: Code -> severity and what it means, in the order a report tells them.
KINDS: dict[str, tuple[Severity, str]] = {
    "missing_video": ("error", "no such video"),
    "unreadable_video": ("error", "cannot be opened as a video"),
    "outside_video": ("error", "the whole window lies outside the video"),
    "damaged_window": ("error", "a frame of the window cannot be decoded"),
    "timed_out": ("error", "decoding did not end, or ended its process"),
    "train_test_overlap": ("error", "the same window is in train and in test"),
    "constant_labels": ("error", "training clips whose scores are all equal"),
    "clamped_window": ("warning", "too few frames: the first or last one is repeated"),
    "duplicate_window": ("warning", "the same window under another clip id"),
    "score_outside_range": ("warning", "outside the range the protocol gives"),
    "unseen_key": ("warning", "no training clip to compare with; the nearest kind is taken"),
    "few_exemplars": ("warning", "fewer training clips to compare with than asked for"),
    "empty_split": ("warning", "a split without training or without test clips"),
}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble.

    Attributes
    ----------
    code : str
        A key of :data:`KINDS`.
    rows : tuple of (str, str)
        Clip id (or category, or split column) and what was found there, in file order.
    """

    code: str
    rows: tuple[tuple[str, str], ...]

    @property
    def severity(self) -> Severity:
        return KINDS[self.code][0]

    @property
    def meaning(self) -> str:
        return KINDS[self.code][1]


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes
    ----------
    path : Path
        The manifest.
    num_clips, num_videos : int
    decoded : bool
        Whether the videos were opened, or only looked for.
    findings : tuple of Finding
        Errors first.
    """

    path: Path
    num_clips: int
    num_videos: int
    decoded: bool
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    def as_dict(self, *, max_rows: int | None = None) -> dict[str, Any]:
        """Plain values for JSON; ``max_rows`` limits the rows of each finding."""
        return {
            "manifest": str(self.path),
            "clips": self.num_clips,
            "videos": self.num_videos,
            "decoded": self.decoded,
            "ok": not self.has_errors,
            "findings": [
                {
                    "code": finding.code,
                    "severity": finding.severity,
                    "meaning": finding.meaning,
                    "count": len(finding.rows),
                    "rows": [
                        {"where": where, "found": found} for where, found in finding.rows[:max_rows]
                    ],
                }
                for finding in self.findings
            ],
        }


def check_manifest(
    manifest: Manifest,
    *,
    fast: bool = False,
    num_exemplars: int | None = FitConfig.num_exemplars,
    jobs: int | None = None,
    index_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Check a manifest.

    Parameters
    ----------
    manifest : Manifest
    fast : bool
        Only look whether each video exists; otherwise every window is decoded.
    num_exemplars : int or None
        M of Eq. 9 the test clips should find; None: as many as there are.
    jobs : int or None
        Decoding processes; None: one per core.
    index_folder : Path or None
        Where video indices are remembered; None: only for this check.
    progress : callable
        Called as ``progress(done, total)`` with the clips decoded.

    Returns
    -------
    CheckReport
    """
    clips = manifest.clip_list()
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for code, where, text in _check_table(manifest, num_exemplars):
        found[code].append((where, text))
    is_there = {video: os.path.exists(video) for video in {clip.video for clip in clips}}
    for clip in clips:
        if not is_there[clip.video]:
            found["missing_video"].append((clip.clip_id, str(clip.video)))
    if not fast:
        from aqa_pipeline.datasets.check_windows import check_windows  # brings the video decoder

        present = [clip for clip in clips if is_there[clip.video]]
        order = {clip.clip_id: i for i, clip in enumerate(clips)}
        faults = check_windows(
            present,
            manifest.protocol,
            jobs=jobs,
            index_folder=index_folder,
            progress=progress,
        )
        for code, where, text in sorted(faults, key=lambda fault: order[fault[1]]):
            found[code].append((where, text))
    return CheckReport(
        path=manifest.path,
        num_clips=len(clips),
        num_videos=len(is_there),
        decoded=not fast,
        findings=tuple(Finding(code, tuple(found[code])) for code in KINDS if code in found),
    )


Fault = tuple[str, str, str]  # code, where, what was found


def _check_table(manifest: Manifest, num_exemplars: int | None) -> Iterator[Fault]:
    yield from _windows(manifest)
    yield from _ranges(manifest)
    for column in manifest.split_columns:
        yield from _split(manifest, column, num_exemplars)


def _windows(manifest: Manifest) -> Iterator[Fault]:
    same: dict[tuple[object, ...], list[int]] = defaultdict(list)
    clips = manifest.clip_list()
    for i, clip in enumerate(clips):
        same[_window_key(clip, manifest.protocol.window_rule)].append(i)
    sides = list(zip(*(manifest.clips[name] for name in manifest.split_columns), strict=True))
    for first, *others in same.values():
        for other in others:
            pairs = zip(sides[first], sides[other], strict=True)
            apart = any({a, b} == {"train", "test"} for a, b in pairs)
            code = "train_test_overlap" if apart else "duplicate_window"
            yield code, clips[other].clip_id, f"same frames as {clips[first].clip_id}"


def _window_key(clip: Clip, rule: str) -> tuple[object, ...]:
    video = os.path.normpath(clip.video)
    start = clip.start_frame or 0
    return {
        "last": (video, clip.end_frame),
        "first": (video, start),
    }.get(rule, (video, start, clip.end_frame))


def _ranges(manifest: Manifest) -> Iterator[Fault]:
    protocol, clips = manifest.protocol, manifest.clips
    scores = clips["score"].to_numpy(dtype=float)
    unit = "score"
    if protocol.label_transform == "range":
        if not protocol.label_ranges:
            return
        unknown = (-np.inf, np.inf)
        limits = [protocol.label_ranges.get(name, unknown) for name in clips["category"]]
    else:
        if protocol.score_range is None or protocol.epsilon is None:
            return
        # epsilon is the largest label, score_range the largest difference of two.
        limits = [(protocol.epsilon - protocol.score_range, protocol.epsilon)] * len(clips)
        if protocol.label_transform == "raw":
            scores = scores / clips["difficulty"].to_numpy(dtype=float)
            unit = "score / difficulty"
    for clip_id, value, (low, high) in zip(clips["clip_id"], scores, limits, strict=True):
        if not low - 1e-6 <= value <= high + 1e-6:
            yield (
                "score_outside_range",
                clip_id,
                f"{unit} {value:g} is not within {low:g} to {high:g}",
            )


def _split(manifest: Manifest, column: str, num_exemplars: int | None) -> Iterator[Fault]:
    clips, protocol = manifest.clips, manifest.protocol
    side = clips[column].to_numpy(dtype=str)
    suffix = "" if column == "split" else f" ({column})"
    for name in ("train", "test"):
        if not (side == name).any():
            yield "empty_split", column, f"no {name} clip"
    train, test = np.flatnonzero(side == "train"), np.flatnonzero(side == "test")
    scores = clips["score"].to_numpy(dtype=float)
    heads = clips["category"].to_numpy(dtype=str) if protocol.per_category else None
    for head in [None] if heads is None else sorted(set(heads[train])):
        own = scores[train if heads is None else train[heads[train] == head]]
        if len(own) and np.ptp(own) == 0:
            text = f"{len(own)} training clips, all with score {own[0]:g}{suffix}"
            yield "constant_labels", str(head or column), text
    if not len(train):
        return
    # One head a category finds exemplars only there, whatever the key says.
    keys = [
        (*key, head)
        for key, head in zip(
            manifest.exemplar_keys(), [""] * len(clips) if heads is None else heads, strict=True
        )
    ]
    pool = Counter(keys[i] for i in train)
    named = ", ".join(protocol.exemplar_key) or "category"
    for i in test:
        count = pool[keys[i]]
        told = f"{named} {', '.join(map(str, keys[i][: len(protocol.exemplar_key)]))}".strip()
        if count == 0:
            yield "unseen_key", clips["clip_id"].iloc[i], f"{told}: no training clip{suffix}"
        elif num_exemplars is not None and count < num_exemplars:
            text = f"{told}: {count} of {num_exemplars} exemplars{suffix}"
            yield "few_exemplars", clips["clip_id"].iloc[i], text

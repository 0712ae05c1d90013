"""Fingerprint: all that a cached feature depends on, as one short name.

Two extractions with equal fingerprints give equal numbers (bit for bit on one CPU with
one version of the program, to 1e-4 of the largest elsewhere), so their features may lie in
one folder. Everything that changes the numbers is part of the fingerprint; everything that
should not (the machine, the version of torch) is only recorded, and a difference there is
worth a warning.

Not part of it: which clips and which views a cache holds. Those can grow.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aqa_pipeline.atomic import atomic_file, storage_error
from aqa_pipeline.config import PIXEL_PRESETS, PixelPreset, Protocol
from aqa_pipeline.errors import CacheError

#: JSON values only, so that facts can be written as they are.
MachineInfo = dict[str, str | int | float | bool | None]

CACHE_FORMAT = "aqa-feature-cache"
FORMAT_VERSION = 1
FILE_NAME = "fingerprint.json"

#: Raise by one in the commit that makes decoding, resizing, cropping or the network
#: compute other numbers from the same settings, beyond rounding (1e-4 of the largest
#: feature). Old caches then no longer match.
ARITHMETIC_VERSION = 1
BACKBONE = "i3d"
BACKBONE_DIM = 1024  #: as in :mod:`aqa_pipeline.backbone.i3d`, which would import torch


@dataclass(frozen=True)
class Fingerprint:
    """Everything that changes the numbers of a feature, and nothing else.

    Attributes
    ----------
    backbone : str
        Name of the network, also the beginning of the folder's name.
    weights_sha256 : str
        Over the sorted tensor names, shapes, dtypes and bytes, in hex.
    pixels : PixelPreset or None
        Resize, crop and normalisation. Its name is kept but not hashed: two presets
        with equal numbers share a cache. None: features that somebody else extracted.
    window_rule : str
        See :func:`aqa_pipeline.media.snippets.window_positions`.
    window_frames, snippet_frames : int
        Lengths, in frames.
    snippet_starts : tuple of int
        First frame of each snippet inside the window; one feature vector each.
    precision : str
        What the network really computed in, e.g. ``"float32"``; never ``"auto"``.
    arithmetic_version : int
        See :data:`ARITHMETIC_VERSION`.
    """

    backbone: str
    weights_sha256: str
    pixels: PixelPreset | None
    window_rule: str
    window_frames: int
    snippet_frames: int
    snippet_starts: tuple[int, ...]
    precision: str = "float32"
    arithmetic_version: int = ARITHMETIC_VERSION

    def canonical_json(self) -> str:
        """The hashed text: sorted keys, no spaces, ASCII, the pixel preset without its name."""
        fields = asdict(self)
        if fields["pixels"] is not None:
            del fields["pixels"]["name"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.canonical_json().encode("ascii")).hexdigest()

    @property
    def folder_name(self) -> str:
        """``<backbone>-<first 12 hex digits>``."""
        safe = re.sub(r"[^A-Za-z0-9_.]+", "-", self.backbone).strip("-.") or "backbone"
        return f"{safe}-{self.sha256[:12]}"

    def differences(self, other: Fingerprint) -> list[str]:
        """Say in words what differs, e.g. ``"crop: 224 here, 112 there"``.

        Empty exactly when the two hashes are equal.
        """
        here, there = _flat(self), _flat(other)
        return [
            f"{key}: {_shown(here.get(key))} here, {_shown(there.get(key))} there"
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key)
        ]


def fingerprint_of(
    protocol: Protocol, *, weights_sha256: str, precision: str = "float32"
) -> Fingerprint:
    """The fingerprint of the features a protocol and a backbone give."""
    return Fingerprint(
        backbone=BACKBONE,
        weights_sha256=weights_sha256,
        pixels=PIXEL_PRESETS[protocol.pixels],
        window_rule=protocol.window_rule,
        window_frames=protocol.window_frames,
        snippet_frames=protocol.snippet_frames,
        snippet_starts=protocol.snippet_starts,
        precision=precision,
    )


def _flat(fingerprint: Fingerprint) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(fingerprint.canonical_json())
    pixels = fields.pop("pixels")
    if pixels is None:
        return {**fields, "pixels": "unknown"}
    return {**fields, **{f"pixels {key}": value for key, value in pixels.items()}}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        # Hashes are told apart by their beginning; the rest would drown the sentence.
        return value[:12] if re.fullmatch(r"[0-9a-f]{64}", value) else value
    return "not set" if value is None else json.dumps(value)


def cache_folder(root: Path, dataset: str, fingerprint: Fingerprint) -> Path:
    """Where the features of a data set lie: ``root/<dataset>/<backbone>-<fingerprint>``."""
    return root / dataset / fingerprint.folder_name


def machine_facts(**more: str | int | float | bool | None) -> MachineInfo:
    """What is worth knowing about the machine and its software, and should not matter.

    Reads package metadata only: neither torch nor PyAV is imported. What needs them
    (``gpu``, ``ffmpeg``, ``threads``) is given by the caller.
    """
    facts: MachineInfo = {"cpu": _cpu_name(), "platform": platform.platform()}
    facts["python"] = platform.python_version()
    for name in ("aqa-pipeline", "torch", "av", "h5py", "numpy"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    return {**facts, **more}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class CacheIdentity:
    """What ``fingerprint.json`` says about a cache folder.

    Attributes
    ----------
    fingerprint : Fingerprint
    machine : dict
        Facts of the machine that made the folder; only ever warned about.
    created_utc : str
    """

    fingerprint: Fingerprint
    machine: MachineInfo
    created_utc: str


def ensure_cache(
    folder: Path, fingerprint: Fingerprint, *, machine: MachineInfo | None = None
) -> None:
    """Make a cache folder, or check that the one there has this fingerprint.

    Several writers may do so at once: they write the same fingerprint.

    Raises
    ------
    CacheError
        The folder belongs to another fingerprint.
    SetupError
        The folder cannot be made.
    """
    if (folder / FILE_NAME).exists():
        check_fingerprint(folder, fingerprint)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    document = {
        "format": CACHE_FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": asdict(fingerprint),
        "fingerprint_sha256": fingerprint.sha256,
        "machine": machine_facts() if machine is None else machine,
        "created_utc": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    with atomic_file(folder / FILE_NAME) as file:
        file.write(json.dumps(document, indent=2, allow_nan=False).encode("ascii") + b"\n")


def check_fingerprint(folder: Path, fingerprint: Fingerprint) -> CacheIdentity:
    """Read ``fingerprint.json`` and compare.

    Raises
    ------
    CacheError
        It says something else, is missing or damaged.
    """
    identity = read_identity(folder)
    differing = fingerprint.differences(identity.fingerprint)
    if differing:
        raise CacheError(
            f"{folder}: these features were extracted with other settings "
            f"({'; '.join(differing)}); use those settings or extract again"
        )
    return identity


def read_identity(folder: Path) -> CacheIdentity:
    """Read ``fingerprint.json`` of a cache folder.

    Raises
    ------
    CacheError
        No such folder, or the file is missing, damaged or of another format version.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CacheError(
            f"{folder}: no feature cache here ({FILE_NAME} is missing); type "
            f"`aqa extract --dataset {folder.parent.name}` to make it"
        ) from None
    except (OSError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read ({error})") from error
    if not isinstance(document, dict) or document.get("format") != CACHE_FORMAT:
        raise CacheError(f"{path}: this is not the {FILE_NAME} of a feature cache")
    if document.get("format_version") != FORMAT_VERSION:
        raise CacheError(
            f"{path}: format version {document.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; update aqa-pipeline"
        )
    try:
        fingerprint = _from_json(document["fingerprint"])
        stored_sha256 = document["fingerprint_sha256"]
        identity = CacheIdentity(
            fingerprint, dict(document["machine"]), str(document["created_utc"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if stored_sha256 != fingerprint.sha256:
        raise CacheError(
            f"{path}: damaged or edited: it says fingerprint {str(stored_sha256)[:12]}, its "
            f"contents give {fingerprint.sha256[:12]}"
        )
    return identity


def _from_json(fields: Mapping[str, Any]) -> Fingerprint:
    starts = tuple(int(start) for start in fields["snippet_starts"])
    pixels = fields["pixels"] and _preset(fields["pixels"])
    return Fingerprint(**{**fields, "pixels": pixels, "snippet_starts": starts})


def _preset(fields: Mapping[str, Any]) -> PixelPreset:
    # JSON has lists where the preset has tuples.
    tupled: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return PixelPreset(**tupled)


def machine_differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Recorded facts that differ, in words, for a warning; facts only one side knows are not."""
    return [
        f"{key}: {here[key]} here, {there[key]} there"
        for key in sorted(here.keys() & there.keys())
        if here[key] != there[key]
    ]


def nearest_cache(dataset_folder: Path, fingerprint: Fingerprint) -> tuple[Path, list[str]] | None:
    """The existing cache of a data set that differs in the fewest settings.

    For telling the user, before a long extraction starts, what they changed.

    Returns
    -------
    (Path, list of str) or None
        The folder and :meth:`Fingerprint.differences` from it; None if there is no cache.
    """
    candidates = []
    for path in sorted(dataset_folder.glob(f"*/{FILE_NAME}")):
        try:
            other = read_identity(path.parent).fingerprint
        except CacheError:
            continue
        candidates.append((path.parent, fingerprint.differences(other)))
    return min(candidates, key=lambda candidate: len(candidate[1]), default=None)

"""Features from and for other programs: import into a cache, export out of one.

Imported features become a cache folder like any other, under a name the user gives
their backbone. What is unknown of them stays unknown: the fingerprint has no pixels, a
clip's source is the hash of its own features, its positions are the numbers of its steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aqa_pipeline.cache.fingerprint import FILE_NAME, Fingerprint, cache_folder
from aqa_pipeline.cache.foreign_files import ForeignFeatures, read_foreign, write_plain
from aqa_pipeline.cache.load import request_clips
from aqa_pipeline.cache.reader import FeatureCache
from aqa_pipeline.cache.segment import FeatureArray
from aqa_pipeline.cache.writer import ClipFeatures, SegmentWriter
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.errors import DataError

_SHOWN = 3


@dataclass(frozen=True)
class ImportedFeatures:
    """Result of :func:`import_features`.

    Attributes
    ----------
    folder : Path
        The cache folder.
    num_clips : int
        Clips that were in the file and in the manifest.
    num_new : int
        Those of them whose features were not in the cache yet.
    steps, dim : int
        Shape of a clip's features, after resampling.
    matched_by : str
        ``"clip_id"``, or ``"order"`` for a file without ids.
    only_in_manifest, only_in_file : list of str
        Clips left out; both empty unless ``partial``.
    """

    folder: Path
    num_clips: int
    num_new: int
    steps: int
    dim: int
    matched_by: str
    only_in_manifest: list[str]
    only_in_file: list[str]


def imported_fingerprint(backbone: str, *, steps: int, dim: int) -> Fingerprint:
    """The fingerprint of features that somebody else extracted.

    The dimension takes the place of the weights, so that features of different sizes
    never share a folder.
    """
    return Fingerprint(
        backbone=backbone,
        weights_sha256=hashlib.sha256(f"aqa-imported-1 dim={dim}".encode()).hexdigest(),
        pixels=None,
        window_rule="imported",
        window_frames=steps,
        snippet_frames=1,
        snippet_starts=tuple(range(steps)),
        arithmetic_version=0,
    )


def import_features(
    manifest: Manifest,
    path: Path,
    *,
    cache_root: Path,
    backbone: str,
    resample: int | None = None,
    partial: bool = False,
    dry_run: bool = False,
) -> ImportedFeatures:
    """Put features that somebody else extracted into a cache.

    A second import under the same name adds clips, and replaces those that changed.

    Parameters
    ----------
    manifest : Manifest
    path : Path
        See :mod:`aqa_pipeline.cache.foreign_files`.
    cache_root : Path
    backbone : str
        Name for what made the features, such as ``"videoswin"``.
    resample : int, optional
        Resample every clip to this many steps, linearly. Needed where clips differ in
        length.
    partial : bool
        Take the clips that manifest and file have in common, instead of refusing.
    dry_run : bool
        Check everything and write nothing.

    Raises
    ------
    DataError
        The file cannot be used, or its clips are not those of the manifest.
    SetupError
        The cache cannot be written.
    """
    if not backbone.strip():
        raise DataError("a backbone needs a name, such as videoswin")
    foreign = read_foreign(path)
    sequences, only_in_manifest, only_in_file = _matched(manifest, path, foreign, partial=partial)
    features = _equal_lengths(path, sequences, resample)
    steps, dim = next(iter(features.values())).shape
    fingerprint = imported_fingerprint(backbone, steps=steps, dim=dim)
    folder = cache_folder(cache_root, manifest.name, fingerprint)
    sources = {
        name: f"imported:{hashlib.sha256(array.astype('<f4').tobytes()).hexdigest()}"
        for name, array in features.items()
    }
    # Only the newest features of a clip count: those it had before that would not do.
    known = _newest_sources(folder, fingerprint, list(features))
    new = [name for name in features if known.get(name) != sources[name]]
    if not dry_run:
        with SegmentWriter(folder, fingerprint) as writer:
            for name in new:
                writer.add(
                    ClipFeatures(
                        clip_id=name,
                        source_id=sources[name],
                        frame_index=np.arange(steps, dtype=np.int64),
                        pts_seconds=np.full(steps, np.nan),
                        features=features[name][None],
                    )
                )
    return ImportedFeatures(
        folder=folder,
        num_clips=len(features),
        num_new=len(new),
        steps=steps,
        dim=dim,
        matched_by="order" if foreign.clip_ids is None else "clip_id",
        only_in_manifest=only_in_manifest,
        only_in_file=only_in_file,
    )


def _matched(
    manifest: Manifest, path: Path, foreign: ForeignFeatures, *, partial: bool
) -> tuple[dict[str, FeatureArray], list[str], list[str]]:
    """Sequences by clip id in the manifest's order, and the clips that only one side has."""
    wanted: list[str] = manifest.clips["clip_id"].tolist()
    if foreign.clip_ids is None:
        if len(foreign.sequences) != len(wanted):
            raise DataError(
                f"{path}: features of {len(foreign.sequences)} clips without ids, and "
                f"{manifest.path} has {len(wanted)}; give ids beside them (clip_id)"
            )
        return dict(zip(wanted, foreign.sequences, strict=True)), [], []
    found = dict(zip(foreign.clip_ids, foreign.sequences, strict=True))
    known = set(wanted)
    only_in_file = [name for name in found if name not in known]
    only_in_manifest = [name for name in wanted if name not in found]
    matched = {name: found[name] for name in wanted if name in found}
    if not matched or ((only_in_file or only_in_manifest) and not partial):
        hint = "; --partial takes the clips that both have" if matched else ""
        raise DataError(
            f"{path}: its clips are not those of {manifest.path}: "
            f"{_some(only_in_manifest)} only in the manifest, {_some(only_in_file)} only in "
            f"the file, {len(matched)} in both{hint}"
        )
    return matched, only_in_manifest, only_in_file


def _some(names: Sequence[str]) -> str:
    if not names:
        return "0"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(map(repr, names[:_SHOWN]))}{more})"


def _equal_lengths(
    path: Path, sequences: dict[str, FeatureArray], resample: int | None
) -> dict[str, FeatureArray]:
    first, model = next(iter(sequences.items()))
    for name, sequence in sequences.items():
        if sequence.shape[1] != model.shape[1]:
            raise DataError(
                f"{path}: {model.shape[1]} numbers a step in clip {first!r}, "
                f"{sequence.shape[1]} in clip {name!r}; expected one dimension for all"
            )
    if resample is not None:
        return {name: resampled(sequence, resample) for name, sequence in sequences.items()}
    lengths = {len(sequence) for sequence in sequences.values()}
    if len(lengths) > 1:
        raise DataError(
            f"{path}: clips of {min(lengths)} to {max(lengths)} steps, expected one length; "
            "--resample N resamples each to N steps"
        )
    return sequences


def resampled(sequence: FeatureArray, steps: int) -> FeatureArray:
    """A sequence of another length, by linear interpolation; its ends stay where they are.

    Parameters
    ----------
    sequence : ndarray of float32, shape=(T, dim)
    steps : int

    Returns
    -------
    ndarray of float32, shape=(steps, dim)
    """
    where = np.linspace(0, len(sequence) - 1, steps)
    left = np.floor(where).astype(np.int64)
    right = np.minimum(left + 1, len(sequence) - 1)
    weight = (where - left)[:, None]
    mixed: FeatureArray = (
        sequence[left] * (1 - weight) + sequence[right] * weight  # (steps, dim)
    ).astype(np.float32)
    return mixed


def _newest_sources(
    folder: Path, fingerprint: Fingerprint, clip_ids: Sequence[str]
) -> dict[str, str]:
    if not (folder / FILE_NAME).exists():
        return {}
    stored = FeatureCache.open(folder, fingerprint=fingerprint).stored(clip_ids)
    return dict(zip(stored.clip_ids, stored.source_ids, strict=True))


@dataclass(frozen=True)
class Exported:
    """Result of :func:`export_features`.

    Attributes
    ----------
    path : Path
    shape : (int, int, int)
        Of the features: (clips, snippets, dim).
    left_out : list of str
        Clips without features; empty unless ``partial``.
    """

    path: Path
    shape: tuple[int, int, int]
    left_out: list[str]


def export_features(
    manifest: Manifest, cache: FeatureCache, path: Path, *, partial: bool = False
) -> Exported:
    """Write the plain features of a manifest's clips to one file, in its order.

    The file holds ``features`` (clips, snippets, dim) float32, ``frame_index`` (clips,
    window) int64, ``score`` and ``difficulty`` float64, and the texts ``clip_id``,
    ``split`` and ``category``; ``about`` is JSON text with the fingerprint.

    Parameters
    ----------
    manifest : Manifest
    cache : FeatureCache
    path : Path
        ``.npz`` or ``.h5``; replaced in one step if it is there.
    partial : bool
        Leave out clips without features, instead of refusing.

    Raises
    ------
    CacheError
        Features are missing.
    DataError
        The suffix is neither.
    SetupError
        The file cannot be written.
    """
    asked: list[str] = manifest.clips["clip_id"].tolist()
    request = request_clips(manifest, cache, asked, partial=True)
    there = cache.cached(request)[:, 0]
    here = {name for name, found in zip(request.clip_ids, there, strict=True) if found}
    left_out = [name for name in asked if name not in here]
    if left_out and not (partial and here):
        raise cache.missing(left_out, asked=len(asked))
    request = request.take(np.flatnonzero(there))
    rows = manifest.clips[manifest.clips["clip_id"].isin(here)]
    features = cache.load(request).values[:, 0]  # (clips, snippets, dim)
    write_plain(
        path,
        features=features,
        texts={name: rows[name].tolist() for name in ("clip_id", "split", "category")},
        numbers={
            "frame_index": request.frame_index,
            "score": rows["score"].to_numpy(dtype=float),
            "difficulty": rows["difficulty"].to_numpy(dtype=float),
        },
        about={
            "format": "aqa-feature-export",
            "format_version": 1,
            "dataset": manifest.name,
            "fingerprint": asdict(cache.identity.fingerprint),
            "fingerprint_sha256": cache.identity.fingerprint.sha256,
        },
    )
    clips, snippets, dim = features.shape
    return Exported(path, (clips, snippets, dim), left_out)

"""Plan of a fine-tuning of one part, made without decoding or computing anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from aqa_pipeline.cache.load import feature_set, videos_apart
from aqa_pipeline.config import PIXEL_PRESETS, FinetuneConfig, FitConfig, HeadConfig
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.core.pairs import ExemplarKeys
from aqa_pipeline.datasets.locate import LocatedClip, locate, video_index_folder
from aqa_pipeline.datasets.manifest import Manifest
from aqa_pipeline.datasets.parts import Part
from aqa_pipeline.datasets.protocol import without_difficulty
from aqa_pipeline.errors import DataError, UsageError
from aqa_pipeline.finetune.draws import Augmentation
from aqa_pipeline.finetune.frames import crop_jitter
from aqa_pipeline.finetune.loop import TrainingData
from aqa_pipeline.finetune.start import FittedStart, check_start
from aqa_pipeline.finetune.validation import ValidationPlan
from aqa_pipeline.runs.config import stored_fit, stored_tensors
from aqa_pipeline.training.stack import checked_labels
from aqa_pipeline.training.validation import hold_out, validation_unit

IntArray = npt.NDArray[np.int64]

_NAMED = 5  #: missing videos that are named in an error


class Sides(NamedTuple):
    """Rows of the manifest on both sides of a part's split."""

    train: pd.DataFrame
    test: pd.DataFrame


@dataclass(frozen=True, eq=False)
class PartPlan:
    """One part, ready to be trained.

    Attributes
    ----------
    part : Part
    folder : Path
        Of its run.
    manifest : Manifest
        With the protocol it is trained by.
    sides : Sides
    labels : LabelScale
    located : list of LocatedClip
        Of every row of the material.
    material : TrainingData
    held_out : ndarray of int64, shape=(m,)
        Rows of the validation part; none in test-set model selection.
    validation_of : str or None
        ``single clips`` or ``whole videos``; None in test-set model selection.
    augmentation : Augmentation
    head_config : HeadConfig
    fit_config : FitConfig
    start : FittedStart or None
    settings : dict
        Everything that changes the numbers; plain values.
    """

    part: Part
    folder: Path
    manifest: Manifest
    sides: Sides
    labels: LabelScale
    located: list[LocatedClip]
    material: TrainingData
    held_out: IntArray
    validation_of: str | None
    augmentation: Augmentation
    head_config: HeadConfig
    fit_config: FitConfig
    start: FittedStart | None
    settings: dict[str, Any]

    @property
    def num_train(self) -> int:
        return len(self.sides.train)

    @property
    def train(self) -> FeatureSet:
        """The training split; its features are not there."""
        return self.material.clips.take(np.arange(self.num_train))

    @property
    def clips_of_category(self) -> Manifest:
        """The manifest's clips of the part's category, those in no split too."""
        clips = self.manifest.clips
        if self.part.category is not None:
            clips = clips[clips["category"] == self.part.category]
        return dataclasses.replace(self.manifest, clips=clips)


def plan_part(
    manifest: Manifest,
    part: Part,
    folder: Path,
    *,
    cache_root: Path,
    weights_sha256: str,
    head_config: HeadConfig,
    fit_config: FitConfig,
    config: FinetuneConfig,
    start: FittedStart | None,
) -> PartPlan:
    """Find the clips of a part, hold some out and check that everything fits together.

    Raises
    ------
    DataError
        A side of the split is empty, a video is missing, or there is nothing to learn.
    UsageError, CacheError
        The options contradict each other or the run to start from.
    """
    on_test = fit_config.model_selection == "test"
    if start is not None:
        if start.selection == "test" and not on_test:
            raise UsageError(
                f"{start.folder}: its epoch was chosen on the test set and no clip was held out "
                "of its training; fine-tune with test-set model selection, or fit a head without it"
            )
        head_config = start.head.config
        fit_config = dataclasses.replace(
            fit_config,
            seed=start.seed,
            use_difficulty=start.use_difficulty,
            num_exemplars=start.num_exemplars,
        )
    if not fit_config.use_difficulty:
        manifest = dataclasses.replace(manifest, protocol=without_difficulty(manifest.protocol))
    if start is not None:
        kept = ("exemplar_key", "label_transform", "label_ranges", "score_range", "epsilon")
        own = {name: getattr(start.protocol, name) for name in kept}
        manifest = dataclasses.replace(
            manifest, protocol=dataclasses.replace(manifest.protocol, **own)
        )
    sides = _sides(manifest, part)
    labels = start.labels if start else _labels(manifest, sides, published_ranges=on_test)
    train, test = (_unseen(rows, manifest, labels) for rows in sides)
    train = dataclasses.replace(
        train, video=videos_apart(sides.train["video"].tolist(), sides.test["video"].tolist())
    )
    checked_labels(train)
    if start is not None:
        check_start(start, weights_sha256=weights_sha256, train=train, protocol=manifest.protocol)
    clips = FeatureSet.concat([train, test])
    fit, held_out = _division(train, test, fit_config, start)
    unit = start.validation_of if start else validation_unit(train, fit_config)
    groups, _ = ExemplarKeys.of(train.key).match(train.key)
    located = _located(manifest, clips.clip_id, cache_root=cache_root)
    judged = np.arange(len(train), len(clips)) if on_test else held_out
    pixels = PIXEL_PRESETS[manifest.protocol.pixels]
    shift = config.shift_frames
    augmentation = Augmentation(
        shift_frames=manifest.protocol.shift_frames if shift is None else shift,
        flip=config.flip,
        jitter=crop_jitter(pixels, config.crop_jitter),
    )
    validation = ValidationPlan.of(
        clips.key, judged=judged, pool=fit, num_exemplars=fit_config.num_exemplars,
        seed=fit_config.seed,
    )  # fmt: skip
    return PartPlan(
        part=part,
        folder=folder,
        manifest=manifest,
        sides=sides,
        labels=labels,
        located=located,
        material=TrainingData(clips, fit, groups, validation),
        held_out=held_out,
        validation_of=None if on_test else unit,
        augmentation=augmentation,
        head_config=head_config,
        fit_config=fit_config,
        start=start,
        settings={
            "dataset": manifest.name,
            "part": dataclasses.asdict(part),
            "weights": weights_sha256,
            "from": _digest_of_head(start),
            "head": dataclasses.asdict(head_config),
            **{f"fit {name}": value for name, value in stored_fit(fit_config).items()},
            **dataclasses.asdict(config),
            "clips": _digest(clips, located, range(len(clips) if on_test else len(train))),
        },
    )


def _sides(manifest: Manifest, part: Part) -> Sides:
    sides = Sides(part.rows(manifest, "train"), part.rows(manifest, "test"))
    for name, rows in zip(("train", "test"), sides, strict=True):
        if rows.empty:
            which = "" if part.category is None else f" of category {part.category!r}"
            raise DataError(f"{manifest.path}: no clip{which} has {part.split_column} = {name}")
    return sides


def _labels(manifest: Manifest, sides: Sides, *, published_ranges: bool) -> LabelScale:
    return LabelScale.of(
        manifest.protocol,
        train_scores=sides.train["score"].to_numpy(dtype=float),
        train_categories=sides.train["category"].tolist(),
        published_ranges=published_ranges,
    )


def _unseen(rows: pd.DataFrame, manifest: Manifest, labels: LabelScale) -> FeatureSet:
    nothing = np.empty((len(rows), len(manifest.protocol.snippet_starts), 0), np.float32)
    return feature_set(rows, nothing, manifest, labels)


def _division(
    train: FeatureSet, test: FeatureSet, config: FitConfig, start: FittedStart | None
) -> tuple[IntArray, IntArray]:
    """Rows to learn from and rows held out; with a fitted head, as it was divided."""
    if start is None or config.model_selection == "test":
        division = hold_out(train, config, test if config.model_selection == "test" else None)
        return division.fit[0], division.held_out[0]
    held = set(start.held_out)
    is_held = np.array([clip_id in held for clip_id in train.clip_id])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _located(manifest: Manifest, clip_ids: Sequence[str], *, cache_root: Path) -> list[LocatedClip]:
    own = dataclasses.replace(
        manifest, clips=manifest.clips[manifest.clips["clip_id"].isin(set(clip_ids))]
    )
    located, missing = locate(own, index_folder=video_index_folder(cache_root))
    if missing:
        named = "; ".join(f"{gone.clip.clip_id}: {gone.error}" for gone in missing[:_NAMED])
        more = f"; and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise DataError(
            f"{manifest.path}: {len(missing)} of {len(clip_ids)} clips have no readable video "
            f"({named}{more}); `aqa manifest check {manifest.name}` looks at all of them"
        )
    by_id = {item.clip.clip_id: item for item in located}
    return [by_id[clip_id] for clip_id in clip_ids]


def _digest(clips: FeatureSet, located: Sequence[LocatedClip], rows: Sequence[int]) -> str:
    """Hash of what is learned from: ids, videos, windows and labels."""
    digest = hashlib.sha256()
    for row in rows:
        item = located[row]
        fields = [clips.clip_id[row], item.source_id, item.positions.tolist(), clips.label[row]]
        digest.update(json.dumps([*fields, clips.key[row]]).encode())
    return digest.hexdigest()[:16]


def _digest_of_head(start: FittedStart | None) -> str | None:
    if start is None:
        return None
    digest = hashlib.sha256()
    for name, value in sorted(stored_tensors(start.head.state_dict()).items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]

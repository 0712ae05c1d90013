"""The initial head of a fine-tuning: from a fitted run, or fresh.

A run's head brings its validation part with it. To hold out other clips would choose the
epoch on clips that the head has learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from aqa_pipeline.config import HeadConfig, Protocol
from aqa_pipeline.core.featureset import FeatureSet
from aqa_pipeline.core.labels import LabelScale
from aqa_pipeline.core.pairs import ExemplarKeys, pair_deltas
from aqa_pipeline.errors import CacheError, DataError, UsageError
from aqa_pipeline.heads.head import Head
from aqa_pipeline.heads.outputs import fit_output_layer, output_from_settings
from aqa_pipeline.runs.folder import Run, read_run

IntArray = npt.NDArray[np.int64]
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class FittedStart:
    """One head of a fitted run.

    Attributes
    ----------
    folder : Path
    head : Head
        K = 1.
    seed : int
    num_heads : int
        Of the run; this is the one that was best on its validation part.
    protocol : Protocol
    labels : LabelScale
    held_out : tuple of str
        Clips of its validation part.
    weights_sha256 : str
        Of the backbone whose features it was fitted on.
    selection : {"validation", "test"}
        How its epoch was chosen.
    use_difficulty : bool
    num_exemplars : int or None
    validation_of : str or None
        What was held out, see :func:`aqa_pipeline.training.validation.validation_unit`.
    """

    folder: Path
    head: Head
    seed: int
    num_heads: int
    protocol: Protocol
    labels: LabelScale
    held_out: tuple[str, ...]
    weights_sha256: str
    selection: str
    use_difficulty: bool
    num_exemplars: int | None
    validation_of: str | None


def read_start(folder: Path) -> FittedStart:
    """The best head of a run folder.

    Raises
    ------
    DataError
        If it is not a run folder.
    UsageError
        If its head does not compare clips.
    """
    run = read_run(folder, device=CPU)
    if not isinstance(run.head, Head) or not run.head.is_contrastive:
        raise UsageError(
            f"{folder}: a {run.head.config.name} head scores a clip alone; fine-tuning trains "
            "pairs and needs a head that compares (`aqa fit-head --mode contrastive`)"
        )
    scores = [-np.inf if rho is None else rho for rho in run.config.selection_rho]
    number = int(np.argmax(scores))
    return FittedStart(
        folder=folder,
        head=_one_of(run, run.head, number),
        seed=run.seeds[number],
        num_heads=run.head.num_models,
        protocol=run.protocol,
        labels=run.labels,
        held_out=run.config.validation_clips[number],
        weights_sha256=run.config.cache.weights_sha256,
        selection=run.fit_config.model_selection,
        use_difficulty=run.fit_config.use_difficulty,
        num_exemplars=run.fit_config.num_exemplars,
        validation_of=run.config.validation_of,
    )


def _one_of(run: Run, head: Head, number: int) -> Head:
    """Model ``number`` of a stack, as a stack of one."""
    settings = {
        name: value[number : number + 1] for name, value in head.settings()["output"].items()
    }
    generators = [torch.Generator().manual_seed(0)]
    one = Head(
        head.config,
        num_snippets=run.exemplars.features.shape[1],
        feature_dim=run.exemplars.features.shape[2],
        output=output_from_settings(head.config, settings, generators),
        epsilon=head.epsilon,
        generators=generators,
    )
    one.load_state_dict({k: v[number : number + 1] for k, v in head.state_dict().items()})
    return one


def check_start(
    start: FittedStart, *, weights_sha256: str, train: FeatureSet, protocol: Protocol
) -> None:
    """Whether a head can go on with this backbone and these clips.

    Raises
    ------
    CacheError
        It was fitted on another backbone's features, or on clips cut otherwise.
    DataError
        A clip of its validation part is not in the training split any more.
    """
    if start.weights_sha256 != weights_sha256:
        raise CacheError(
            f"{start.folder}: its head was fitted on features of the weights "
            f"{start.weights_sha256[:12]}, not on those of {weights_sha256[:12]}; name its "
            "weights with --weights, or fit a head on features of these"
        )
    for name in ("window_rule", "window_frames", "snippet_frames", "snippet_starts", "pixels"):
        here, there = getattr(protocol, name), getattr(start.protocol, name)
        if here != there:
            raise CacheError(
                f"{start.folder}: fitted with {name} = {there}, the protocol beside the manifest "
                f"says {here}"
            )
    gone = sorted(set(start.held_out) - set(train.clip_id))
    if gone:
        raise DataError(
            f"{start.folder}: {len(gone)} clips of its validation part ({gone[0]}, ...) are not in "
            "the training split any more; fit the head again"
        )


def fresh_head(
    config: HeadConfig,
    train: FeatureSet,
    fit: IntArray,
    features: npt.NDArray[np.float32],
    *,
    score_range: float | None,
    epsilon: float | None,
    seed: int,
) -> Head:
    """A new head for the clips to learn from, as stage two begins with.

    Parameters
    ----------
    config : HeadConfig
    train : FeatureSet
        The training split; its features are not looked at.
    fit : ndarray of int64, shape=(n,)
        Rows to learn from.
    features : ndarray of float32, shape=(n, S, D)
        Of those rows, by the backbone as it is before training.
    score_range, epsilon : float or None
        See :class:`~aqa_pipeline.config.Protocol`.
    seed : int

    Raises
    ------
    UsageError
        If the head would not compare.
    DataError
        If no two clips share an exemplar group.
    """
    if config.mode != "contrastive":
        raise UsageError("fine-tuning trains pairs: the head must compare (--mode contrastive)")
    labels = train.label
    groups, _ = ExemplarKeys.of(train.key).match(train.key)
    deltas = pair_deltas(labels[fit], groups[fit])
    if not deltas.size:
        raise DataError(
            "no two training clips share an exemplar group, so there is no pair to learn from; "
            "compare more widely with another exemplar_key in the protocol"
        )
    generators = [torch.Generator().manual_seed(seed)]
    head = Head(
        config,
        num_snippets=features.shape[1],
        feature_dim=features.shape[2],
        output=fit_output_layer(
            config,
            [deltas],
            score_range=score_range or float(np.ptp(labels)),
            train=train,
            generators=generators,
        ),
        epsilon=epsilon or float(np.abs(labels).max()),
        generators=generators,
    )
    head.fit_standardisation(torch.from_numpy(features), torch.arange(len(fit)).unsqueeze(0))
    return head

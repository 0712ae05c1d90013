"""The backbone that made a run's features, for new videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aqa_pipeline.errors import CacheError
from aqa_pipeline.exchange import imported_fingerprint
from aqa_pipeline.extract import Encode, i3d_backbone
from aqa_pipeline.plan import BACKBONE_DIM, fingerprint_of
from aqa_pipeline.run_folder import Run
from aqa_pipeline.weights import find_weights, weights_identity


def load_backbone(runs: Sequence[Run], weights: Path | None = None) -> Encode:
    """Load the backbone of a run, or of the runs of its categories and folds.

    Parameters
    ----------
    runs : sequence of Run
    weights : Path or None
        None: what the run folder brings, else what ``aqa weights fetch`` fetched.

    Raises
    ------
    CacheError
        If the features came from another program, from other weights, or were cut in another
        way than the run's protocol says.
    SetupError
        If there are no weights, or they are damaged.
    """
    run = runs[0]
    identities = {own.config["cache"]["weights_sha256"] for own in runs}
    if len(identities) > 1:
        raise CacheError(
            f"{run.folder.parent}: its parts were fitted on features of {len(identities)} "
            "different backbones; fit them again from one cache"
        )
    wanted = run.config["cache"]["weights_sha256"]
    steps, dim = run.exemplars.features.shape[1:]
    if wanted == imported_fingerprint("", steps=steps, dim=dim).weights_sha256:
        raise CacheError(
            f"{run.folder}: its features were imported, not extracted here, so no video can be "
            "turned into such features; score clips of its manifest with `aqa evaluate`"
        )
    _check_settings(run)
    path = weights or own_weights(run) or find_weights()
    found = weights_identity(path)
    if found != wanted:
        raise CacheError(
            f"{path}: these weights ({found[:12]}) are not those that made the features of "
            f"{run.folder} ({wanted[:12]}); give the right ones with --weights"
        )
    return i3d_backbone(path, run.protocol)()


def own_weights(run: Run) -> Path | None:
    """Weights that lie in the run folder (of a fine-tuned backbone), or None."""
    name = run.config.get("backbone")
    return run.folder / name if isinstance(name, str) and name else None


def _check_settings(run: Run) -> None:
    """Whether the protocol in the run folder is how the features were made."""
    if run.exemplars.features.shape[2] != BACKBONE_DIM:
        return  # a network of a test
    wanted = run.config["cache"]["fingerprint_sha256"]
    here = fingerprint_of(run.protocol, weights_sha256=run.config["cache"]["weights_sha256"])
    if here.sha256 != wanted:
        raise CacheError(
            f"{run.folder}: its features ({run.config['cache']['folder']}) were extracted with "
            "other settings than its protocol says or this program uses; extract and fit again "
            "to score videos with it"
        )

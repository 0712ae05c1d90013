"""Backbone that made a run's features, for new videos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aqa_pipeline.backbone.encoder import Encode, i3d_backbone
from aqa_pipeline.backbone.precision import FLOAT32, PRECISIONS
from aqa_pipeline.backbone.weights import find_weights, weights_identity
from aqa_pipeline.cache.exchange import imported_fingerprint
from aqa_pipeline.cache.fingerprint import fingerprint_of
from aqa_pipeline.config import Protocol
from aqa_pipeline.device import naming_shortage
from aqa_pipeline.errors import CacheError
from aqa_pipeline.runs.folder import Run

#: What to do where a device has no memory left for a backbone and its heads.
LESS_MEMORY = "score on the CPU, or end what else uses the GPU"

_log = logging.getLogger(__name__)


def load_backbone(
    runs: Sequence[Run],
    weights: str | Path | None = None,
    *,
    protocol: Protocol | None = None,
    device: str = "cpu",
) -> Encode:
    """Load the backbone of a run, or of the runs of its categories and folds.

    Parameters
    ----------
    runs, weights, device
        As for :func:`find_backbone`, with its errors.
    protocol : Protocol or None
        How a window is cut into snippets; None: as the run says.
    """
    found = find_backbone(runs, weights, device=device)
    with naming_shortage(device, LESS_MEMORY):
        return i3d_backbone(
            found.weights, protocol or runs[0].protocol, device=device, precision=found.precision
        )()


@dataclass(frozen=True)
class RunBackbone:
    """What made a run's features: the weights, and the precision to compute them in here."""

    weights: Path
    precision: str


def find_backbone(
    runs: Sequence[Run], weights: str | Path | None = None, *, device: str = "cpu"
) -> RunBackbone:
    """Find the backbone of a run, or of the runs of its categories and folds.

    Parameters
    ----------
    runs : sequence of Run
    weights : str, Path or None
        None: what the run folder brings, else what ``aqa weights fetch`` fetched.
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    CacheError
        If the features came from another program, from other weights, or were cut in another
        way than the run's protocol says.
    SetupError
        If there are no weights, or they are damaged.
    """
    run = runs[0]
    identities = {own.config.cache.weights_sha256 for own in runs}
    if len(identities) > 1:
        raise CacheError(
            f"{run.folder.parent}: its parts were fitted on features of {len(identities)} "
            f"different backbones; name one of them, such as {run.folder}"
        )
    wanted = run.config.cache.weights_sha256
    steps, dim = run.exemplars.features.shape[1:]
    if wanted == imported_fingerprint("", steps=steps, dim=dim).weights_sha256:
        raise CacheError(
            f"{run.folder}: its features were imported, not extracted here, so no video can be "
            "turned into such features; score clips of its manifest with `aqa evaluate`"
        )
    precision = _precision(run)
    if device == "cpu" and precision != FLOAT32:
        _log.warning(
            "%s: its features were made in %s on a GPU; here they are made in float32, which "
            "differs in the third digit",
            run.folder,
            precision,
        )
        precision = FLOAT32
    path = Path(weights) if weights else own_weights(run) or find_weights()
    found = weights_identity(path)
    if found != wanted:
        raise CacheError(
            f"{path}: these weights ({found[:12]}) are not those that made the features of "
            f"{run.folder} ({wanted[:12]}); give the right ones",
            fact="weights",
        )
    return RunBackbone(path, precision)


def own_weights(run: Run) -> Path | None:
    """Weights that lie in the run folder (of a fine-tuned backbone), or None."""
    name = run.config.cache.weights_file
    return run.folder / name if name else None


def has_exact_features(run: Run) -> bool:
    """Whether a clip's features come out the same each time: float32, and no GPU took part.

    A run folder says where the head was fitted and now is; that a run fitted on a CPU has
    features of a GPU it cannot say, but in float32 these differ by rounding alone.
    """
    devices = (str(run.head.device), run.config.provenance.device)
    if any(name != "cpu" for name in devices):
        return False
    # A run put together in memory may not say what its features came from.
    return not run.config.cache.folder or _known_precision(run) in (None, FLOAT32)


def _known_precision(run: Run) -> str | None:
    """What the features were computed in, None if not by the way the run's protocol says.

    The run folder holds the hash of their fingerprint, and the protocol has all of it but this.
    """
    cache = run.config.cache
    for precision in PRECISIONS:
        here = fingerprint_of(
            run.protocol, weights_sha256=cache.weights_sha256, precision=precision
        )
        if here.sha256 == cache.fingerprint_sha256:
            return precision
    return None


def _precision(run: Run) -> str:
    """What the features were computed in.

    Raises
    ------
    CacheError
        They were made otherwise than the run's protocol says.
    """
    precision = _known_precision(run)
    if precision is not None:
        return precision
    raise CacheError(
        f"{run.folder}: its features ({run.config.cache.folder}) were extracted with other "
        "settings than its protocol says or this program uses; extract and fit again to score "
        "videos with it"
    )

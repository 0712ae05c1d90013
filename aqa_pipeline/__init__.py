"""Action quality assessment with contrastive regression (CoRe + GART), in two stages.

Stage one turns every clip into snippet features once and keeps them in an HDF5 cache; stage two
trains and compares heads on the cached features; a fitted run scores new videos.

.. code-block:: python

    import aqa_pipeline as aqa

    manifest = aqa.read_manifest("manifests/demo.csv")
    cache = aqa.extract_dataset(manifest).open_cache()
    metrics = aqa.fit_dataset(manifest, cache, "runs/demo")
    with aqa.Scorer.load("runs/demo") as scorer:
        scored = scorer.score("dive.mp4", difficulty=3.2)

The names of ``__all__`` are public (docs/python.md); everything else is reached by its room and
promises nothing. Each name is imported when it is first used: ``import aqa_pipeline`` is cheap.
"""

from typing import TYPE_CHECKING

from aqa_pipeline._version import __version__ as __version__
from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.cache.clip_dataset import CachedFeatures as CachedFeatures
    from aqa_pipeline.cache.load import load_split as load_split
    from aqa_pipeline.cache.load import open_cache as open_cache
    from aqa_pipeline.cache.reader import FeatureCache as FeatureCache
    from aqa_pipeline.config import FitConfig as FitConfig
    from aqa_pipeline.config import HeadConfig as HeadConfig
    from aqa_pipeline.config import Protocol as Protocol
    from aqa_pipeline.core.featureset import FeatureSet as FeatureSet
    from aqa_pipeline.core.metrics import fisher_mean as fisher_mean
    from aqa_pipeline.core.metrics import relative_l2 as relative_l2
    from aqa_pipeline.core.metrics import spearman as spearman
    from aqa_pipeline.datasets.manifest import Manifest as Manifest
    from aqa_pipeline.datasets.manifest import read_manifest as read_manifest
    from aqa_pipeline.errors import AqaError as AqaError
    from aqa_pipeline.errors import CacheError as CacheError
    from aqa_pipeline.errors import ClipError as ClipError
    from aqa_pipeline.errors import DataError as DataError
    from aqa_pipeline.errors import MissingFactError as MissingFactError
    from aqa_pipeline.errors import SetupError as SetupError
    from aqa_pipeline.errors import UsageError as UsageError
    from aqa_pipeline.extraction.extract import extract_dataset as extract_dataset
    from aqa_pipeline.runs.evaluate import evaluate_run as evaluate_run
    from aqa_pipeline.runs.folder import Run as Run
    from aqa_pipeline.runs.folder import read_run as read_run
    from aqa_pipeline.scoring.assessor import ClipMetadata as ClipMetadata
    from aqa_pipeline.scoring.explainer import Explainer as Explainer
    from aqa_pipeline.scoring.result import ScoredClip as ScoredClip
    from aqa_pipeline.scoring.scorer import Scorer as Scorer
    from aqa_pipeline.training.fit import fit_dataset as fit_dataset
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        eager=("__version__",),
        cache__clip_dataset="CachedFeatures",
        cache__load="load_split open_cache",
        cache__reader="FeatureCache",
        config="FitConfig HeadConfig Protocol",
        core__featureset="FeatureSet",
        core__metrics="fisher_mean relative_l2 spearman",
        datasets__manifest="Manifest read_manifest",
        errors="AqaError CacheError ClipError DataError MissingFactError SetupError UsageError",
        extraction__extract="extract_dataset",
        runs__evaluate="evaluate_run",
        runs__folder="Run read_run",
        scoring__assessor="ClipMetadata",
        scoring__explainer="Explainer",
        scoring__result="ScoredClip",
        scoring__scorer="Scorer",
        training__fit="fit_dataset",
    )

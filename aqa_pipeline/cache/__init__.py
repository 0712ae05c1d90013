"""The feature cache: the contract between stage one and stage two."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.cache.clip_dataset import CachedFeatures as CachedFeatures
    from aqa_pipeline.cache.exchange import export_features as export_features
    from aqa_pipeline.cache.exchange import import_features as import_features
    from aqa_pipeline.cache.load import SplitClips as SplitClips
    from aqa_pipeline.cache.load import load_split as load_split
    from aqa_pipeline.cache.load import open_cache as open_cache
    from aqa_pipeline.cache.reader import FeatureCache as FeatureCache
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        clip_dataset="CachedFeatures",
        exchange="export_features import_features",
        load="SplitClips load_split open_cache",
        reader="FeatureCache",
    )

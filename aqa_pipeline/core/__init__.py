"""The method's arithmetic on numpy arrays."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.core.featureset import FeatureSet as FeatureSet
    from aqa_pipeline.core.groups import Groups as Groups
    from aqa_pipeline.core.labels import LabelScale as LabelScale
    from aqa_pipeline.core.metrics import bootstrap_interval as bootstrap_interval
    from aqa_pipeline.core.metrics import fisher_mean as fisher_mean
    from aqa_pipeline.core.metrics import kendall_tau as kendall_tau
    from aqa_pipeline.core.metrics import relative_l2 as relative_l2
    from aqa_pipeline.core.metrics import spearman as spearman
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        featureset="FeatureSet",
        groups="Groups",
        labels="LabelScale",
        metrics="bootstrap_interval fisher_mean kendall_tau relative_l2 spearman",
    )

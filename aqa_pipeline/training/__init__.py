"""Stage two: heads on cached features."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.training.fit import FitResult as FitResult
    from aqa_pipeline.training.fit import fit_dataset as fit_dataset
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, fit="FitResult fit_dataset")

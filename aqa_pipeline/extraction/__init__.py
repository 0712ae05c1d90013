"""Stage one: every clip of a manifest through the backbone, once."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.extraction.extract import ExtractSummary as ExtractSummary
    from aqa_pipeline.extraction.extract import extract_dataset as extract_dataset
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        extract="ExtractSummary extract_dataset",
    )

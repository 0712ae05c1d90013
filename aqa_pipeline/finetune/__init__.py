"""Backbone and head trained together."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.finetune.run import finetune_dataset as finetune_dataset
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, run="finetune_dataset")

"""Action quality assessment with contrastive regression (CoRe + GART), in two stages.

Stage one turns every clip into snippet features once and keeps them in an HDF5 cache;
stage two trains and compares heads on the cached features. Nothing heavy is imported
here: ``import aqa_pipeline`` is cheap, the modules bring what they need.
"""

from typing import TYPE_CHECKING, Any

from aqa_pipeline._version import __version__

if TYPE_CHECKING:
    from aqa_pipeline.scoring.result import ScoredClip
    from aqa_pipeline.scoring.scorer import Scorer

__all__ = ["ScoredClip", "Scorer", "__version__"]

_LAZY = {"Scorer": "aqa_pipeline.scoring.scorer", "ScoredClip": "aqa_pipeline.scoring.result"}


def __getattr__(name: str) -> Any:
    """``aqa_pipeline.Scorer`` is imported when it is asked for: it brings torch."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'aqa_pipeline' has no attribute {name!r}")

"""Regression heads: tensors in, scores out, no files."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.heads.head import Head as Head
    from aqa_pipeline.heads.head import Regressor as Regressor
    from aqa_pipeline.heads.outputs import OutputLayer as OutputLayer
    from aqa_pipeline.heads.svr import SvrHead as SvrHead
    from aqa_pipeline.heads.voting import ExemplarVoter as ExemplarVoter
    from aqa_pipeline.heads.voting import Predictions as Predictions
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        head="Head Regressor",
        outputs="OutputLayer",
        svr="SvrHead",
        voting="ExemplarVoter Predictions",
    )

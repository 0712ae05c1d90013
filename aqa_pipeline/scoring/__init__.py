"""A new video: its score, how sure, and why."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.scoring.assessor import ClipMetadata as ClipMetadata
    from aqa_pipeline.scoring.explainer import Explainer as Explainer
    from aqa_pipeline.scoring.explainer import Explanation as Explanation
    from aqa_pipeline.scoring.result import ExemplarVote as ExemplarVote
    from aqa_pipeline.scoring.result import ScoredClip as ScoredClip
    from aqa_pipeline.scoring.scorer import Scorer as Scorer
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        assessor="ClipMetadata",
        explainer="Explainer Explanation",
        result="ExemplarVote ScoredClip",
        scorer="Scorer",
    )

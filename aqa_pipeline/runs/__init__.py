"""A fitted run on disk, and how good it is."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.runs.evaluate import evaluate_run as evaluate_run
    from aqa_pipeline.runs.folder import Run as Run
    from aqa_pipeline.runs.folder import read_run as read_run
    from aqa_pipeline.runs.metrics import AverageMetrics as AverageMetrics
    from aqa_pipeline.runs.metrics import Metrics as Metrics
    from aqa_pipeline.runs.metrics import read_metrics as read_metrics
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        evaluate="evaluate_run",
        folder="Run read_run",
        metrics="AverageMetrics Metrics read_metrics",
    )

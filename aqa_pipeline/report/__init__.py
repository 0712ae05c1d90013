"""Pages, pictures and tables of runs."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.report.explanation_files import write_explanation as write_explanation
    from aqa_pipeline.report.page import write_report as write_report
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        explanation_files="write_explanation",
        page="write_report",
    )

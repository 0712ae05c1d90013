"""From a data set or a CSV to a checked manifest."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.datasets.check import check_manifest as check_manifest
    from aqa_pipeline.datasets.manifest import Manifest as Manifest
    from aqa_pipeline.datasets.manifest import read_manifest as read_manifest
    from aqa_pipeline.datasets.manifest import write_manifest as write_manifest
    from aqa_pipeline.datasets.own import import_csv as import_csv
    from aqa_pipeline.datasets.parts import Part as Part
    from aqa_pipeline.datasets.parts import parts_of as parts_of
    from aqa_pipeline.datasets.split import split_manifest as split_manifest
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        check="check_manifest",
        manifest="Manifest read_manifest write_manifest",
        own="import_csv",
        parts="Part parts_of",
        split="split_manifest",
    )

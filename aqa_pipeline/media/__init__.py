"""From a video file or frame folder to the frames of a clip, safely."""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.media.clip import ClipFrames as ClipFrames
    from aqa_pipeline.media.clip import ClipRequest as ClipRequest
    from aqa_pipeline.media.clip import read_clip as read_clip
    from aqa_pipeline.media.reader import VideoReader as VideoReader
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        clip="ClipFrames ClipRequest read_clip",
        reader="VideoReader",
    )

"""A local page that scores clips: drop a video, see its score and the reasons.

============  ===================================================================
``uploads``   taking a file in: size, first bytes, a name of our own
``jobs``      one after the other, in one thread
``guard``     checks of every request, headers of every answer
``fields``    form fields of a clip, and their answers
``app``       addresses
``server``    all of it together, and the socket
============  ===================================================================

What was uploaded is decoded in a process with limits of time and memory
(:mod:`aqa_pipeline.media.sandbox`), and deleted when its job has ended.
"""

from typing import TYPE_CHECKING

from aqa_pipeline.lazy import lazy_names

if TYPE_CHECKING:
    from aqa_pipeline.serve.server import serve as serve
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, server="serve")

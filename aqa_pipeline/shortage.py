"""Memory that runs out, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aqa_pipeline.errors import SetupError


@contextmanager
def naming_shortage(device: object, advice: str) -> Iterator[None]:
    """Turn what a device says when its memory runs out into a sentence; the rest passes.

    Parameters
    ----------
    device : object
        Its name is the beginning of the sentence.
    advice : str
        What to lower or type, the end of the sentence.

    Raises
    ------
    SetupError
    """
    try:
        yield
    except RuntimeError as error:
        from aqa_pipeline.batched_encoder import is_shortage

        if not is_shortage(error):
            raise
        said = str(error).strip().split("\n", 1)[0]
        raise SetupError(f"{device}: out of memory ({said}); {advice}") from error

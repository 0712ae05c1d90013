"""The switch between the readable and the quick form of a head.

:mod:`~aqa_pipeline.heads.head`, :mod:`~aqa_pipeline.heads.gart` and
:mod:`~aqa_pipeline.heads.outputs` tell the method in plain torch. Where a quicker way to the same
numbers is known, the function names it (``@quick_form(...)``), and it is taken unless
:func:`readable_form` is on. Quick forms: linear.py, leaf_paths.py, leaf_search.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Form = TypeVar("Form", bound=Callable[..., Any])

_is_quick: ContextVar[bool] = ContextVar("_is_quick", default=True)


def quick_form(quick: Callable[..., Any]) -> Callable[[Form], Form]:
    """Take ``quick`` for the decorated function.

    It has the same parameters and result; it answers ``NotImplemented`` where it is of no use,
    such as on a GPU.
    """

    def decorate(readable: Form) -> Form:
        @functools.wraps(readable)
        def either(*args: Any, **kwargs: Any) -> Any:
            result = quick(*args, **kwargs) if _is_quick.get() else NotImplemented
            return readable(*args, **kwargs) if result is NotImplemented else result

        return either  # type: ignore[return-value]

    return decorate


@contextmanager
def readable_form() -> Iterator[None]:
    """Compute with the readable forms alone."""
    token = _is_quick.set(False)
    try:
        yield
    finally:
        _is_quick.reset(token)

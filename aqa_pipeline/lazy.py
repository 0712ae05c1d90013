"""Public names of a package, imported when they are first asked for.

The package imports them under ``TYPE_CHECKING``, where type checkers and readers see them, and
makes ``__getattr__``, ``__dir__`` and ``__all__`` here: torch, numpy and pandas stay away until
somebody needs them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(
    package: str, *, eager: tuple[str, ...] = (), **modules: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    eager : tuple of str
        Public names that it has from the start.
    modules : str
        Module below the package (two underscores for a dot) = its public names, between blanks.
    """
    home = {
        name: f"{package}.{module.replace('__', '.')}"
        for module, names in modules.items()
        for name in names.split()
    }

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    def names_and_modules() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, names_and_modules, sorted([*eager, *home])

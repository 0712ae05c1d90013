"""HTML pages: one Jinja environment, style sheets and scripts, numbers as text."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from aqa_pipeline._version import __version__


@cache
def environment() -> Environment:
    """The environment of all pages; it finds templates of the report and of the local page."""
    made = Environment(
        loader=ChoiceLoader(
            [PackageLoader("aqa_pipeline.report"), PackageLoader("aqa_pipeline.serve")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    return made


def render(template: str, /, **values: Any) -> str:
    """The page that a template makes of values; it also knows the program's version."""
    return environment().get_template(template).render(version=__version__, **values)


def template_text(name: str) -> str:
    """A style sheet or script from a ``templates`` folder, as it is."""
    made = environment()
    assert made.loader is not None
    return made.loader.get_source(made, name)[0]


def number(value: float | None, digits: int = 2, factor: float = 1.0) -> str:
    """A number for people; a dash where it is not defined."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * factor:.{digits}f}".replace("-", "−")

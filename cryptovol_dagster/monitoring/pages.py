"""HTML pages from the template files in `templates/`: every value is escaped, a missing one is an error."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **values: Any) -> str:
    """Render a template with values.

    Args:
        template: the file's name in `templates/`.
        values: variables of the template.

    Raises:
        jinja2.UndefinedError: the template uses a variable without a value.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cryptovol_dagster.monitoring"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": "{:.0%}".format, "pixels": "{:.1f}".format}
    return environment

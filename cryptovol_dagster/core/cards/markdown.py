"""Parts of Markdown: tables, numbers and intervals, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Text of an unknown number.
NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a `|` in a cell must be escaped.

    Examples:
        >>> for line in table(["model", "AP"], [["ewma", number(0.4321)]]):
        ...     print(line)
        | model | AP |
        | --- | --- |
        | ewma | 0.432 |
    """
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *["| " + " | ".join(row) + " |" for row in rows],
    ]


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; a dash for None.

    Examples:
        >>> number(0.12345), number(None)
        ('0.123', '–')
    """
    return NONE if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """Return text such as ``0.123 [0.100, 0.150]``; the interval only where it is known.

    Examples:
        >>> with_interval(0.0213, 0.01, 0.03, signed=True)
        '+0.021 [+0.010, +0.030]'
    """
    sign = "+" if signed else ""
    if value is None:
        return NONE
    bounds = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{bounds}"

"""Markdown in pieces: tables, numbers and intervals, as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: What stands where a number is unknown.
NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a cell holds no `|` but an escaped one."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *["| " + " | ".join(row) + " |" for row in rows],
    ]


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash for none."""
    return NONE if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """Write ``0.123 [0.100, 0.150]``; the interval only where it is known."""
    sign = "+" if signed else ""
    if value is None:
        return NONE
    bounds = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{bounds}"

"""How verbs print tables: as wide as the terminal, and in a pipe or a file as wide as they need."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence

import click

#: Wider than any table: in a pipe or a file nothing is wrapped.
_WIDTH_WITHOUT_TERMINAL = 10_000
#: Spaces between two columns.
_BETWEEN = 2


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[str]) -> None:
    """Print a table without rules, so that it reads well on a terminal and in a pipe.

    A terminal that is too narrow folds cells between words. No word and no number is ever cut.

    Args:
        columns: headings.
        rows: cells as they are shown; nothing in them is taken for markup.
        words: headings of the columns that hold words, which stand at the left. The others hold numbers.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = list(rows)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    widths = _widths(columns, cells, words, console.width - _BETWEEN * (len(columns) - 1))
    console.width = sum(widths) + _BETWEEN * len(columns)
    table = Table(box=None, pad_edge=False)
    for name, width in zip(columns, widths, strict=True):
        table.add_column(name, justify="left" if name in words else "right", width=width, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        click.echo(line.rstrip())


def _widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str], available: int
) -> list[int]:
    """Return each column's width: what its cells need, and less for words where the terminal is narrow.

    Rich's own choice shrinks a column below its longest word, which cuts links and names in two.
    """
    from rich.cells import cell_len

    cells = [[name, *(row[k] for row in rows)] for k, name in enumerate(columns)]
    widths = [max(map(cell_len, column)) for column in cells]
    least = [
        max(map(cell_len, " ".join(column).split()), default=0) if name in words else width
        for name, column, width in zip(columns, cells, widths, strict=True)
    ]
    while sum(widths) > available and widths != least:
        widest = max(range(len(columns)), key=lambda k: (widths[k] > least[k], widths[k]))
        widths[widest] -= 1
    return widths

"""How verbs print tables: as wide as the terminal, and in a pipe or a file as wide as they need."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence

import click

#: Wider than any table: in a pipe or a file nothing is wrapped.
_WIDTH_WITHOUT_TERMINAL = 10_000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[str]) -> None:
    """Print a table without rules, so that it reads well on a terminal and in a pipe.

    A terminal that is too narrow folds words; numbers are never folded nor cut.

    Args:
        columns: headings.
        rows: cells as they are shown; nothing in them is taken for markup.
        words: headings of the columns that hold words, which stand at the left. The others hold numbers.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in columns:
        is_words = name in words
        table.add_column(name, justify="left" if is_words else "right", no_wrap=not is_words, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    unlimited = console.options.update(max_width=_WIDTH_WITHOUT_TERMINAL)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        click.echo(line.rstrip())

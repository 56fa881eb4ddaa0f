"""Output of verbs: tables as wide as their destination, JSON lines, and the log on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

#: Width of tables in a file or a pipe, which have no terminal's 80 columns.
_WIDTH_WITHOUT_TERMINAL = 160
#: Wider than any table: in a file or a pipe a row is a line.
_WIDTH_OF_A_PIPE = 10_000
#: Spaces between two columns of a table.
_BETWEEN = 2


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[str] | None = None
) -> None:
    """Print a table without rules, so that it reads well on a terminal and in a pipe.

    A terminal that is too narrow folds cells between words. No word and no number is ever cut.

    Args:
        columns: headings.
        rows: cells as they are shown; nothing in them is taken for markup.
        words: headings of the columns with words, which are aligned left. The others have numbers.
            None: all have words.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells, words = list(rows), columns if words is None else words
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
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
    """Return each column's width: that of its cells, and less for words where the terminal is narrow.

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


def open_console() -> Console:
    """Return a console as wide as its destination."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, at once."""
    # A pipe must see the first line at once.
    print(json.dumps(value), flush=True)


def log_to_stderr() -> None:
    """Log to stderr, one line per event."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    # librdkafka repeats each failed attempt; important errors are raised and logged once.
    logging.getLogger("ingestor.kafka.librdkafka").setLevel(logging.CRITICAL)

"""How verbs print: tables as wide as what they are written to, JSON a line, the log beside them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 160


def print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table; nothing in it is taken for markup."""
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    open_console().print(table)


def open_console() -> Console:
    """A console as wide as what it writes to."""
    from rich.console import Console

    # Into a file or a pipe nothing should be folded at the 80 columns of no terminal.
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, at once."""
    # A pipe must see the first line at once.
    print(json.dumps(value), flush=True)


def log_to_stderr() -> None:
    """Let what happens be read on stderr, a line each."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    # librdkafka repeats each failed attempt; what matters reaches us as errors and is said once.
    logging.getLogger("ingestor.kafka.librdkafka").setLevel(logging.CRITICAL)

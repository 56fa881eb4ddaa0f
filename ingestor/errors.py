"""The base of every exception that people are meant to read.

The message of such an exception is the line after ``Error:``; anything else is a bug of this program and
keeps its traceback. The pure core may import this module of the recorder, and no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

#: Exit code of a command: it failed; it was used or configured wrongly (as click has it).
FAILED, USAGE = 1, 2
#: Packages whose exceptions are written for users. For text alone, such as an event that Dagster stored:
#: there the class may be one of an earlier build.
OUR_PACKAGES = ("ingestor.", "cryptovol_dagster.")


class CryptovolError(Exception):
    """Something that people can understand and act on; the message is one line.

    Attributes:
        exit_code: of a command that fails with it.
    """

    exit_code: ClassVar[int] = FAILED

    def _render_traceback_(self) -> list[str]:
        """Return the lines for IPython: a notebook shows the message without a traceback."""
        return [f"{type(self).__name__}: {one_line(str(self))}"]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(text: str) -> str:
    """Return a text of several lines as one."""
    return " ".join(text.split())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the hint for a message about an unknown word: `` Did you mean 'status'?``.

    Args:
        word: as it was typed.
        known: the known words; case does not matter.

    Returns:
        The question with a space before it; empty where nothing is similar.
    """
    by_lower = {name.lower(): name for name in known}
    similar = get_close_matches(word.lower(), by_lower, n=1)
    return f" Did you mean '{by_lower[similar[0]]}'?" if similar else ""

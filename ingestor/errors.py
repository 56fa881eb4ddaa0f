"""The base of every exception that people are meant to read.

Whoever raises one writes the line that stands behind ``Error:``; anything else is a fault of this program and
keeps its traceback. The pure core may import this module of the recorder, and no other.
"""

from __future__ import annotations

from typing import ClassVar

#: Exit code of a command: it failed; it was used or configured wrongly (as click has it).
FAILED, USAGE = 1, 2
#: Packages whose exceptions are written for people. For text alone, such as an event that Dagster stored:
#: there the class may be one of an earlier build.
OUR_PACKAGES = ("ingestor.", "cryptovol_dagster.")


class CryptovolError(Exception):
    """Something that people can understand and act on; the message is one line.

    Attributes:
        exit_code: of a command that fails with it.
    """

    exit_code: ClassVar[int] = FAILED

"""Failures as people see them: one line on stderr and an exit code.

Exceptions that this project defines are written for people: their message is the line. Anything else is a
fault of ours and keeps its traceback.
"""

from __future__ import annotations

from typing import Any

import click

from ingestor.settings.load import SettingsError

#: Wrong usage or configuration, as click has it; 1 is any other failure.
USAGE = 2
_OURS = ("ingestor.", "cryptovol_dagster.")


def exit_code_of(error: BaseException) -> int | None:
    """Exit code for an exception of ours; None for one that is a fault and deserves its traceback.

    An exception class may carry `exit_code`; a bad configuration is `USAGE`, anything else of ours 1.
    """
    if isinstance(error, SettingsError):
        return USAGE
    if type(error).__module__.startswith(_OURS):
        return getattr(error, "exit_code", 1)
    return None


class _Failure(click.ClickException):
    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self._code = code

    @property
    def exit_code(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - click reads it, never sets it
        return self._code


class OneLineErrorsGroup(click.Group):
    """A click group whose verbs may raise this project's exceptions."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; its failure becomes ``Error: <line>`` and an exit code."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            code = exit_code_of(error)
            if code is None:
                raise
            raise _Failure(" ".join(str(error).split()), code) from None

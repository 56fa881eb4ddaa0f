"""Errors of a run as one readable line: unwrapped from Dagster's layers of errors."""

from __future__ import annotations

from typing import Any

import dagster as dg

from ingestor.errors import OUR_PACKAGES, one_line


def failure_line(event: dg.DagsterEvent) -> str:
    """Return a failed step's message in one line.

    The message of a `CryptovolError` is for users; that of its cause, such as ``[Errno 20]``, is not.

    Args:
        event: the failure of a step.
    """
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return one_line(data.user_failure_data.description)
    return error_line(data.error)


def error_line(error: Any) -> str:
    """Return an error recorded by Dagster in one line: the first `CryptovolError`, else the innermost.

    Args:
        error: a ``SerializableErrorInfo``, or None where Dagster recorded nothing.
    """
    while error is not None and error.cause is not None and not error.message.startswith(OUR_PACKAGES):
        error = error.cause
    message = error.message if error is not None else "unknown failure"
    # "module.Class: text" is for developers; the line is for operators.
    kind, _, text = message.partition(": ")
    return one_line(text if text.strip() and " " not in kind else message)


def step_name(event: dg.DagsterEvent) -> str:
    """Return the name of a step's asset as users write it."""
    return (event.step_key or "").replace("__", "/")

"""What went wrong in a run, in a line for people: unwrapped from Dagster's layers of errors."""

from __future__ import annotations

from typing import Any

import dagster as dg

from ingestor.errors import OUR_PACKAGES, one_line


def failure_line(event: dg.DagsterEvent) -> str:
    """Give a failed step's message in one line.

    An exception of ours was written for people; what caused it, an ``[Errno 20]`` perhaps, was not.

    Args:
        event: the failure of a step.
    """
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return one_line(data.user_failure_data.description)
    return error_line(data.error)


def error_line(error: Any) -> str:
    """Give an error that Dagster recorded in one line: the innermost, or the first of ours on the way.

    Args:
        error: a ``SerializableErrorInfo``, or None where Dagster recorded nothing.
    """
    while error is not None and error.cause is not None and not error.message.startswith(OUR_PACKAGES):
        error = error.cause
    message = error.message if error is not None else "unknown failure"
    # "module.Class: text" says more to a developer than to whoever reads a line.
    kind, _, text = message.partition(": ")
    return one_line(text if text.strip() and " " not in kind else message)


def step_name(event: dg.DagsterEvent) -> str:
    """Name a step as people name its asset."""
    return (event.step_key or "").replace("__", "/")

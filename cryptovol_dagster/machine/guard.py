"""Ends the supervisor's process groups when the supervisor has ended in any way.

A process of its own, run by its path with nothing imported but the standard library. It reads lines on its
stdin, a pipe of the supervisor alone: ``+GROUP`` for a group that was started, ``-GROUP`` for one
that has ended. The pipe closes when the supervisor ends, also when it is killed; what is left then is told to
stop, and killed when it does not.

    python guard.py SECONDS    how long the groups may take to stop
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable


def remaining(lines: Iterable[str]) -> list[int]:
    """Read the supervisor's lines until its end; return the remaining groups, oldest first."""
    groups: dict[int, None] = {}
    for line in lines:
        group = int(line[1:])
        if line[0] == "+":
            groups[group] = None
        else:
            groups.pop(group, None)
    return list(groups)


def alive(group: int) -> bool:
    """Return whether a process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a member of another user is a member
        return True
    return True


def tell(group: int, signum: int) -> None:
    """Send a signal to a process group, if it still has a member."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return


def end(groups: list[int], patience_s: float) -> None:
    """Stop groups, then kill those that still exist after a timeout."""
    deadline_s = time.monotonic() + patience_s
    for group in groups:
        tell(group, signal.SIGTERM)
    while any(alive(group) for group in groups) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    for group in groups:
        tell(group, signal.SIGKILL)


if __name__ == "__main__":
    end(remaining(sys.stdin), float(sys.argv[1]))

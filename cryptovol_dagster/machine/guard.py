"""Ends the supervisor's process groups when the supervisor is gone, however it went.

A process of its own, run by its path with nothing imported but the standard library. It reads lines on its
stdin, a pipe that only the supervisor holds: ``+GROUP`` for a group that was started, ``-GROUP`` for one
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
    """Follow what the supervisor tells until it is gone; give the groups that are left, oldest first."""
    groups: dict[int, None] = {}
    for line in lines:
        group = int(line[1:])
        if line[0] == "+":
            groups[group] = None
        else:
            groups.pop(group, None)
    return list(groups)


def alive(group: int) -> bool:
    """Tell whether a process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a member that is not ours is a member
        return True
    return True


def tell(group: int, signum: int) -> None:
    """Send a signal to a process group, if it still has a member."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return


def end(groups: list[int], patience_s: float) -> None:
    """Stop groups, then kill those that are still there when patience ends."""
    deadline_s = time.monotonic() + patience_s
    for group in groups:
        tell(group, signal.SIGTERM)
    while any(alive(group) for group in groups) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    for group in groups:
        tell(group, signal.SIGKILL)


if __name__ == "__main__":
    end(remaining(sys.stdin), float(sys.argv[1]))

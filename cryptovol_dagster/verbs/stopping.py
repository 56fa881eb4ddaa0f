"""Clean end of verbs that run until a signal."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger(__name__)


@contextmanager
def stopping_at_signals() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; a second one ends the process at once."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def on_signal(number: int, _: object) -> None:
        stop.set()
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        LOG.info("%s: stopping cleanly; send it again to stop at once", signal.Signals(number).name)

    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

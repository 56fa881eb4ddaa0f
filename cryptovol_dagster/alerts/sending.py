"""A thread a target: it sends what waits for the target in the outbox, again and again until it is taken."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptovol_dagster.alerts.errors import OutboxError
from cryptovol_dagster.alerts.outbox import Alert, Outbox
from cryptovol_dagster.alerts.targets import Target, send_once
from ingestor import locks
from ingestor.settings import Settings
from ingestor.times import NS

LOG = logging.getLogger(__name__)
#: How often the outbox is read for what other processes recorded and did not send.
POLL_S = 60.0
#: Pause while another process sends to the target, or while the outbox cannot be used.
_BLOCKED_S = 2.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Patience:
    """How long a target may take, and when an alert is given up.

    Attributes:
        timeout_s: of one attempt.
        tries: least number of attempts.
        pause_s: after the first one; it doubles up to a minute.
        give_up_after_s: least time since the alert was recorded.
    """

    timeout_s: float
    tries: int
    pause_s: float
    give_up_after_s: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """Return the configured one."""
        monitoring = settings.monitoring
        return cls(
            monitoring.alert_timeout_s,
            monitoring.alert_tries,
            monitoring.alert_pause_s,
            settings.alerts.give_up_after_s,
        )

    def pause_after(self, tries: int) -> float:
        """Return the pause after so many attempts, in seconds."""
        return min(self.pause_s * 2 ** min(tries - 1, 20), max(_LONGEST_PAUSE_S, self.pause_s))

    def ends(self, tries: int, age_s: float) -> bool:
        """Return whether an alert is given up after so many attempts, this long after it was recorded.

        Both must have passed: a clock that jumps, or a machine that was off, ends nothing at once.
        """
        return tries >= self.tries and age_s >= self.give_up_after_s


class Sender:
    """Sends to one target. Of several processes one sends to it at a time."""

    def __init__(self, target: Target, outbox: Outbox, patience: Patience, clock: Callable[[], int]) -> None:
        """Start nothing yet.

        Args:
            target: the receiver.
            outbox: what waits.
            patience: limits.
            clock: wall clock, in nanoseconds.
        """
        self._target, self._outbox, self._patience, self._clock = target, outbox, patience, clock
        #: Monotonic time of the next attempt, by alert. A restart tries at once.
        self._next: dict[str, float] = {}
        #: Sent, and not marked, since the outbox could not be written: it is marked, and not sent again.
        self._unmarked: set[str] = set()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"alerts-{target.name}", daemon=True)

    def start(self) -> None:
        """Send what waits, and what comes."""
        self._thread.start()

    def wake(self) -> None:
        """Read the outbox now."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for an attempt that was begun."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        was_usable = True
        while not self._stop.is_set():
            self._wake.clear()
            try:
                pause_s, was_usable = self._round(), True
            except (OutboxError, OSError) as error:
                if was_usable:
                    LOG.error("alerts to %s wait: %s", self._target.name, error)
                pause_s, was_usable = _BLOCKED_S, False
            self._wake.wait(pause_s)

    def _round(self) -> float:
        """Try each alert that is due, and return how long to wait then, in seconds."""
        waiting = self._outbox.pending(self._target.name)
        self._next = {alert.id: self._next.get(alert.id, 0.0) for alert, _ in waiting}
        if not waiting:
            return POLL_S
        with (self._outbox.folder / f"{self._target.name}.lock").open("ab") as file:
            if not locks.try_lock(file):
                return _BLOCKED_S
            # Read again: the holder before may have sent it.
            for alert, tries in self._outbox.pending(self._target.name):
                if self._stop.is_set():
                    return 0.0
                if self._next.get(alert.id, 0.0) <= time.monotonic():
                    self._attempt(alert, tries + 1)
        return max(0.0, min([*self._next.values(), time.monotonic() + POLL_S]) - time.monotonic())

    def _attempt(self, alert: Alert, tries: int) -> None:
        """Send an alert once, and mark the result."""
        name = self._target.name
        reason = (
            "" if alert.id in self._unmarked else send_once(self._target, alert, self._patience.timeout_s)
        )
        if not reason:
            self._unmarked.add(alert.id)
            self._outbox.sent(alert.id, name, self._clock())
            self._unmarked.remove(alert.id)
            self._next.pop(alert.id, None)
            LOG.info("alert sent to %s: %s", name, alert.title)
            return
        age_s = (self._clock() - alert.recorded_at_ns) / NS
        give_up = self._patience.ends(tries, age_s)
        pause_s = self._patience.pause_after(tries)
        self._next[alert.id] = time.monotonic() + pause_s
        self._outbox.failed(alert.id, name, self._clock(), reason, give_up=give_up)
        if give_up:
            self._next.pop(alert.id)
            LOG.error(
                "alert given up after %d tries: %s did not take it: %s: %s", tries, name, reason, alert.title
            )
        else:
            LOG.warning("alert not taken by %s (try %d, next in %.0f s): %s", name, tries, pause_s, reason)

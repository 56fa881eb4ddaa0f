"""Report outages of Kafka: start, progress and end. Pure: the clock is passed in."""

from __future__ import annotations

import logging

LOG = logging.getLogger(__name__)

#: Silence of this length, with messages on their way, is an outage; a broker's restart takes about as long.
OUTAGE_AFTER_S = 5.0
_SAY_AGAIN_AFTER_S = 30.0
_MIB = 1024 * 1024


class Outage:
    """Follows the acknowledgements.

    An outage lasts from the last acknowledgement before it to the first one after it.

    Attributes:
        count: outages so far, one under way included.
    """

    def __init__(self, now_s: float) -> None:
        self.count = 0
        self._past_s = 0.0
        self._acknowledged = 0
        self._heard_at_s = self._now_s = now_s
        self._lasts = False
        self._say_at_s = 0.0

    @property
    def lasts(self) -> bool:
        """Whether Kafka is silent now."""
        return self._lasts

    @property
    def total_s(self) -> float:
        """Seconds of all outages so far."""
        return self._past_s + (self._now_s - self._heard_at_s if self._lasts else 0.0)

    def observe(
        self, now_s: float, acknowledged: int, in_flight: int, spilled_bytes: int, limit_bytes: int
    ) -> None:
        """Process the present state.

        Args:
            now_s: monotonic clock.
            acknowledged: messages acknowledged so far.
            in_flight: messages published and not acknowledged.
            spilled_bytes: bytes waiting in the spill.
            limit_bytes: limit of the spill.
        """
        self._now_s = now_s
        if acknowledged != self._acknowledged or not in_flight:
            self._acknowledged = acknowledged
            self._end(now_s, spilled_bytes)
            return
        silent_s = now_s - self._heard_at_s
        if silent_s < OUTAGE_AFTER_S or now_s < self._say_at_s:
            return
        if not self._lasts:
            self._lasts = True
            self.count += 1
        self._say_at_s = now_s + _SAY_AGAIN_AFTER_S
        LOG.warning(
            "Kafka has not acknowledged anything for %.0f s; %d messages wait, spilling, %.1f of %.0f MiB",
            silent_s,
            in_flight,
            spilled_bytes / _MIB,
            limit_bytes / _MIB,
        )

    def _end(self, now_s: float, spilled_bytes: int) -> None:
        if self._lasts:
            silent_s = now_s - self._heard_at_s
            self._past_s += silent_s
            LOG.warning(
                "Kafka acknowledges again after %.0f s; %.1f MiB are spilled and follow in order",
                silent_s,
                spilled_bytes / _MIB,
            )
        self._lasts = False
        self._heard_at_s = now_s
        self._say_at_s = 0.0

"""When a second may close: event time of the newest message, carried on while the feed is silent.

Pure: the caller passes the wall clock (any clock that only goes forward, ns).
"""

from __future__ import annotations

from collections import deque


class FeedClock:
    """Event time of the feed: the newest so far, advanced by the wall clock between messages."""

    def __init__(self, carry_ns: int) -> None:
        """Advance for at most `carry_ns`: after a longer silence the time stops."""
        self._carry_ns = carry_ns
        self._heard_at_ns = 0
        #: Newest event time so far; None before the first.
        self.newest_ns: int | None = None

    def hear(self, event_time_ns: int, now_ns: int) -> None:
        """Note something that happened at `event_time_ns`."""
        if self.newest_ns is None or event_time_ns > self.newest_ns:
            self.newest_ns, self._heard_at_ns = event_time_ns, now_ns

    def restart(self, event_time_ns: int, now_ns: int) -> None:
        """Start again at `event_time_ns`: another recording begins."""
        self.newest_ns, self._heard_at_ns = event_time_ns, now_ns

    def reading(self, now_ns: int) -> int | None:
        """Return the feed's event time now; None before the first message."""
        if self.newest_ns is None:
            return None
        return self.newest_ns + max(min(now_ns - self._heard_at_ns, self._carry_ns), 0)


class PartitionClock:
    """Until when one partition is complete.

    While messages wait to be read, only the partition's own event time counts. At the end of its log the
    feed's time counts too, so that a quiet product's seconds close. Both must have held for `lateness_ns` of
    wall clock as well. A market played at many times its speed is minutes apart in two partitions within a
    moment, and so are a loss and the event that reports it.
    """

    def __init__(self, lateness_ns: int) -> None:
        self._lateness_ns = lateness_ns
        self._readings: deque[tuple[int, int]] = deque()
        #: Whether everything in the log has been read.
        self.at_end = False

    def restart(self) -> None:
        """Forget earlier readings: another recording begins."""
        self._readings.clear()

    def closing(self, now_ns: int, own_ns: int | None, feed_ns: int | None) -> int | None:
        """Return the event time until which seconds may close; None where nothing is known.

        Args:
            now_ns: wall clock.
            own_ns: newest event time in the partition.
            feed_ns: the feed's time.
        """
        if own_ns is None:
            return None
        reading_ns = max(own_ns, feed_ns) if self.at_end and feed_ns is not None else own_ns
        self._readings.append((now_ns, reading_ns))
        while len(self._readings) > 1 and self._readings[1][0] <= now_ns - self._lateness_ns:
            self._readings.popleft()
        seen_at_ns, settled_ns = self._readings[0]
        if seen_at_ns > now_ns - self._lateness_ns:
            return None
        return min(reading_ns - self._lateness_ns, settled_ns)

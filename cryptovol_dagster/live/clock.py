"""When a second may close: event time of the newest message, carried on while the feed is silent.

Pure: the caller passes the wall clock (any clock that only goes forward, ns).
"""

from __future__ import annotations

from collections import deque

from cryptovol_dagster.core.specs import NS

#: An event time that arrived late says little about now, so the least late one of so long decides.
_LEAST_DELAY_OF_NS = 10 * NS
#: After so long without news the next message alone decides: a played market stands still without a recorder.
_SILENCE_NS = 2 * NS


class FeedClock:
    """Event time of the feed: advanced by the wall clock, set by the messages that came with the least delay.

    Some messages wait longer than others for a batch, the network or a turn of the reader. The time would
    stand up to that much behind if each message set it.
    """

    def __init__(self, carry_ns: int) -> None:
        """Advance for at most `carry_ns`: after a longer silence the time stops."""
        self._carry_ns = carry_ns
        self._heard_at_ns = 0
        #: Greatest event time less wall clock: of the last span, and of the one that began then.
        self._ahead_ns: tuple[int, int] | None = None
        self._span_began_ns = 0
        #: Newest event time so far; None before the first.
        self.newest_ns: int | None = None

    def hear(self, event_time_ns: int, now_ns: int) -> None:
        """Note something that happened at `event_time_ns`."""
        if self.newest_ns is None or event_time_ns > self.newest_ns:
            if now_ns - self._heard_at_ns >= _SILENCE_NS:
                self._ahead_ns = None
            self.newest_ns, self._heard_at_ns = event_time_ns, now_ns
        ahead_ns, spans = event_time_ns - now_ns, (now_ns - self._span_began_ns) // _LEAST_DELAY_OF_NS
        if self._ahead_ns is None or spans >= 2:
            self._span_began_ns, self._ahead_ns = now_ns, (ahead_ns, ahead_ns)
        elif spans == 1:
            self._span_began_ns, self._ahead_ns = now_ns, (self._ahead_ns[1], ahead_ns)
        elif spans == 0:
            self._ahead_ns = self._ahead_ns[0], max(self._ahead_ns[1], ahead_ns)

    def restart(self, event_time_ns: int, now_ns: int) -> None:
        """Start again at `event_time_ns`: another recording begins."""
        self.newest_ns = self._ahead_ns = None
        self.hear(event_time_ns, now_ns)

    def reading(self, now_ns: int) -> int | None:
        """Return the feed's event time now; None before the first message."""
        if self.newest_ns is None:
            return None
        assert self._ahead_ns is not None
        carried_ns = min(now_ns + max(self._ahead_ns), self.newest_ns + self._carry_ns)
        return max(self.newest_ns, carried_ns)


class PartitionClock:
    """Until when one partition is complete.

    While messages wait to be read, only the partition's own event time counts. At the end of its log the
    feed's time counts too, so that a quiet product's seconds close. Both must have held for `lateness_ns` of
    wall clock as well. A market played at many times its speed is minutes apart in two partitions within a
    moment, and so are a loss and the event that reports it.
    """

    def __init__(self, lateness_ns: int) -> None:
        self._lateness_ns = lateness_ns
        #: Wall clock, reading, and whether the reading goes on with the wall clock.
        self._readings: deque[tuple[int, int, bool]] = deque()
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
        reading_ns, goes_on = own_ns, False
        if self.at_end and feed_ns is not None:
            reading_ns, goes_on = max(own_ns, feed_ns), True
        self._readings.append((now_ns, reading_ns, goes_on))
        while len(self._readings) > 1 and self._readings[1][0] <= now_ns - self._lateness_ns:
            self._readings.popleft()
        seen_at_ns, settled_ns, went_on = self._readings[0]
        past_ns = now_ns - self._lateness_ns - seen_at_ns
        if past_ns < 0:
            return None
        if went_on and len(self._readings) > 1:
            # It was read now and then, and went on in between, at most to what was read next.
            settled_ns = max(settled_ns, min(settled_ns + past_ns, self._readings[1][1]))
        return min(reading_ns - self._lateness_ns, settled_ns)

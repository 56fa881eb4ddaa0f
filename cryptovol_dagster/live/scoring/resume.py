"""Where a run goes on: the newest published scores decide, as for the featurizer's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from cryptovol_dagster.core.features.live import LONGEST_SILENCE_NS
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.live.clients import LogReader
from cryptovol_dagster.live.errors import LiveError
from ingestor.envelope import (
    DECODERS,
    FEATURES_TOPIC,
    SCORES_TOPIC,
    ScoreMessage,
    closed_partition,
)
from ingestor.kafka.broker import Broker

#: Messages read back at first; four times as many until they are enough.
_TAIL_MESSAGES = 4_000
#: A row was published at most so long after the scores of earlier bars that it is read again.
_MARGIN_NS = 10 * NS


@dataclass(frozen=True)
class Resumed:
    """The state that an earlier run left.

    Attributes:
        messages: newest scores in the order they were published, without closing records.
        closed_ns: by partition of ticks.raw, until when its bars were scored.
        known_since_ns: by partition of ticks.raw: the scores of all bars that end later are in `messages`.
        offsets: of ticks.features, by partition: where to read on.
        expired: partitions of ticks.features that no longer contain where to read on.
    """

    messages: tuple[ScoreMessage, ...]
    closed_ns: dict[int, int]
    known_since_ns: dict[int, int]
    offsets: dict[int, int]
    expired: tuple[int, ...] = ()


@dataclass
class _Tail:
    """The newest messages of one partition of ticks.scores."""

    messages: list[ScoreMessage] = field(default_factory=list)
    closings: list[ScoreMessage] = field(default_factory=list)
    is_whole: bool = False


class Resumption:
    """Reads the newest scores of a chain back."""

    def __init__(self, broker: Broker, log: LogReader, chain: str, *, revisable_ns: int) -> None:
        """Read nothing yet.

        Args:
            broker: where the topics are.
            log: reads records back.
            chain: whose scores.
            revisable_ns: how far back bars may change.
        """
        self._broker, self._log, self._chain, self._revisable_ns = broker, log, chain, revisable_ns

    def resume(self) -> Resumed:
        """Return what was published last, and where to read on: at the beginning where nothing was.

        Raises:
            LiveError: a message cannot be read or decoded.
            BrokerError: the broker does not answer.
        """
        tails = [self._tail(number) for number in range(self._broker.partitions(SCORES_TOPIC))]
        closed: dict[int, int] = {}
        since: dict[int, int] = {}
        for tail in tails:
            for closing in tail.closings:
                number = closed_partition(closing)
                assert number is not None
                since.setdefault(number, 0 if tail.is_whole else closing.bar_end_ns)
                closed[number] = closing.bar_end_ns
        messages = [message for tail in tails for message in tail.messages]
        times = [each.published_at_ns for tail in tails for each in (*tail.closings[:1], *tail.messages)]
        read_from_ns = (
            min(times) - _MARGIN_NS if closed and not all(tail.is_whole for tail in tails) else None
        )
        offsets, expired = self._offsets(read_from_ns)
        return Resumed(tuple(messages), closed, since, offsets, expired)

    def _tail(self, number: int) -> _Tail:
        start, end = self._broker.offsets(SCORES_TOPIC, number)
        size = _TAIL_MESSAGES
        while True:
            first = max(start, end - size)
            tail = self._read(self._log.values(SCORES_TOPIC, number, first, end))
            tail.is_whole = first == start
            if tail.is_whole or self._is_enough(tail):
                return tail
            size *= 4

    def _read(self, values: Sequence[bytes]) -> _Tail:
        tail = _Tail()
        for value in values:
            try:
                message: ScoreMessage = DECODERS[SCORES_TOPIC].decode(value)
            except msgspec.MsgspecError as error:
                name = self._broker.topic(SCORES_TOPIC)
                raise LiveError(f"{name} contains a message that is not a score: {error}") from error
            if message.chain == self._chain:
                is_closing = closed_partition(message) is not None
                (tail.closings if is_closing else tail.messages).append(message)
        return tail

    def _is_enough(self, tail: _Tail) -> bool:
        """Return whether a tail reaches back to the oldest bar that may still change."""
        if not tail.closings:
            return False
        newest_ns = max(message.bar_end_ns for message in tail.closings)
        solid: dict[str, int] = {}
        for message in tail.messages:
            first = solid.get(message.product_id, newest_ns - LONGEST_SILENCE_NS)
            solid[message.product_id] = first if message.provisional else max(first, message.bar_end_ns)
        wanted_ns = min([newest_ns, *solid.values()]) - self._revisable_ns
        return tail.closings[0].bar_end_ns <= wanted_ns

    def _offsets(self, read_from_ns: int | None) -> tuple[dict[int, int], tuple[int, ...]]:
        offsets: dict[int, int] = {}
        expired = []
        for number in range(self._broker.partitions(FEATURES_TOPIC)):
            start, end = self._broker.offsets(FEATURES_TOPIC, number)
            found = None
            if read_from_ns is not None:
                found = self._log.offset_at(FEATURES_TOPIC, number, read_from_ns)
                found = end if found is None else found
                if found <= start > 0:
                    expired.append(number)
            offsets[number] = start if found is None else max(found, start)
        return offsets, tuple(expired)

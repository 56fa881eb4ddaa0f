"""Where a run goes on: the newest published scores decide, as for the featurizer's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
#: Products of one partition are at most so far apart in time.
_APART_NS = 600 * NS
#: Neighbouring records of ticks.features whose bars say whether earlier ones are needed.
_PROBE_RECORDS, _FIRST_STEP = 50, 1_000


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

    def reaches(self, wanted_ns: int) -> bool:
        """Return whether the scores of all bars that end later than a time are in it."""
        return self.is_whole or (bool(self.closings) and self.closings[0].bar_end_ns <= wanted_ns)


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
        sizes = dict.fromkeys(range(self._broker.partitions(SCORES_TOPIC)), _TAIL_MESSAGES)
        tails = {number: self._tail(number, size) for number, size in sizes.items()}
        while True:
            wanted_ns = self._wanted_ns(tails.values())
            short = [number for number, tail in tails.items() if not tail.reaches(wanted_ns)]
            if not short:
                break
            for number in short:
                sizes[number] *= 4
                tails[number] = self._tail(number, sizes[number])
        closed: dict[int, int] = {}
        since: dict[int, int] = {}
        for tail in tails.values():
            for closing in tail.closings:
                number = closed_partition(closing)
                assert number is not None
                since.setdefault(number, 0 if tail.is_whole else closing.bar_end_ns + _APART_NS)
                closed[number] = closing.bar_end_ns
        messages = [message for tail in tails.values() for message in tail.messages]
        is_new = all(tail.is_whole for tail in tails.values())
        offsets, expired = self._offsets(None if is_new else wanted_ns, messages)
        return Resumed(tuple(messages), closed, since, offsets, expired)

    def _tail(self, number: int, size: int) -> _Tail:
        start, end = self._broker.offsets(SCORES_TOPIC, number)
        first = max(start, end - size)
        tail = self._read(self._log.values(SCORES_TOPIC, number, first, end))
        tail.is_whole = first == start
        return tail

    def _wanted_ns(self, tails: Iterable[_Tail]) -> int:
        """Return the end of a bar so old that it cannot change, nor any before it.

        A row of one product may change the bars of all: the product that is furthest behind counts.
        """
        ends, solid = [], dict[str, int]()
        for tail in tails:
            ends += [closing.bar_end_ns for closing in tail.closings[-1:]]
            for message in tail.messages:
                first = solid.setdefault(message.product_id, message.bar_end_ns)
                if not message.provisional:
                    solid[message.product_id] = max(first, message.bar_end_ns)
        if not ends:
            return 0
        behind_ns = min([*ends, *solid.values()])
        return max(behind_ns, max(ends) - LONGEST_SILENCE_NS) - self._revisable_ns - _APART_NS

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

    def _offsets(
        self, wanted_ns: int | None, messages: Sequence[ScoreMessage]
    ) -> tuple[dict[int, int], tuple[int, ...]]:
        """Return where to read each partition of ticks.features on, and those that lack some of it."""
        times = [message.published_at_ns for message in messages if message.bar_end_ns >= (wanted_ns or 0)]
        offsets: dict[int, int] = {}
        expired = []
        for number in range(self._broker.partitions(FEATURES_TOPIC)):
            start, end = self._broker.offsets(FEATURES_TOPIC, number)
            if wanted_ns is None or not times:
                offsets[number] = start
                if start > 0:
                    expired.append(number)
                continue
            found = self._log.offset_at(FEATURES_TOPIC, number, min(times) - _MARGIN_NS)
            offsets[number], is_there = self._before(
                number, end if found is None else found, start, end, wanted_ns
            )
            if not is_there and start > 0:
                expired.append(number)
        return offsets, tuple(expired)

    def _before(self, number: int, guess: int, start: int, end: int, wanted_ns: int) -> tuple[int, bool]:
        """Go back from an offset to rows of bars that are not needed; return whether there are such.

        Rows were published before their scores, and how long before depends on how late the scores were.
        """
        step = _FIRST_STEP
        while True:
            guess = max(start, min(guess, end))
            values = self._log.values(FEATURES_TOPIC, number, guess, min(guess + _PROBE_RECORDS, end))
            ends = [end_ns for end_ns in map(_bar_end_ns, values) if end_ns is not None]
            if ends and max(ends) <= wanted_ns:
                return guess, True
            if guess == start:
                return start, not ends
            guess, step = guess - step, step * 4


def _bar_end_ns(value: bytes) -> int | None:
    """Return the bar's end in a record of ticks.features; None where it cannot be read."""
    try:
        return DECODERS[FEATURES_TOPIC].decode(value).bar_end_ns
    except msgspec.MsgspecError:
        return None

"""A Kafka client that is replaced when it cannot go on; its undelivered messages are sent again.

Clients end with a fatal error, return messages whose topic was deleted, or wait for ever: one that knew the
old log of a recreated topic may never find the new one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message

from ingestor.kafka.deliveries import Deliveries, PublishError
from ingestor.kafka.spill import Spill

LOG = logging.getLogger(__name__)

#: A client that brings nothing through to a new log for this long has not understood that there is one.
_STUCK_AFTER_S = 5.0
#: After so many new clients in a row without a delivery another one does not help.
_MAX_RENEWALS = 5
_LETTING_GO_S = 5.0


class Client(Protocol):
    """The used methods of a `confluent_kafka.Producer`."""

    def produce(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        /,
        *,
        on_delivery: Callable[[KafkaError | None, Message], None],
    ) -> None:
        """Queue a message; its delivery report is called back."""
        ...

    def poll(self, timeout: float, /) -> int:
        """Run delivery callbacks."""
        ...

    def flush(self, timeout: float, /) -> int:
        """Wait for messages; return the number of remaining ones."""
        ...

    def purge(self) -> None:
        """Return every message that was not delivered."""
        ...

    def __len__(self) -> int: ...


@dataclass
class _Doubt:
    """Return whether the client has noticed that a topic has a new log.

    Attributes:
        epoch: number of the last epoch published before that was noticed; with it acknowledged, it has.
        since_s: how long nothing has spoken for it (monotonic clock).
        acknowledged: messages acknowledged when it was checked last.
    """

    epoch: int
    since_s: float
    acknowledged: int


class RenewedClient:
    """A client, and its successor where it cannot go on.

    Args:
        new_client: creates a client; called at the start and for each renewal.
        deliveries: acknowledged and returned messages.
        spill: takes the messages that have to be sent again.
        ask_logs: requests a new answer about the logs; None where the logs are not watched, and then a
            returned message is a refusal.

    Attributes:
        current: the client in use.
        is_serving: whether delivery callbacks are running. Messages published there must not poll again: that
            aborts the process (an assertion of confluent-kafka).
        renewals: how often the client was replaced.
    """

    def __init__(
        self,
        new_client: Callable[[], Client],
        deliveries: Deliveries,
        spill: Spill,
        ask_logs: Callable[[], object] | None,
    ) -> None:
        self._new_client = new_client
        self._deliveries = deliveries
        self._spill = spill
        self._ask_logs = ask_logs
        self._fatal = ""
        self._doubt: _Doubt | None = None
        self._in_vain = 0
        self._acknowledged_before = 0
        #: Topics are missing: messages would be returned, so they wait for a later answer.
        self._holds_since_s: float | None = None
        self.is_serving = False
        self.renewals = 0
        self.current = new_client()

    def fail(self, why: str) -> None:
        """Note that the client cannot go on."""
        self._fatal = self._fatal or why

    def doubt(self) -> None:
        """Note that a topic has a new log: the client may not find it."""
        deliveries = self._deliveries
        self._doubt = _Doubt(deliveries.epochs[-1].number, time.monotonic(), deliveries.acknowledged)

    def may_resend(self, asked_at_s: float) -> bool:
        """Return whether spilled messages may be sent; after a renewal only with a newer answer.

        Args:
            asked_at_s: time of the last request of the logs (monotonic clock).
        """
        if self._holds_since_s is not None and asked_at_s < self._holds_since_s:
            return False
        self._holds_since_s = None
        return True

    def serve(self, serve: Callable[[], int]) -> int:
        """Run delivery callbacks; a fatal error of the client is raised there, not called back.

        Returns:
            Result of `serve`: a number of messages.
        """
        try:
            return serve()
        except KafkaException as error:
            self.fail(error.args[0].str())
            return len(self.current)

    def renew_where_needed(self, asked_at_s: float) -> None:
        """Replace the client where it failed, returned messages, or delivers nothing.

        Args:
            asked_at_s: time of the last request of the logs (monotonic clock).

        Raises:
            PublishError: a message was finally refused, or new clients do not help.
        """
        deliveries = self._deliveries
        if deliveries.given_back and self._ask_logs is None and not self._fatal:
            deliveries.failure = PublishError(f"Kafka refused a message for {deliveries.given_back_why}")
            raise deliveries.failure
        if self._fatal or deliveries.given_back:
            self._renew(self._fatal or deliveries.given_back_why)
        elif self._doubt is not None and self._is_stuck(self._doubt, asked_at_s):
            self._renew("it does not find the new log of a recreated topic")

    def _is_stuck(self, doubt: _Doubt, asked_at_s: float) -> bool:
        """Return whether a client delivers nothing although the broker answers others."""
        deliveries, now = self._deliveries, time.monotonic()
        if deliveries.epochs[0].number > doubt.epoch or not deliveries.in_flight_messages:
            self._doubt = None
            return False
        if self._spill.count and deliveries.acknowledged != doubt.acknowledged:
            doubt.since_s = now  # a long spill takes its time
        doubt.acknowledged = deliveries.acknowledged
        return now - doubt.since_s > _STUCK_AFTER_S and asked_at_s > doubt.since_s

    def _renew(self, why: str) -> None:
        """Continue with a new client, and send the undelivered messages of the old one again, in order.

        Raises:
            PublishError: new clients do not help, or the old one does not return its messages.
        """
        deliveries = self._deliveries
        progress = deliveries.acknowledged != self._acknowledged_before
        self._in_vain = 0 if progress else self._in_vain + 1
        self._acknowledged_before = deliveries.acknowledged
        left = self._let_go()
        if left or self._in_vain > _MAX_RENEWALS:
            deliveries.failure = PublishError(f"Kafka producer failed for good: {why}")
            raise deliveries.failure
        again, deliveries.given_back, deliveries.given_back_why = deliveries.given_back, [], ""
        LOG.warning("a new Kafka producer takes over, and sends %d messages again: %s", len(again), why)
        self.renewals += 1
        self._spill.put_back(again)
        self._fatal = ""
        now = time.monotonic()
        if self._doubt is not None:
            self._doubt.since_s = now
        if self._ask_logs is not None:
            self._holds_since_s = now
            self._ask_logs()
        self.current = self._new_client()

    def _let_go(self) -> int:
        """Purge the client; return how many messages it keeps."""
        client = self.current
        self.is_serving = True
        try:
            client.purge()
            left = self.serve(lambda: client.flush(_LETTING_GO_S))
            if left:  # a fatal error may have broken off the first one
                left = self.serve(lambda: client.flush(_LETTING_GO_S))
        finally:
            self.is_serving = False
        return left

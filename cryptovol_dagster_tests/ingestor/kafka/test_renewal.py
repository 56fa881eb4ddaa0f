"""A client that cannot go on, without Kafka: when it is replaced, and what is sent again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from ingestor.envelope import TICKS
from ingestor.kafka import renewal
from ingestor.kafka.deliveries import Deliveries, PublishError
from ingestor.kafka.renewal import RenewedClient
from ingestor.kafka.spill import Spill


class Message:
    """A message that is delivered, or comes back."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def topic(self) -> str:
        return TICKS

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return int(self._value)

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return self._value


class Client:
    """Holds what it is given, and gives it back when purged."""

    def __init__(self, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self.held: list[tuple[bytes, Callable[..., None]]] = []
        self.is_purged = False

    def produce(self, _topic: str, value: bytes, _key: bytes, /, *, on_delivery: Callable[..., None]) -> None:
        self.held.append((value, on_delivery))

    def purge(self) -> None:
        self.is_purged = True

    def flush(self, _timeout: float, /) -> int:
        if self.is_purged and not self.keeps:
            for value, delivered in self.held:
                delivered(KafkaError(KafkaError._PURGE_QUEUE), Message(value))
            self.held.clear()
        return len(self.held)

    def poll(self, _timeout: float, /) -> int:
        return 0

    def __len__(self) -> int:
        return len(self.held)


class World:
    """A renewed client with everything around it."""

    def __init__(self, *, keeps: bool = False, has_watch: bool = True) -> None:
        self.clients: list[Client] = []
        self.asked = 0
        self.deliveries = Deliveries("", False)
        self.spill = Spill(None, 0)
        self.keeps = keeps
        self.renewed = RenewedClient(
            self._new_client, self.deliveries, self.spill, self._ask if has_watch else None
        )

    def _new_client(self) -> Client:
        self.clients.append(Client(keeps=self.keeps))
        return self.clients[-1]

    def _ask(self) -> None:
        self.asked += 1

    def publish(self, value: bytes) -> None:
        epoch = self.deliveries.epochs[-1]
        epoch.outstanding += 1
        self.deliveries.in_flight_messages += 1
        self.clients[-1].produce(TICKS, value, b"k", on_delivery=epoch.delivered)

    def acknowledge(self) -> None:
        value, delivered = self.clients[-1].held.pop(0)
        message: Any = Message(value)
        delivered(None, message)


def test_a_client_that_works_stays() -> None:
    world = World()
    world.publish(b"1")
    world.renewed.renew_where_needed(0.0)
    assert len(world.clients) == 1
    assert world.renewed.may_resend(0.0)


def test_after_a_fatal_error_all_that_is_unacknowledged_is_sent_again() -> None:
    world = World()
    for value in (b"1", b"2", b"3"):
        world.publish(value)
    world.acknowledge()
    world.renewed.fail("fenced")
    world.renewed.renew_where_needed(0.0)
    assert len(world.clients) == 2
    assert world.renewed.current is world.clients[-1]
    assert [world.spill.pop()[2] for _ in range(2)] == [b"2", b"3"]
    assert (world.renewed.renewals, world.asked, world.renewed.is_serving) == (1, 1, False)


def test_nothing_is_sent_again_before_the_logs_were_asked_for() -> None:
    world = World()
    before_s = time.monotonic()
    world.renewed.fail("fenced")
    world.renewed.renew_where_needed(0.0)
    assert not world.renewed.may_resend(before_s)
    assert world.renewed.may_resend(time.monotonic())
    assert world.renewed.may_resend(before_s)  # one answer is enough


def test_a_fatal_error_while_serving_is_noted() -> None:
    world = World()
    world.publish(b"1")

    def fail() -> int:
        raise KafkaException(KafkaError(KafkaError._FATAL, "out of order"))

    assert world.renewed.serve(fail) == 1
    world.renewed.renew_where_needed(0.0)
    assert world.renewed.renewals == 1


def test_without_a_watch_what_comes_back_is_refused() -> None:
    world = World(has_watch=False)
    world.publish(b"1")
    value, delivered = world.clients[0].held[0]
    delivered(KafkaError(KafkaError._UNKNOWN_TOPIC), Message(value))
    with pytest.raises(PublishError, match=r"Kafka refused a message for ticks\.raw: "):
        world.renewed.renew_where_needed(0.0)


def test_new_clients_that_bring_nothing_through_are_no_remedy() -> None:
    world = World()
    for _ in range(5):
        world.renewed.fail("fenced")
        world.renewed.renew_where_needed(0.0)
    world.renewed.fail("fenced")
    with pytest.raises(PublishError, match="Kafka producer failed for good: fenced"):
        world.renewed.renew_where_needed(0.0)
    assert world.deliveries.failure is not None


def test_progress_between_renewals_starts_the_count_again() -> None:
    world = World()
    for number in range(20):
        world.publish(b"%d" % number)
        world.acknowledge()
        world.renewed.fail("fenced")
        world.renewed.renew_where_needed(0.0)
    assert world.renewed.renewals == 20


def test_a_client_that_does_not_let_go_ends_it() -> None:
    world = World(keeps=True)
    world.publish(b"1")
    world.renewed.fail("fenced")
    with pytest.raises(PublishError, match="failed for good"):
        world.renewed.renew_where_needed(0.0)
    assert not world.renewed.is_serving


def test_a_client_that_does_not_find_the_new_log_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "_STUCK_AFTER_S", 0.05)
    world = World()
    world.publish(b"1")
    world.renewed.doubt()
    world.renewed.renew_where_needed(time.monotonic())
    time.sleep(0.06)
    world.renewed.renew_where_needed(0.0)  # the broker answered nobody since
    assert world.renewed.renewals == 0
    world.renewed.renew_where_needed(time.monotonic())
    assert world.renewed.renewals == 1


def test_a_client_that_brings_the_next_messages_through_is_not_doubted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renewal, "_STUCK_AFTER_S", 0.0)
    world = World()
    world.publish(b"1")
    world.renewed.doubt()
    world.deliveries.mark(lambda _: None)
    world.acknowledge()
    world.publish(b"2")
    time.sleep(0.01)
    world.renewed.renew_where_needed(time.monotonic())
    assert world.renewed.renewals == 0

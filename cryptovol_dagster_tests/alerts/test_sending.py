"""What waits is sent again and again, by one process at a time, and ends as sent or given up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryptovol_dagster.alerts import sending
from cryptovol_dagster.alerts.errors import OutboxError
from cryptovol_dagster.alerts.outbox import Alert, Outbox
from cryptovol_dagster.alerts.sending import Patience, Sender
from cryptovol_dagster.alerts.targets import Target
from cryptovol_dagster_tests.alerts.samples import T0_NS, alert

PATIENCE = Patience(timeout_s=1.0, tries=2, pause_s=0.01, give_up_after_s=60.0)
PHONE = Target("phone", "json://x")


class Attempts:
    """Takes the place of `send_once`: remembers what is sent, and fails as it is told."""

    def __init__(self, reasons: list[str] | None = None) -> None:
        self.sent: list[tuple[str, str]] = []
        self.reasons = reasons or []

    def __call__(self, target: Target, one: Alert, timeout_s: float) -> str:
        self.sent.append((target.name, one.id))
        return self.reasons.pop(0) if self.reasons else ""


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    found = Attempts()
    monkeypatch.setattr(sending, "send_once", found)
    monkeypatch.setattr(sending, "_BLOCKED_S", 0.02)
    return found


@contextmanager
def running(*senders: Sender) -> Iterator[None]:
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        for sender in senders:
            sender.stop()
            sender.join(5.0)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sender(folder: Path, target: Target = PHONE, later_s: float = 0.0) -> Sender:
    return Sender(target, Outbox(folder), PATIENCE, lambda: T0_NS + int(later_s * 1e9))


def states(folder: Path) -> list[tuple[str, int, str]]:
    return [(one.state, one.tries, one.reason) for _, found in Outbox(folder).newest(9) for one in found]


def test_it_is_tried_until_it_is_taken(
    tmp_path: Path, attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    attempts.reasons = ["it answered 500"] * 5
    Outbox(tmp_path).record(alert(), ["phone"])
    with running(sender(tmp_path)):
        until(lambda: states(tmp_path) == [("sent", 6, "")])
    assert len(attempts.sent) == 6
    assert "alert not taken by phone (try 1, next in 0 s): it answered 500" in caplog.messages


def test_it_is_given_up_after_the_stated_time_and_tries(
    tmp_path: Path, attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    attempts.reasons = ["away"] * 9
    Outbox(tmp_path).record(alert(), ["phone"])
    with running(sender(tmp_path, later_s=60.0)):
        until(lambda: not Outbox(tmp_path).pending("phone"))
    assert states(tmp_path) == [("given_up", 2, "away")]
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.getMessage() == (
        "alert given up after 2 tries: phone did not take it: away: P1-USD: episode opened"
    )


def test_pauses_double_up_to_a_minute_and_neither_time_nor_tries_alone_end_it() -> None:
    patience = Patience(5.0, 3, 2.0, 3_600.0)
    assert [patience.pause_after(tries) for tries in (1, 2, 5, 6, 999)] == [2.0, 4.0, 32.0, 60.0, 60.0]
    assert Patience(5.0, 3, 90.0, 1.0).pause_after(4) == 90.0
    assert [patience.ends(*one) for one in ((2, 1e9), (99, 3_599.0), (3, 3_600.0))] == [False, False, True]


def test_a_target_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(
        sending, "send_once", lambda target, one, t: str(released.wait(20.0)) if target is PHONE else ""
    )
    Outbox(tmp_path).record(alert(), ["phone", "mail"])
    with running(sender(tmp_path), sender(tmp_path, Target("mail", "json://y"))):
        until(lambda: ("sent", 1, "") in states(tmp_path))
        assert ("pending", 0, "") in states(tmp_path)
        released.set()


def test_two_processes_send_it_once(tmp_path: Path, attempts: Attempts) -> None:
    senders = [sender(tmp_path) for _ in range(3)]
    with running(*senders):
        for number in range(10):
            Outbox(tmp_path).record(alert(number), ["phone"])
            for one in senders:
                one.wake()
        until(lambda: not Outbox(tmp_path).pending("phone"))
    assert sorted(attempts.sent) == sorted(("phone", alert(number).id) for number in range(10))


def test_an_outbox_that_cannot_be_written_delays_the_mark_and_repeats_nothing(
    tmp_path: Path, attempts: Attempts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mark, failures = Outbox.sent, [OutboxError("disk full")] * 3

    def failing(self: Outbox, *values: object) -> bool:
        if failures:
            raise failures.pop()
        return mark(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(Outbox, "sent", failing)
    Outbox(tmp_path).record(alert(), ["phone"])
    with running(sender(tmp_path)):
        until(lambda: states(tmp_path) == [("sent", 1, "")])
    assert len(attempts.sent) == 1
    assert caplog.messages.count("alerts to phone wait: disk full") == 1

"""Alerts reach a real receiver, and a receiver that does not answer costs a few lines in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cryptovol_dagster.monitoring.alerts import Alerts
from cryptovol_dagster_tests.e2e.processes import free_port
from cryptovol_dagster_tests.webhook import Receiver, receiving

ALERT = {"kind": "run_failed", "text": "retrain failed"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def _alerts(url: str | None, timeout_s: float = 5.0) -> Alerts:
    return Alerts(webhook_url=url, timeout_s=timeout_s, tries=2, pause_s=0.01, ui_url="http://127.0.0.1:3000")


def test_an_alert_is_posted_and_logged_once(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    assert _alerts(receiver.url).send(ALERT)
    assert receiver.bodies == [ALERT]
    assert caplog.messages == ['alert: {"kind": "run_failed", "text": "retrain failed"}']


def test_without_a_receiver_it_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert _alerts(None).send(ALERT)
    assert [(record.levelno, record.name) for record in caplog.records] == [
        (logging.ERROR, "cryptovol_dagster.monitoring.alerts")
    ]


def test_it_is_tried_again(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.statuses = [500]
    assert _alerts(receiver.url).send(ALERT)
    assert receiver.bodies == [ALERT, ALERT]
    assert "alert not taken by 127.0.0.1 (try 1 of 2): it answered 500" in caplog.messages


def test_it_is_given_up_and_the_address_is_not_told(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 503]
    assert not _alerts(receiver.url).send(ALERT)
    assert caplog.messages[-1] == "alert given up: 127.0.0.1 did not accept it: retrain failed"
    assert "s3cret" not in caplog.text


def test_a_receiver_that_hangs_is_not_waited_for(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.wait_s = 1.0
    assert not _alerts(receiver.url, timeout_s=0.1).send(ALERT)
    assert "(try 2 of 2): timed out" in caplog.text


def test_a_receiver_that_is_away_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    assert not _alerts(f"http://127.0.0.1:{free_port()}/s3cret").send(ALERT)
    assert "(try 2 of 2): [Errno 111] Connection refused" in caplog.text
    assert "s3cret" not in caplog.text

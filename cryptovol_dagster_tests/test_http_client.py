"""The one HTTP client: which failures are tried again, with which pauses, and what never reaches the log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from tenacity import RetryCallState, wait_fixed

from cryptovol_dagster.http_client import (
    AttemptError,
    NoAnswerError,
    obeying_retry_after,
    open_client,
    retry_after_s,
    retrying,
    send,
)
from cryptovol_dagster_tests.e2e.processes import free_port
from cryptovol_dagster_tests.webhook import receiving


def attempts_at(failures: list[BaseException], **options: float) -> tuple[list[float], list[int]]:
    """Return the pauses and the numbers of the failed attempts of a call that fails so and then succeeds."""
    pauses: list[float] = []
    failed: list[int] = []

    def attempt() -> None:
        if failures:
            raise failures.pop(0)

    def remember(state: RetryCallState) -> None:
        failed.append(state.attempt_number)

    retrying(3, obeying_retry_after(wait_fixed(2)), on_failure=remember, sleep=pauses.append, **options)(
        attempt
    )
    return pauses, failed


def test_a_failed_attempt_is_repeated_after_the_longer_pause() -> None:
    assert attempts_at([AttemptError("busy"), AttemptError("busy", 7.0)]) == ([2.0, 7.0], [1, 2])


@pytest.mark.parametrize(
    ("failures", "left"),
    [
        ([AttemptError("1"), AttemptError("2"), AttemptError("last"), AttemptError("4")], 1),
        ([AttemptError("last", 61.0), AttemptError("2")], 1),
        ([ValueError("last"), AttemptError("2")], 1),
    ],
    ids=["all-tries", "asks-for-too-long-a-wait", "another-error"],
)
def test_the_last_failure_is_raised(failures: list[BaseException], left: int) -> None:
    with pytest.raises((AttemptError, ValueError), match="last"):
        attempts_at(failures, max_after_s=60.0)
    assert len(failures) == left


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("7", 7.0), (" 7 ", 7.0), ("", 0.0), ("soon", 0.0), ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0)],
)
def test_retry_after_is_seconds_from_now(text: str, expected_s: float) -> None:
    assert retry_after_s(httpx.Response(429, headers={"Retry-After": text})) == expected_s


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after_s(httpx.Response(503, headers={"Retry-After": date})) <= 90


def test_an_address_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with receiving() as receiver, open_client(5.0) as client:
        assert send(client, "POST", receiver.url, content="{}").is_success
    assert "s3cret" not in caplog.text


def test_services_of_this_machine_are_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with receiving() as receiver, open_client(5.0) as client:
        assert send(client, "POST", receiver.url, content="{}").is_success


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://127.0.0.1:21")
    with pytest.raises(NoAnswerError, match=r"the environment's proxy cannot be used: .*ftp://127"):
        open_client(5.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://127.0.0.1:99999999/", "gopher://127.0.0.1/"])
def test_no_answer_is_one_line(url: str) -> None:
    with open_client(5.0) as client, pytest.raises(NoAnswerError, match=r"\A[^\n]+\Z"):
        send(client, "GET", url)

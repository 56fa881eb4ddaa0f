"""One attempt reaches a real receiver, ends when its time is up, and shows no part of a URL."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cryptovol_dagster.alerts import targets as attempts
from cryptovol_dagster.alerts.child import redact
from cryptovol_dagster.alerts.errors import AlertTargetError
from cryptovol_dagster.alerts.targets import Target, check_targets, require_usable, send_once
from cryptovol_dagster_tests.alerts.samples import SECRET, alert
from cryptovol_dagster_tests.e2e.processes import free_port
from cryptovol_dagster_tests.webhook import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_json_form_and_webhook_arrive_with_title_and_body(receiver: Receiver) -> None:
    there = f"127.0.0.1:{receiver.server_port}/{SECRET}"
    found = [
        Target("json", f"json://{there}"),
        Target("form", f"form://{there}"),
        Target("webhook", f"http://{there}", is_webhook=True),
    ]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda target: send_once(target, alert(), 5.0), found)) == ["", "", ""]
    (posted,) = [body for body in receiver.bodies if "text" in body]
    assert posted == {
        "id": alert().id,
        "rule": "opened",
        "kind": "episode_opened",
        "text": "opened",
        "body": "two\nlines",
    }
    notified = [body for body in receiver.bodies if "text" not in body]
    assert [(one["title"], one["message"], one["type"]) for one in notified] == [
        ("P1-USD: episode opened", "two\nlines", "warning")
    ] * 2


def test_failures_have_a_reason_without_a_secret(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("APPRISE_LOG_LEVEL", "DEBUG")
    caplog.set_level("DEBUG")
    receiver.statuses = [500] * 3
    there = f"127.0.0.1:{receiver.server_port}"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        found = [
            Target("json", f"json://user:{SECRET}@{there}/{SECRET}?+X-Key={SECRET}"),
            Target("webhook", f"http://{there}/{SECRET}", is_webhook=True),
            Target("nobody", f"json://127.0.0.1:{free_port()}/{SECRET}"),
            Target("unknown", f"jsno://{SECRET}"),
            Target("mute", f"json://{mute}/{SECRET}"),
            Target("mute webhook", f"http://{mute}/{SECRET}", is_webhook=True),
        ]
        with ThreadPoolExecutor(len(found)) as pool:
            reasons = list(pool.map(lambda target: send_once(target, alert(), 2.0), found))
    assert "error=500" in reasons[0]
    assert reasons[1] == "it answered 500"
    assert "Connection error" in reasons[2]
    assert reasons[3] == "Apprise cannot read its URL"
    assert reasons[4] == "no answer within 2 s"
    assert reasons[5] in ("no answer within 2 s", "timed out")
    assert SECRET not in "".join([*reasons, repr(found), caplog.text])


def test_urls_are_checked_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        name: Target(name, url)
        for name, url in {
            "good": f"json://127.0.0.1/{SECRET}",
            "typo": f"jsno://127.0.0.1/{SECRET}",
            "part": f"tgram://{SECRET}",
        }.items()
    }
    assert check_targets(found) == {
        "typo": "Apprise has no service 'jsno://'. Did you mean 'json'?",
        "part": "Apprise cannot read this tgram:// URL; a part of it is missing or wrong",
    }
    with pytest.raises(AlertTargetError, match=r"^alerts\.targets\.typo: Apprise has no service") as raised:
        require_usable(found)
    assert SECRET not in str(raised.value)
    monkeypatch.setattr(attempts, "find_spec", lambda name: None)
    with pytest.raises(AlertTargetError, match=r'needs Apprise: pip install "cryptovol\[alerts\]"'):
        check_targets(found)
    assert check_targets({"webhook": Target("webhook", "http://x", is_webhook=True)}) == {}


def test_a_process_that_breaks_down_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("bad", f"json://127.0.0.1:not-a-port/{SECRET}", is_webhook=True)
    reason = send_once(target, alert(), 2.0)
    assert reason
    assert SECRET not in reason
    monkeypatch.setattr(attempts.sys, "executable", "/does/not/exist")
    assert "cannot be started: [Errno 2]" in send_once(target, alert(), 2.0)


def test_every_part_of_a_url_is_redacted_and_its_host_is_not() -> None:
    url = f"json://us%40er:{SECRET}%2B1@example.org:8443/hook/{SECRET}2?key={SECRET}3"
    text = f"POST {url} for us@er with {SECRET}+1, {SECRET}2, {SECRET}3 at example.org:8443\nfailed"
    assert redact(text, url) == "POST *** for *** with ***, ***, *** at example.org:8443 failed"
    token = f"slack://{SECRET}/{SECRET}2"
    assert redact(f"no route to {SECRET.lower()}", token) == "no route to ***"

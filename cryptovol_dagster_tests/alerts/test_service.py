"""From facts to receivers: at least once and marked once, through restarts and kills; no call waits."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptovol_dagster.alerts import sending
from cryptovol_dagster.alerts.errors import AlertRuleError, AlertTargetError
from cryptovol_dagster.alerts.outbox import Alert
from cryptovol_dagster.alerts.service import AlertService
from cryptovol_dagster.alerts.targets import Target
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.alerts.samples import SECRET, T0_NS, configured, event, score
from cryptovol_dagster_tests.places import REPOSITORY
from cryptovol_dagster_tests.webhook import Receiver, receiving
from ingestor.envelope import closing_score

HIGH = {"name": "high", "when": "probability", "at_least": 0.9}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Alert]]:
    """What is sent, to targets that take everything."""
    found: list[tuple[str, Alert]] = []

    def take(target: Target, alert: Alert, timeout_s: float) -> str:
        found.append((target.name, alert))
        return ""

    monkeypatch.setattr(sending, "send_once", take)
    monkeypatch.setattr("cryptovol_dagster.alerts.service.require_usable", lambda targets: None)
    return found


def test_scores_raise_alerts_by_product_and_probability(
    tmp_path: Path, sent: list[tuple[str, Alert]]
) -> None:
    rule = {**HIGH, "products": ["BTC-USD"], "chain": "seconds", "targets": ["phone"]}
    settings = configured(tmp_path, {"phone": "json://x", "mail": "json://y"}, rules=[rule])
    with AlertService(settings) as alerts:
        for second in range(310):
            alerts.observe(score(second))
            alerts.observe(score(second, product="ETH-USD"))
        alerts.observe(score(1_000, 0.89))
        alerts.observe(score(1_000, None))
        alerts.observe(closing_score("seconds", 0, T0_NS, T0_NS))
        assert alerts.wait_until_settled(20.0)
    assert [(target, alert.at_ns) for target, alert in sent] == [
        ("phone", T0_NS + second * NS) for second in (0, 300)
    ]
    assert "ln_rv_5, realised volatility over 5 bars" in sent[0][1].body


def test_events_and_time_raise_the_default_alerts_once(
    tmp_path: Path, sent: list[tuple[str, Alert]], caplog: pytest.LogCaptureFixture
) -> None:
    day_ns = 86_400 * NS
    with AlertService(configured(tmp_path, {"phone": "json://x"})) as alerts:
        alerts.observe(score())
        alerts.observe(event())
        alerts.observe(event("episode_closed", 9))
        alerts.observe(event("model_refused", product=None, reason="bad"))
        alerts.observe(event("model_changed", product=None))
        for second in range(59, 700):
            alerts.tick(T0_NS + second * NS, T0_NS, {"seconds": T0_NS - 2 * day_ns, "minutes_h5": None})
        assert alerts.wait_until_settled(20.0)
    assert [alert.kind for _, alert in sent] == [
        *("episode_opened", "model_refused", "champion_old", "feed_silent"),
    ]
    assert "probability: 0.930, operating point 0.710" in sent[0][1].body
    levels = {record.getMessage().split(";")[0]: record.levelno for record in caplog.records}
    assert levels["alert: BTC-USD: episode opened"] == logging.WARNING
    assert levels["alert: seconds: a model was refused"] == logging.ERROR


def test_what_is_observed_again_after_a_restart_raises_nothing_new(
    tmp_path: Path, sent: list[tuple[str, Alert]]
) -> None:
    rules = [{"name": "o", "when": "episode_opened", "cool_down_s": 0}, HIGH]
    settings = configured(tmp_path, {"phone": "json://x"}, rules=rules)
    for _ in range(2):
        with AlertService(settings) as alerts:
            alerts.observe(score(100))
            alerts.observe(event(second=100))
            alerts.observe(score(399))
            assert alerts.wait_until_settled(20.0)
    assert [alert.rule for _, alert in sent] == ["high", "o"]


def test_a_disk_that_blocks_holds_up_no_call_and_loses_nothing(
    tmp_path: Path, sent: list[tuple[str, Alert]]
) -> None:
    with AlertService(configured(tmp_path, {"phone": "json://x"})) as alerts:
        alerts.observe(event(second=1))
        assert alerts.wait_until_settled(20.0)
        with sqlite3.connect(alerts.outbox.path, isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            alerts.observe(event(second=1_000))
            alerts.observe(event(second=2_000))
            assert len(sent) == 1
            other.execute("ROLLBACK")
        assert alerts.wait_until_settled(20.0)
    assert len(sent) == 3


def test_without_a_target_alerts_are_in_the_log_and_the_outbox(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with AlertService(configured(tmp_path, {})) as alerts:
        alerts.observe(event())
        assert alerts.wait_until_settled(20.0)
    assert caplog.messages[0].startswith("alert: BTC-USD: episode opened; product: BTC-USD, chain seconds")
    assert [states for _, states in alerts.outbox.newest(9)] == [[]]


def test_a_start_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(AlertTargetError, match=r"^alerts\.targets\.phone: Apprise has no service 'jsno://'"):
        AlertService(configured(tmp_path, {"phone": f"jsno://{SECRET}"})).start()
    rule = {"name": "o", "when": "episode_opened", "chain": "secods"}
    with pytest.raises(AlertRuleError, match=r"rule 'o': secods is not a chain .* Did you mean 'seconds'\?"):
        AlertService(configured(tmp_path, {}, rules=[rule]))


RAISE_AND_WAIT = """
import sys, time, json
from ingestor.settings import Settings
from cryptovol_dagster.alerts.service import AlertService
from cryptovol_dagster_tests.alerts.samples import configured, event
from pathlib import Path
alerts = AlertService(configured(Path(sys.argv[1]), {"phone": sys.argv[2]}, alert_timeout_s=60.0))
alerts.start()
alerts.observe(event())
time.sleep(120)
"""


@pytest.mark.slow
def test_a_kill_while_it_is_sent_loses_nothing_and_marks_it_once(tmp_path: Path, receiver: Receiver) -> None:
    url = f"json://127.0.0.1:{receiver.server_port}/{SECRET}"
    receiver.wait_s = 1.0
    command = [sys.executable, "-c", RAISE_AND_WAIT, str(tmp_path), url]
    with subprocess.Popen(command, cwd=REPOSITORY) as killed:
        while not receiver.bodies:
            assert killed.poll() is None
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
    receiver.wait_s = 0.0
    with AlertService(configured(tmp_path, {"phone": url})) as alerts:
        alerts.observe(event())
        assert alerts.wait_until_settled(30.0)
        ((alert, states),) = alerts.outbox.newest(9)
    assert [body["title"] for body in receiver.bodies] == [alert.title] * 2
    assert [(one.state, one.tries) for one in states] == [("sent", 1)]
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in stored

"""`cryptovol alert` shows rules, targets and alerts, and tests targets; it shows no secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cryptovol_dagster.alerts.outbox import Outbox
from cryptovol_dagster.cli import main
from cryptovol_dagster_tests.alerts.samples import SECRET, T0_NS, alert
from cryptovol_dagster_tests.e2e.processes import free_port
from cryptovol_dagster_tests.webhook import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    result = CliRunner().invoke(main, ["alert", *words])
    assert SECRET not in result.output
    return result


def test_a_test_says_what_each_target_answered(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "CRYPTOVOL__ALERTS__TARGETS__PHONE", f"json://127.0.0.1:{receiver.server_port}/{SECRET}"
    )
    monkeypatch.setenv("CRYPTOVOL__MONITORING__ALERT_WEBHOOK_URL", f"http://127.0.0.1:{free_port()}/{SECRET}")
    done = run("--test")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "phone: the test alert was accepted",
        "webhook: FAILED: [Errno 111] Connection refused",
    ]
    assert [body["title"] for body in receiver.bodies] == ["cryptovol: test alert"]
    assert (
        run("--test", "fone").output == "Error: fone is not a target: phone, webhook. Did you mean 'phone'?\n"
    )
    monkeypatch.setenv("CRYPTOVOL__ALERTS__TARGETS__PHONE", f"jsno://{SECRET}")
    found = json.loads(run("--test", "phone", "--json").output)
    assert found == {
        "phone": {"taken": False, "reason": "Apprise has no service 'jsno://'. Did you mean 'json'?"}
    }


def test_without_a_target_it_says_how_to_set_one() -> None:
    done = run("--test")
    assert done.exit_code == 2
    assert done.output.startswith("Error: alerts have no target: set CRYPTOVOL__ALERTS__TARGETS__PHONE=")
    assert run("--test", "x", "--list").exit_code == 2


def test_the_list_shows_rules_targets_and_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "alerts: none so far" in run().output
    monkeypatch.setenv("CRYPTOVOL__ALERTS__TARGETS__PHONE", f"json://{SECRET}")
    rule = {"name": "high", "when": "probability", "at_least": 0.9, "products": ["BTC-USD"]}
    monkeypatch.setenv("CRYPTOVOL__ALERTS__RULES", json.dumps([rule]))
    outbox = Outbox(tmp_path / "data" / "alerts")
    outbox.record(alert(), ["phone"])
    outbox.failed(alert().id, "phone", T0_NS, "it answered 500", give_up=True)
    lines = [" ".join(line.split()) for line in run("--list").output.splitlines()]
    assert lines == [
        "targets: phone",
        "",
        "rule when of targets cool-down",
        "high probability ≥ 0.9 BTC-USD all 300 s",
        "",
        "time rule alert state",
        "2026-12-01 01:53:20 UTC opened P1-USD: episode opened phone: given_up (1 tries, it answered 500)",
    ]
    listed = json.loads(run("--json").output)
    assert listed["targets"] == ["phone"]
    assert listed["alerts"][0]["deliveries"] == [
        {"target": "phone", "state": "given_up", "tries": 1, "reason": "it answered 500"}
    ]

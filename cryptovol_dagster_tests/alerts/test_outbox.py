"""An alert is stored once, and each of its deliveries ends once; a file that cannot be used is one line."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cryptovol_dagster.alerts import outbox as outboxes
from cryptovol_dagster.alerts.errors import OutboxError
from cryptovol_dagster.alerts.outbox import Delivery, Outbox
from cryptovol_dagster_tests.alerts.samples import T0_NS, alert


def test_an_alert_is_stored_once_and_waits_for_each_target(tmp_path: Path) -> None:
    assert Outbox(tmp_path / "new").newest(5) == []
    outbox = Outbox(tmp_path / "new")
    assert outbox.record(alert(), ["phone", "mail"])
    assert not outbox.record(alert(), ["phone", "mail"])
    again = Outbox(tmp_path / "new")
    assert again.pending("phone") == [(alert(), 0)]
    assert again.pending("mail") == [(alert(), 0)]
    assert again.pending("other") == []


def test_a_delivery_is_marked_once_whoever_marks_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.record(alert(), ["phone", "mail"])
    outbox.failed(alert().id, "phone", T0_NS, "it answered 500", give_up=False)
    assert outbox.pending("phone") == [(alert(), 1)]
    with ThreadPoolExecutor(4) as pool:
        marked = list(pool.map(lambda _: Outbox(tmp_path).sent(alert().id, "phone", T0_NS), range(8)))
    assert sorted(marked) == [False] * 7 + [True]
    outbox.failed(alert().id, "phone", T0_NS, "too late", give_up=True)
    outbox.failed(alert().id, "mail", T0_NS, "no answer", give_up=True)
    assert not outbox.sent(alert().id, "mail", T0_NS)
    assert outbox.newest(1) == [
        (alert(), [Delivery("mail", "given_up", 1, "no answer"), Delivery("phone", "sent", 2, "")])
    ]


def test_the_newest_are_kept_and_all_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "KEPT", 2)
    outbox = Outbox(tmp_path)
    for number in range(1, 6):
        outbox.record(alert(number, recorded_at_ns=T0_NS + number), ["phone"])
        if number != 2:
            outbox.sent(alert(number).id, "phone", T0_NS)
    outbox.record(alert(6, recorded_at_ns=T0_NS + 6), [])
    kept = [one.id for one, _ in outbox.newest(10)]
    assert kept == [alert(number).id for number in (6, 5, 2)]
    assert len(outbox.pending("phone")) == 1


def test_the_last_alert_of_each_rule_and_subject_is_known(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    assert outbox.last_ns() == {}
    for number in (1, 2):
        outbox.record(alert(number), [])
    assert outbox.last_ns() == {("opened", f"seconds/P{number}-USD"): T0_NS + number for number in (1, 2)}


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_text("something else, and long enough to be read as a header" * 20)
    with pytest.raises(OutboxError, match=r"outbox\.sqlite cannot be used: file is not a database"):
        Outbox(tmp_path).record(alert(), [])
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(OutboxError, match=r"cannot be used: .*exists"):
        Outbox(blocked).record(alert(), [])


def test_a_commit_is_synced_with_its_folder(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.record(alert(), [])
    with outbox._writing() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)
    with sqlite3.connect(outbox.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)

"""What `up` and `status` say of a machine that has just begun."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.learning.splits import Split, TimeRange
from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.history.progress import DONE, Progress, Reached, write_progress
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.machine.first_days import announcement, is_wanted, learning_line, main
from cryptovol_dagster.machine.status import look
from cryptovol_dagster.verbs.status import _rows
from cryptovol_dagster_tests.candle_server import made_candles
from ingestor.errors import USAGE
from ingestor.settings import Settings
from ingestor.settings.sections import HistorySettings

HOURS = ("2026-04-04-03:00", "2026-04-04-04:00")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings a user begins with, in an empty folder."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    nowhere = {"ui_url": "http://127.0.0.1:1"}
    storage = {"data_dir": tmp_path / "data", "reports_dir": tmp_path / "reports"}
    return Settings.model_validate({"storage": storage, "dagster": nowhere, "mlflow": nowhere})


def test_up_says_what_it_is_about_to_import(settings: Settings) -> None:
    assert announcement(settings) == (
        "minutes  none yet: the last 120 days of BTC-USD, ETH-USD are imported in the background (4 min or "
        "more), then models learn from them (--no-import: not)"
    )
    assert announcement(settings, trains=False).endswith("background (4 min or more) (--no-import: not)")
    today = datetime.now(UTC).date()
    three = settings.dagster.model_copy(update={"minutes_start": today - timedelta(days=3)})
    assert "the last 3 days of" in announcement(settings.model_copy(update={"dagster": three}))
    none = settings.dagster.model_copy(update={"minutes_start": today + timedelta(days=3)})
    assert announcement(settings.model_copy(update={"dagster": none})) == (
        f"minutes  days before {none.minutes_start} (dagster.minutes_start) are not imported"
    )
    history = History(settings.storage.history_dir)
    candles = made_candles(0, 3).assign(product="BTC-USD")
    history.record("BTC-USD", candles, source="file:a.csv", now_ns=DAY_NS)
    assert announcement(settings) == (
        "minutes  missing minutes of the last 120 days are imported in the background"
    )
    assert is_wanted(settings)
    assert not is_wanted(settings.model_copy(update={"history": HistorySettings(first_import_days=0)}))


def test_the_seconds_say_how_far_they_are_from_their_first_models(settings: Settings) -> None:
    lake, spec = Lake(settings.storage.lake_dir), timescale_specs(settings)["seconds"]
    assert learning_line(lake, spec) == "learning: 0 of 2 hours"
    for number, hour in enumerate(HOURS, 1):
        lake.write_table("seconds/labels", hour, pa.table({"x": [1]}))
        assert learning_line(lake, spec).startswith(f"learning: {number} ")
    assert learning_line(lake, spec) == "learning: 2 hours, not trained yet"
    plan = plans.SplitPlan(HOURS[1], "too few rows", None, {}, {}, "", "")
    lake.write_bytes("seconds/splits", HOURS[1], plan.to_json(), "json")
    assert learning_line(lake, spec) == (f"learning: 2 hours; nothing trained as of {HOURS[1]}: too few rows")
    one = TimeRange(0, 1)
    trained = replace(plan, reason="", split=Split(one, one, one, 1, 1))
    lake.write_bytes("seconds/splits", HOURS[1], trained.to_json(), "json")
    assert learning_line(lake, spec) == (
        f"learning: 2 hours; training as of {HOURS[1]} has begun, no evaluation yet"
    )


def test_what_cannot_be_read_is_shown_and_fails_nothing(settings: Settings) -> None:
    lake, root = Lake(settings.storage.lake_dir), settings.storage.history_dir
    for hour in HOURS:
        lake.write_table("seconds/labels", hour, pa.table({"x": [1]}))
    lake.write_bytes("seconds/splits", HOURS[1], b"{}", "json")
    root.mkdir(parents=True)
    (root / "last_days.json").write_text("{")
    rows = dict(_rows(look(settings, time.time_ns())))
    assert "last_days.json: cannot be read" in rows["minutes"]
    assert rows["seconds models"].startswith("learning: 2 hours; splits cannot be read: ")


def test_the_import_ends_with_the_exit_code_of_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "nice", lambda by: 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == USAGE
    assert capsys.readouterr().err.startswith("Error: ")


def test_status_shows_both(settings: Settings) -> None:
    found = look(settings, time.time_ns())
    assert found.minutes is None
    assert dict(_rows(found))["seconds models"] == "learning: 0 of 2 hours"
    assert dict(_rows(found))["minutes_h5 models"] == "learning: 0 of 3 days"
    day = DAY_NS // 60 // 10**9
    products = {"BTC-USD": Reached(2 * day + 500, 2 * day + 500), "NO-USD": Reached(0, 2 * day, "not listed")}
    progress = Progress(DONE, "2024-03-01", 2, products, began_ns=1, at_ns=1_709_460_000 * 10**9)
    write_progress(settings.storage.history_dir, progress)
    lake = Lake(settings.storage.lake_dir)
    for chain in ("minutes_h5", "minutes_h15"):
        lake.write_table(f"{chain}/labels", "2024-03-01", pa.table({"x": [1]}))
    found = look(settings, time.time_ns())
    assert dict(_rows(found))["minutes"] == (
        "imported minutes: BTC-USD 2 of 2 days, NO-USD refused (not listed), as of 2024-03-03T10:00:00Z; "
        "days computed: 1"
    )
    assert json.loads(json.dumps(found.as_dict()))["minutes"] == found.minutes

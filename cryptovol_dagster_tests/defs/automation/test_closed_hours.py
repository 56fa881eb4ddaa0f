"""The closed-hour sensor and the hourly retrain, tick by tick."""

from __future__ import annotations

import json
import os

import dagster as dg
import pytest

from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.automation import closed_hours as automation
from cryptovol_dagster.defs.automation.closed_hours import input_versions
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import (
    FIRST_HOUR,
    close_hour,
    hours_from,
    small_settings,
    write_market,
)
from ingestor.archive.layout import ClosedHour
from ingestor.envelope import TICKS
from ingestor.settings import Settings
from ingestor.settings.sections import TimescalesSettings


@pytest.fixture
def empty(tmp_path) -> Settings:
    return small_settings(tmp_path)


def _sense(settings: Settings, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    sensor = build_defs(settings).resolve_sensor_def("closed_hours")
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
        result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def _schedule(settings: Settings, *runs: dg.DagsterRun) -> dg.RunRequest | dg.SkipReason:
    schedule = build_defs(settings).resolve_schedule_def("hourly_retrain")
    with dg.instance_for_test() as instance:
        for run in runs:
            instance.add_run(run)
        resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
        result = schedule(dg.build_schedule_context(instance=instance, resources=resources))
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def _reason(result: object) -> str:
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message is not None
    return result.skip_message


def test_hours_that_a_backfill_made_after_they_closed_are_reported_but_not_made_again(
    market: Settings,
) -> None:
    first, second = hours_from(FIRST_HOUR, 2)
    Lake(market.storage.lake_dir).write_bytes("seconds/labels", first, b"made", "parquet")
    result = _sense(market)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == [second]
    assert [event.partition for event in result.asset_events] == [first, second]


def test_nothing_closed_is_said(empty: Settings) -> None:
    assert _reason(_sense(empty)) == "no hour has closed yet"


def test_hours_after_the_end_of_a_market_are_left_alone(market: Settings) -> None:
    first, second = hours_from(FIRST_HOUR, 2)
    ended = market.model_copy(
        update={"dagster": market.dagster.model_copy(update={"partitions_end": second})}
    )
    result = _sense(ended)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == [first]
    assert [event.partition for event in result.asset_events] == [first]


def test_closed_hours_are_reported_and_asked_for_once_oldest_first(market: Settings) -> None:
    hours = hours_from(FIRST_HOUR, 2)
    result = _sense(market)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == hours
    asked = (result.run_requests or [])[0]
    assert [key.to_user_string() for key in asked.asset_selection or ()] == [
        "gap_ledger",
        "ticks",
        "seconds/bars",
        "seconds/features",
        "seconds/labels",
        "seconds/drift_scores",
    ]
    assert (asked.run_key or "").startswith(f"{hours[0]}@")
    assert [(event.asset_key.to_user_string(), event.partition) for event in result.asset_events] == [
        ("raw_ticks", key) for key in hours
    ]
    reported = result.asset_events[0]
    assert isinstance(reported, dg.AssetMaterialization)
    assert "dagster/data_version" in (reported.tags or {})
    assert _reason(_sense(market, result.cursor)) == f"no hour has closed since {hours[1]}"


def test_rows_that_came_late_ask_for_the_hour_and_the_one_built_upon_it_again(market: Settings) -> None:
    hours = hours_from(FIRST_HOUR, 2)
    first = _sense(market)
    assert isinstance(first, dg.SensorResult)
    close_hour(market.storage.raw_dir, hours[0], {TICKS: 2881})
    again = _sense(market, first.cursor)
    assert isinstance(again, dg.SensorResult)
    assert [request.partition_key for request in again.run_requests or ()] == hours
    keys = {request.run_key for result in (first, again) for request in result.run_requests or ()}
    assert len(keys) == 4


def test_hours_long_closed_are_not_made_again_when_the_memory_moves_on(
    empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automation, "REMEMBERED_HOURS", 3)
    raw_dir, hours = empty.storage.raw_dir, hours_from(FIRST_HOUR, 7)
    for count, key in enumerate(hours[:4]):
        close_hour(raw_dir, key, {TICKS: count})
    cursor = None
    for count, key in enumerate(hours[4:], start=4):
        close_hour(raw_dir, key, {TICKS: count})
        result = _sense(empty, cursor)
        assert isinstance(result, dg.SensorResult)
        asked, cursor = [request.partition_key for request in result.run_requests or ()], result.cursor
        assert asked == ([key] if count > 4 else hours[:5])
    assert sorted(json.loads(cursor or "")) == hours[4:]


def test_hours_before_the_first_partition_are_not_asked_for(tmp_path) -> None:
    settings = small_settings(tmp_path, first_hour="2026-04-04-04:00")
    write_market(settings.storage.raw_dir, hours_from(FIRST_HOUR, 2))
    result = _sense(settings)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == ["2026-04-04-04:00"]
    assert list(json.loads(result.cursor or "")) == ["2026-04-04-04:00"]


def test_an_hour_that_closes_after_its_successor_renews_it() -> None:
    hours = [
        ClosedHour(hour=key, closed_at_ns=1, watermark_ns=1, rows={TICKS: 5})
        for key in hours_from(FIRST_HOUR, 3)
    ]
    full, without_first = input_versions(hours, 1), input_versions(hours[1:], 1)
    assert full[hours[1].hour] != without_first[hours[1].hour]
    assert full[hours[2].hour] == without_first[hours[2].hour]
    assert hours[0].version == hours[1].version


def test_a_retrain_waits_for_a_closed_hour(empty: Settings) -> None:
    assert "closed no hour yet" in _reason(_schedule(empty))


def test_a_retrain_is_skipped_while_labels_are_missing(market: Settings) -> None:
    newest = hours_from(FIRST_HOUR, 2)[-1]
    assert _reason(_schedule(market)) == f"seconds/labels of {newest}, the newest closed hour, is missing"


def test_what_was_made_of_a_running_hour_does_not_count_once_it_has_closed(market: Settings) -> None:
    newest = hours_from(FIRST_HOUR, 2)[-1]
    lake = Lake(market.storage.lake_dir)
    before_closing_s = hour_window(newest)[0] / 1e9 + 1_200
    for asset, suffix in (("seconds/labels", "parquet"), ("seconds/model_evaluation", "json")):
        os.utime(lake.write_bytes(asset, newest, b"", suffix), (before_closing_s, before_closing_s))
    assert "was computed before it closed" in _reason(_schedule(market))
    lake.write_bytes("seconds/labels", newest, b"", "parquet")
    assert isinstance(_schedule(market), dg.RunRequest)
    lake.write_bytes("seconds/model_evaluation", newest, b"", "json")
    assert "evaluated already" in _reason(_schedule(market))


def test_a_retrain_is_asked_for_once_labels_are_there(market: Settings) -> None:
    newest = hours_from(FIRST_HOUR, 2)[-1]
    Lake(market.storage.lake_dir).write_bytes("seconds/labels", newest, b"", "parquet")
    request = _schedule(market)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == newest


def test_a_recording_that_has_just_begun_is_waited_for(market: Settings) -> None:
    newest = hours_from(FIRST_HOUR, 2)[-1]
    seconds = market.timescales.seconds.model_copy(update={"horizon_bars": 150})
    settings = market.model_copy(update={"timescales": TimescalesSettings(seconds=seconds)})
    Lake(settings.storage.lake_dir).write_bytes("seconds/labels", newest, b"", "parquet")
    reason = _reason(_schedule(settings))
    assert reason.startswith(
        f"nothing can be trained as of {newest}, the newest closed hour, yet: 3600 s of rows"
    )
    Lake(settings.storage.lake_dir).write_bytes("seconds/labels", FIRST_HOUR, b"", "parquet")
    assert isinstance(_schedule(settings), dg.RunRequest)


def test_an_hour_that_is_evaluated_is_not_trained_again(pipeline: Pipeline) -> None:
    assert "evaluated already" in _reason(_schedule(pipeline.settings))


def test_a_retrain_that_is_on_its_way_is_not_asked_for_again(market: Settings) -> None:
    newest = hours_from(FIRST_HOUR, 2)[-1]
    Lake(market.storage.lake_dir).write_bytes("seconds/labels", newest, b"", "parquet")
    tags = {"dagster/partition": newest}
    started = dg.DagsterRun(job_name="retrain", status=dg.DagsterRunStatus.STARTED, tags=tags)
    failed = dg.DagsterRun(job_name="retrain", status=dg.DagsterRunStatus.FAILURE, tags=tags)
    assert "is running or queued" in _reason(_schedule(market, started))
    assert isinstance(_schedule(market, failed), dg.RunRequest)


def _sense_retrain(settings: Settings, *runs: dg.DagsterRun) -> object:
    dagster = settings.dagster.model_copy(update={"retrain_every_closed_hours": 2})
    settings = settings.model_copy(update={"dagster": dagster})
    sensor = build_defs(settings).resolve_sensor_def("closed_hours_retrain")
    with dg.instance_for_test() as instance:
        for run in runs:
            instance.add_run(run)
        resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
        return sensor(dg.build_sensor_context(instance=instance, resources=resources))


def test_a_market_faster_than_the_clock_is_retrained_by_its_own_hours(empty: Settings) -> None:
    hours = hours_from(FIRST_HOUR, 4)
    write_market(empty.storage.raw_dir, hours)
    lake = Lake(empty.storage.lake_dir)
    assert _reason(_sense_retrain(empty)) == "no closed hour has labels yet"
    # The labels are hours behind the market: the newest hour that has them is trained, not waited for.
    lake.write_bytes("seconds/labels", hours[0], b"", "parquet")
    first = _sense_retrain(empty)
    assert isinstance(first, dg.RunRequest)
    assert (first.partition_key, first.run_key) == (hours[0], f"closed@{hours[0]}")
    lake.write_bytes("seconds/model_evaluation", hours[0], b"", "json")
    lake.write_bytes("seconds/labels", hours[1], b"", "parquet")
    assert (
        _reason(_sense_retrain(empty)) == f"models are as of {hours[0]}, the next retrain is as of {hours[2]}"
    )
    lake.write_bytes("seconds/labels", hours[3], b"", "parquet")
    running = dg.DagsterRun(job_name="retrain", status=dg.DagsterRunStatus.STARTED)
    assert _reason(_sense_retrain(empty, running)) == "a retrain is running or queued"
    later = _sense_retrain(empty)
    assert isinstance(later, dg.RunRequest)
    assert later.partition_key == hours[3]


def test_a_real_market_is_retrained_by_the_clock_alone(empty: Settings) -> None:
    sensors = build_defs(empty).sensors or ()
    assert "closed_hours_retrain" not in {sensor.name for sensor in sensors}

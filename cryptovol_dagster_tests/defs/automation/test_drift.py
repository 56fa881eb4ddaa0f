"""What drift sets off, tick by tick: numbers → report → retrain, and why not."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.monitoring.drift import SCHEMA_VERSION
from cryptovol_dagster.monitoring.index import SUMMARY
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, close_hour, hours_from, small_settings
from ingestor.envelope import TICKS
from ingestor.settings import Settings
from ingestor.settings.sections import MonitoringSettings

HOURS = hours_from(FIRST_HOUR, 8)
TOLD = "calibrated on 44 past pairs"
LIMITS = f"(limit of the newest 0.25, {TOLD})"


@pytest.fixture
def settings(tmp_path) -> Settings:
    """Four closed hours; two over the limit of the newest three make a report, once in five hours."""
    made = small_settings(tmp_path)
    monitoring = MonitoringSettings(drift_hours_needed=2, drift_hours_looked_at=3, drift_cool_down_hours=5)
    for key in HOURS[:4]:
        close_hour(made.storage.raw_dir, key, {TICKS: 1})
    return made.model_copy(update={"monitoring": monitoring})


def _score(settings: Settings, over: dict[str, bool], status: str = "scored") -> None:
    for key, is_over in over.items():
        numbers = {"schema_version": SCHEMA_VERSION, "as_of": key, "status": status, "over_limit": is_over}
        numbers |= {"limit": 0.254, "calibration": {"told": TOLD}}
        content = json.dumps(numbers).encode()
        Lake(settings.storage.lake_dir).write_bytes("seconds/drift_scores", key, content, "json")


def _sense(
    settings: Settings, cursor: str | None = None, *runs: dg.DagsterRun
) -> dg.SensorResult | dg.SkipReason:
    sensor = build_defs(settings).resolve_sensor_def("drift")
    with dg.DagsterInstance.ephemeral() as instance:
        for run in runs:
            instance.add_run(run)
        resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
        result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def _reason(result: object) -> str:
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message is not None
    return result.skip_message


def test_without_closed_hours_or_numbers_nothing_is_asked_for(tmp_path, settings: Settings) -> None:
    assert _reason(_sense(small_settings(tmp_path / "empty"))) == "raw storage has closed no hour yet"
    assert _reason(_sense(settings)) == "none of the last 3 closed hours has drift numbers"
    _score(settings, {HOURS[3]: False}, status="no_reference")
    assert _reason(_sense(settings)) == "none of the last 3 closed hours has drift numbers"


def test_numbers_of_an_earlier_version_count_for_nothing(settings: Settings) -> None:
    _score(settings, dict.fromkeys(HOURS[1:4], True))
    lake = Lake(settings.storage.lake_dir)
    for hour in HOURS[1:4]:
        numbers = json.loads(lake.read_bytes("seconds/drift_scores", hour, "json"))
        old = json.dumps({**numbers, "schema_version": SCHEMA_VERSION - 1}).encode()
        lake.write_bytes("seconds/drift_scores", hour, old, "json")
    assert _reason(_sense(settings)) == "none of the last 3 closed hours has drift numbers"


def test_too_few_hours_over_the_limit_are_counted(settings: Settings) -> None:
    # The first is over it too, and too long ago.
    _score(settings, {HOURS[0]: True, HOURS[1]: False, HOURS[2]: True, HOURS[3]: False})
    assert _reason(_sense(settings)) == f"1 of the last 3 hours over their limits {LIMITS}, 2 needed"


def test_hours_missing_in_between_are_said_and_do_not_count(settings: Settings) -> None:
    _score(settings, {HOURS[1]: True, HOURS[3]: False})
    told = f"1 of the last 3 hours over their limits, 1 without drift numbers {LIMITS}"
    assert _reason(_sense(settings)) == f"{told}, 2 needed"
    _score(settings, {HOURS[3]: True})
    assert isinstance(_sense(settings), dg.SensorResult)


def test_enough_hours_ask_for_the_report_of_the_newest_once_also_after_a_restart(settings: Settings) -> None:
    _score(settings, dict.fromkeys(HOURS[1:4], True))
    result = _sense(settings)
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or ()
    assert (request.run_key, request.partition_key) == (HOURS[3], HOURS[3])
    told = f"3 of the last 3 hours over their limits {LIMITS}"
    assert request.tags["cryptovol/because"] == told
    assert result.cursor == HOURS[3]
    again = _reason(_sense(settings, result.cursor))
    assert again == f"{told}; the drift report of {HOURS[3]} was requested already"
    # That report was never made: the next hour asks for its own.
    close_hour(settings.storage.raw_dir, HOURS[4], {TICKS: 1})
    _score(settings, {HOURS[4]: True})
    after = _sense(settings, result.cursor)
    assert isinstance(after, dg.SensorResult)
    assert [one.partition_key for one in after.run_requests or ()] == [HOURS[4]]


def test_a_report_that_is_on_its_way_is_waited_for(settings: Settings) -> None:
    _score(settings, dict.fromkeys(HOURS[1:4], True))
    started = dg.DagsterRun(job_name="drift", status=dg.DagsterRunStatus.STARTED)
    failed = dg.DagsterRun(job_name="drift", status=dg.DagsterRunStatus.FAILURE)
    assert _reason(_sense(settings, None, started)).endswith("; a drift report is running or queued")
    assert isinstance(_sense(settings, None, failed), dg.SensorResult)


def test_the_cool_down_counts_hours_of_the_market_from_the_last_report(settings: Settings) -> None:
    _score(settings, dict.fromkeys(HOURS, True))
    lake = Lake(settings.storage.lake_dir)
    lake.write_bytes("seconds/drift_report", HOURS[0], b"{}", SUMMARY)
    told = f"3 of the last 3 hours over their limits {LIMITS}"
    assert _reason(_sense(settings)) == f"{told}; cool-down until {HOURS[5]}"
    for key in HOURS[4:6]:
        close_hour(settings.storage.raw_dir, key, {TICKS: 1})
    result = _sense(settings)
    assert isinstance(result, dg.SensorResult)
    assert [one.partition_key for one in result.run_requests or ()] == [HOURS[5]]


def _after_report(
    settings: Settings, tags: dict[str, str], *runs: dg.DagsterRun
) -> dg.RunRequest | dg.SkipReason:
    defs = build_defs(settings)
    sensor, job = defs.resolve_sensor_def("drift_retrain"), defs.resolve_job_def("drift")
    with dg.instance_for_test() as instance:
        for run in runs:
            instance.add_run(run)
        done = dg.DagsterRun(job_name=job.name, status=dg.DagsterRunStatus.SUCCESS, tags=tags)
        event = dg.DagsterEvent(event_type_value="PIPELINE_SUCCESS", job_name=job.name)
        context = dg.build_run_status_sensor_context(
            sensor_name="drift_retrain",
            dagster_event=event,
            dagster_instance=instance,
            dagster_run=done,
            resources={name: build_resources(settings)[name] for name in ("raw", "lake")},
        )
        result = sensor(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def test_a_drift_report_asks_for_a_retrain_that_says_why_unless_there_is_a_reason_not_to(
    settings: Settings,
) -> None:
    key, lake = HOURS[3], Lake(settings.storage.lake_dir)
    tags = {"dagster/partition": key}
    assert "was of no single hour" in _reason(_after_report(settings, {}))
    open_hour = _after_report(settings, {"dagster/partition": HOURS[4]})
    assert _reason(open_hour) == f"{HOURS[4]} has not closed: the hourly retrain follows its close"
    assert _reason(_after_report(settings, tags)) == f"seconds/labels of {key} is missing"
    lake.write_bytes("seconds/labels", key, b"", "parquet")
    request = _after_report(settings, tags)
    assert isinstance(request, dg.RunRequest)
    assert (request.run_key, request.partition_key) == (f"drift@{key}", key)
    assert request.tags["cryptovol/because"] == "drift"
    training = dg.DagsterRun(job_name="retrain", status=dg.DagsterRunStatus.STARTED, tags=tags)
    assert _reason(_after_report(settings, tags, training)) == f"a retrain as of {key} is running or queued"
    lake.write_bytes("seconds/model_evaluation", key, b"", "json")
    assert _reason(_after_report(settings, tags)) == f"models as of {key} are evaluated already"

"""A failed run is told, with what stopped it; a receiver that is away does not stop the sensor."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from cryptovol_dagster.alerts.service import AlertService
from cryptovol_dagster.defs.automation.alerts import failed_runs_sensor
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.verbs.runs import RANGE_END, RANGE_START
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from
from cryptovol_dagster_tests.webhook import Receiver, receiving
from ingestor.envelope import TICKS
from ingestor.settings import Settings
from ingestor.settings.alerts import AlertsSettings
from ingestor.settings.sections import MonitoringSettings


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def _alerts(settings: Settings, url: str) -> AlertService:
    configured = settings.model_copy(
        update={
            "monitoring": MonitoringSettings.model_validate(
                {"alert_webhook_url": url, "alert_pause_s": 0.01, "alert_tries": 2}
            ),
            "alerts": AlertsSettings(give_up_after_s=0.001),
        }
    )
    alerts = build_resources(configured)["alerts"]
    assert isinstance(alerts, AlertService)
    return alerts


def _tell(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult, alerts: AlertService) -> object:
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        resources={"alerts": alerts},
    ).for_run_failure()
    told = failed_runs_sensor()(context)
    assert alerts.wait_until_settled(30.0)
    alerts.close()
    return told


def _fail(instance: dg.DagsterInstance, error: Exception) -> dg.ExecuteInProcessResult:
    @dg.op
    def breaks() -> None:
        raise error

    @dg.job
    def retrain() -> None:
        breaks()

    return retrain.execute_in_process(
        instance=instance, raise_on_error=False, tags={"dagster/partition": FIRST_HOUR}
    )


def test_a_check_that_stopped_a_run_is_told_with_its_sentences(market: Settings, receiver: Receiver) -> None:
    hours, raw_dir = hours_from(FIRST_HOUR, 2), market.storage.raw_dir
    next((raw_dir / TICKS).glob("date=*/hour=04/*-p1-*")).unlink()
    job = build_defs(market).resolve_job_def("hourly_pipeline")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance,
            partition_key=hours[1],
            asset_selection=[dg.AssetKey("gap_ledger")],
            raise_on_error=False,
        )
        assert not result.success
        _tell(instance, result, _alerts(market, receiver.url))
    (told,) = receiver.bodies
    assert told["kind"] == "run_failed"
    assert (told["job"], told["partitions"], told["run_id"]) == ("hourly_pipeline", hours[1], result.run_id)
    assert told["failed_step"] == "gap_ledger_checks"
    assert told["url"] == f"http://127.0.0.1:3000/runs/{result.run_id}"
    (check,) = told["failed_checks"]
    assert check["check"] == "gap_ledger: nothing_unaccounted_for"
    assert "expected 4320 frames with entries, found 2880" in check["sentences"][0]
    assert told["text"].startswith(f"hourly_pipeline {hours[1]} failed at gap_ledger_checks: ")


def test_a_check_that_stopped_a_run_over_a_range_is_told_once_and_names_the_hour(
    market: Settings, receiver: Receiver
) -> None:
    hours, raw_dir = hours_from(FIRST_HOUR, 2), market.storage.raw_dir
    next((raw_dir / TICKS).glob("date=*/hour=04/*-p1-*")).unlink()
    job = build_defs(market).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey("gap_ledger")],
            tags={RANGE_START: hours[0], RANGE_END: hours[1]},
            raise_on_error=False,
        )
        assert not result.success
        _tell(instance, result, _alerts(market, receiver.url))
    (told,) = receiver.bodies
    (check,) = told["failed_checks"]
    assert check["check"] == "gap_ledger: nothing_unaccounted_for"
    assert check["sentences"][0].startswith(f"{hours[1]}: ")


def test_an_error_is_told_in_one_line(market: Settings, receiver: Receiver) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = _fail(instance, OSError(5, "Input/output error\nand a second line"))
        _tell(instance, result, _alerts(market, receiver.url))
    (told,) = receiver.bodies
    assert told["failed_step"] == "breaks"
    assert "Input/output error" in told["error"]
    assert "\n" not in told["error"]
    assert told["failed_checks"] == []


@pytest.mark.parametrize("answers", [[500, 500], None])
def test_a_receiver_that_fails_does_not_fail_the_sensor(
    market: Settings, receiver: Receiver, answers: list[int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = _alerts(market, receiver.url)
    receiver.statuses = answers or []
    if answers is None:
        alerts = _alerts(market, "http://127.0.0.1:9/s3cret")
    with dg.DagsterInstance.ephemeral() as instance:
        _tell(instance, _fail(instance, ValueError("nothing")), alerts)
    assert "alert: run failed: retrain 2026-04-04-03:00; failed at breaks" in caplog.text
    assert "alert given up after 2 tries: webhook did not take it: " in caplog.text
    assert "s3cret" not in caplog.text

"""Rows that came after their hour had closed: labels are made again, models and decisions stand."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.pipeline import MARKET
from cryptovol_dagster_tests.synthetic import (
    FIRST_HOUR,
    LOG_ID,
    PRODUCTS,
    close_hour,
    hours_from,
    small_settings,
    write_market,
)
from ingestor.archive.closing import HourCloser
from ingestor.archive.layout import ClosedHour
from ingestor.envelope import TICKS, TOPICS
from ingestor.settings import Settings

ASSETS_LEFT_ALONE = (
    ("seconds/splits", "json"),
    ("seconds/model_evaluation", "json"),
    ("seconds/champion", "json"),
)


def _look(raw_dir: Path) -> list[ClosedHour]:
    """What an archive records that starts, and stops, now."""
    closer = HourCloser(raw_dir, 120.0, lambda topic, partition: 2**62)
    closer.recover(dict.fromkeys(TOPICS, LOG_ID))
    return [hour for _ in range(3) for hour in closer.advance(at_the_end=True)]


class Automation:
    """The code location's sensor and schedule, looked at as the daemon does."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.defs = build_defs(settings)
        self.instance = instance
        self.resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
        self.cursor: str | None = None

    def sense(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=self.resources
        )
        result = self.defs.resolve_sensor_def("closed_hours")(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        for event in result.asset_events:  # the daemon's part
            assert isinstance(event, dg.AssetMaterialization)
            self.instance.report_runless_asset_event(event)
        return result

    def retrain(self) -> dg.RunRequest | str | None:
        context = dg.build_schedule_context(instance=self.instance, resources=self.resources)
        result = self.defs.resolve_schedule_def("hourly_retrain")(context)
        return result.skip_message if isinstance(result, dg.SkipReason) else result  # pyright: ignore[reportReturnType]

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def("hourly_pipeline").execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            asset_selection=list(request.asset_selection or ()),
        )


def _labelled(settings: Settings, hour: str, product: str) -> int:
    labels = Lake(settings.storage.lake_dir).read_table("seconds/labels", *hour_window(hour)).to_pandas()
    return int(labels.loc[labels["product"] == product, "sigma"].notna().sum())


def test_a_product_that_came_late_is_labelled_and_what_was_decided_stands(
    tmp_path: Path, own_dagster_home: None
) -> None:
    settings, (first, second, third) = small_settings(tmp_path), hours_from(FIRST_HOUR, 3)
    raw_dir, lake = settings.storage.raw_dir, Lake(settings.storage.lake_dir)
    write_market(raw_dir, [first, second, third], products=PRODUCTS[:1], close=False)
    assert [hour.hour for hour in _look(raw_dir)] == [first, second]
    with dg.instance_for_test() as instance, runs.quiet_dagster():
        automation = Automation(settings, instance)
        for request in automation.sense().run_requests or ():
            assert automation.run(request).success
        assert (_labelled(settings, first, PRODUCTS[0]) > 600, _labelled(settings, first, PRODUCTS[1])) == (
            True,
            0,
        )
        decided = [
            lake.write_bytes(asset, hour, b"decided", suffix)
            for asset, suffix in ASSETS_LEFT_ALONE
            for hour in (first, second)
        ]
        before = [path.stat().st_mtime_ns for path in decided]
        evaluated = f"models as of {second}, the newest closed hour, are evaluated already"
        assert automation.retrain() == evaluated

        write_market(
            raw_dir, [first], products=PRODUCTS[1:], connection="late", log_id="logtest2", close=False
        )
        (again,) = _look(raw_dir)
        assert (again.hour, again.revision) == (first, 1)

        result = automation.sense()
        (event,) = result.asset_events
        assert isinstance(event, dg.AssetMaterialization)
        assert (event.partition, event.metadata["revision"].value) == (first, 1)
        assert event.metadata["late_rows"].value == again.late_rows == 2 * 1_440 + 2
        # The hour after it looks back on it; of neither a model is asked for.
        requests = list(result.run_requests or ())
        assert [request.partition_key for request in requests] == [first, second]
        assert {key.to_user_string() for request in requests for key in request.asset_selection or ()} == set(
            MARKET
        )
        assert automation.retrain() == evaluated
        made = {
            event.partition: event.metadata
            for request in requests
            for event in automation.run(request).asset_materializations_for_node("ticks")
        }
    assert _labelled(settings, first, PRODUCTS[1]) > 600
    assert (made[first]["revision"].value, made[first]["late_rows"].value) == (1, again.late_rows)
    assert (made[second]["revision"].value, made[second]["late_rows"].value) == (0, 0)
    assert [path.stat().st_mtime_ns for path in decided] == before
    assert RawStore(raw_dir).audit(*hour_window(first)).findings == ()


def test_a_late_row_in_the_newest_hour_does_not_train_it_again(market: Settings) -> None:
    newest, lake = hours_from(FIRST_HOUR, 2)[-1], Lake(market.storage.lake_dir)
    with dg.instance_for_test() as instance:
        automation = Automation(market, instance)
        lake.write_bytes("seconds/labels", newest, b"", "parquet")
        lake.write_bytes("seconds/model_evaluation", newest, b"", "json")
        assert "evaluated already" in str(automation.retrain())
        written_ns = lake.path("seconds/labels", newest).stat().st_mtime_ns
        close_hour(
            market.storage.raw_dir,
            newest,
            {TICKS: 9_999},
            revision=1,
            revised_at_ns=written_ns + 1,
            late_rows=5,
        )
        assert "was computed before it closed" in str(automation.retrain())
        lake.write_bytes("seconds/labels", newest, b"again", "parquet")
        assert "evaluated already" in str(automation.retrain())


@pytest.mark.parametrize("revision", [1, 2])
def test_each_revision_is_a_version_of_its_own_for_the_sensor(market: Settings, revision: int) -> None:
    first, second = hours_from(FIRST_HOUR, 2)
    keys = set()
    with dg.instance_for_test() as instance:
        automation = Automation(market, instance)
        for number in range(revision + 1):
            if number:
                close_hour(market.storage.raw_dir, first, {TICKS: 2_880 + number}, revision=number)
            requests = list(automation.sense().run_requests or ())
            assert [request.partition_key for request in requests] == [first, second]
            keys |= {request.run_key for request in requests}
    assert len(keys) == 2 * (revision + 1)

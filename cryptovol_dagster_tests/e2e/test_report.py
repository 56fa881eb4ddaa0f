"""A closed hour reported to a real Dagster webserver: once, whoever does it."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.resources import build_resources
from cryptovol_dagster.machine.instance import open_instance
from cryptovol_dagster_tests.e2e.processes import environment, free_port, running, wait_until
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings, write_market
from ingestor.archive.reader import RawReader
from ingestor.hour_reporter import RAW_TICKS, HourReporter
from ingestor.settings import Settings


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _sense(settings: Settings, instance: dg.DagsterInstance) -> dg.SensorResult:
    sensor = build_defs(settings).resolve_sensor_def("closed_hours")
    resources = {name: build_resources(settings)[name] for name in ("raw", "lake")}
    result = sensor(dg.build_sensor_context(instance=instance, resources=resources))
    assert isinstance(result, dg.SensorResult)
    return result


@pytest.mark.slow
def test_an_hour_the_recorder_reported_is_not_reported_again_but_asked_for(tmp_path: Path) -> None:
    settings, (first, second) = small_settings(tmp_path), hours_from(FIRST_HOUR, 2)
    write_market(settings.storage.raw_dir, [first, second])
    env, log = environment(settings, tmp_path), tmp_path / "webserver.log"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    address = ("--empty-workspace", "-h", "127.0.0.1", "-p", str(port))
    hour = RawReader(settings.storage.raw_dir).closed_hours()[0]
    with running("dagster-webserver", *address, env=env, log=log) as webserver:
        wait_until(lambda: _answers(url), "the webserver's answer", 60, webserver, log)
        reporter = HourReporter(url)
        reporter.report(hour)
        reporter.close()
    with open_instance(Path(env["DAGSTER_HOME"])) as instance:
        (record,) = instance.fetch_materializations(dg.AssetKey(RAW_TICKS), limit=10).records
        event = record.asset_materialization
        assert event is not None
        assert (event.partition, (event.tags or {})["dagster/data_version"]) == (first, hour.version)
        assert event.metadata["rows ticks.raw"].value == 2_880

        result = _sense(settings, instance)
        assert [event.partition for event in result.asset_events] == [second]
        assert [request.partition_key for request in result.run_requests or ()] == [first, second]

        # Another version of the hour is news again.
        path = next(settings.storage.raw_dir.glob("_closed/date=*/hour=03.json"))
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(hour, rows={"ticks.raw": 2_881})))
        assert [event.partition for event in _sense(settings, instance).asset_events] == [first, second]

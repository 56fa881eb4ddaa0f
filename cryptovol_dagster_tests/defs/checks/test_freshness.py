"""A pipeline that stopped turns red, and a recording of long ago does not."""

from __future__ import annotations

import dagster as dg
import msgspec
import pytest

from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.checks import freshness
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from
from ingestor.archive.layout import ClosedHour
from ingestor.settings import Settings
from ingestor.settings.sections import MonitoringSettings
from ingestor.times import HOUR_NS, NS, hour_from_key

MONITORING = MonitoringSettings(labels_due_after_s=600, hour_due_after_s=5_000)
END_NS = hour_from_key(FIRST_HOUR) + HOUR_NS
MINUTE_NS = 60 * NS


def _hour(closed_after_ns: int, **changes: int) -> ClosedHour:
    watermark_ns = END_NS + 2 * MINUTE_NS
    hour = ClosedHour(
        hour=FIRST_HOUR, closed_at_ns=END_NS + closed_after_ns, watermark_ns=watermark_ns, rows={}
    )
    return msgspec.structs.replace(hour, **changes)


LIVE, RECORDING = _hour(3 * MINUTE_NS), _hour(200 * 24 * HOUR_NS)


@pytest.mark.parametrize(
    ("hour", "labelled", "now_ns", "says"),
    [
        (LIVE, False, END_NS + 4 * MINUTE_NS, []),
        (LIVE, True, END_NS + 60 * MINUTE_NS, []),
        (
            LIVE,
            False,
            END_NS + 14 * MINUTE_NS,
            [
                "expected labels of 2026-04-04-03:00, the newest closed hour, within 600 s; "
                "found none after 660 s"
            ],
        ),
        (
            LIVE,
            True,
            END_NS + 90 * MINUTE_NS,
            [
                "expected an hour to close within 5000 s of the end of 2026-04-04-03:00; found none after "
                "5400 s: is the recorder running?"
            ],
        ),
        # A day later it is taken for ended; a recording never was live.
        (LIVE, True, END_NS + 25 * HOUR_NS, []),
        (RECORDING, True, RECORDING.closed_at_ns + 2 * HOUR_NS, []),
        (
            RECORDING,
            False,
            RECORDING.closed_at_ns + 2 * HOUR_NS,
            [
                "expected labels of 2026-04-04-03:00, the newest closed hour, within 600 s; "
                "found none after 7200 s"
            ],
        ),
        # Closed again with late rows: its labels are due anew.
        (
            _hour(3 * MINUTE_NS, revision=1, revised_at_ns=END_NS + 30 * MINUTE_NS),
            False,
            END_NS + 35 * MINUTE_NS,
            [],
        ),
    ],
)
def test_what_is_overdue_is_said(hour: ClosedHour, labelled: bool, now_ns: int, says: list[str]) -> None:
    assert freshness.find_overdue(hour, labelled, now_ns, MONITORING) == says


def _run(settings: Settings, instance: dg.DagsterInstance) -> tuple[bool, dg.AssetCheckEvaluation]:
    job = build_defs(settings).resolve_job_def(freshness.JOB)
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    (evaluation,) = result.get_asset_check_evaluations()
    return result.success, evaluation


def test_the_job_fails_while_the_newest_closed_hour_has_no_labels(market: Settings) -> None:
    newest, lake = hours_from(FIRST_HOUR, 2)[-1], Lake(market.storage.lake_dir)
    lake.write_bytes("seconds/labels", FIRST_HOUR, b"", "parquet")  # a backfill of an older hour
    with dg.DagsterInstance.ephemeral() as instance:
        succeeded, evaluation = _run(market, instance)
        assert not succeeded
        assert evaluation.severity is dg.AssetCheckSeverity.ERROR
        assert (evaluation.description or "").startswith(
            f"expected labels of {newest}, the newest closed hour, within 1800 s; found none after "
        )
        lake.write_bytes("seconds/labels", newest, b"", "parquet")
        assert _run(market, instance)[0]


def test_it_is_asked_for_every_hour_and_goes_before_a_backfill(market: Settings) -> None:
    defs = build_defs(market)
    schedule = defs.resolve_schedule_def("hourly_freshness")
    assert (schedule.cron_schedule, schedule.default_status) == (
        "12 * * * *",
        dg.DefaultScheduleStatus.RUNNING,
    )
    job = defs.resolve_job_def(freshness.JOB)
    assert job.asset_layer.executable_asset_keys == set()
    assert int(job.tags["dagster/priority"]) > 1

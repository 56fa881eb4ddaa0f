"""Dagster's own command line and daemon on the code location, as real processes."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import TickStatus

from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.machine.instance import open_instance
from cryptovol_dagster_tests.e2e.processes import dagster, environment, running, simulated, wait_until
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings, write_market
from cryptovol_dagster_tests.webhook import receiving
from ingestor.archive.reader import RawReader

#: The same code location with a retrain due every minute instead of once an hour: what is tested is that the
#: daemon runs the schedule by itself, not that Dagster can count to sixty.
EVERY_MINUTE = """
from cryptovol_dagster.defs.build import build_defs
from ingestor.settings import load_settings

defs = build_defs(load_settings().settings, retrain_cron="* * * * *")
"""
#: Hours of the simulated market that close.
PLAYED = hours_from("2025-12-01-00:00", 3)
MODULE = ("-m", "cryptovol_dagster.definitions")
MARKET = "gap_ledger,ticks,key:seconds/bars,key:seconds/features,key:seconds/labels"


@pytest.mark.slow
def test_the_command_line_materializes_a_range_in_one_run(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    hours = hours_from(FIRST_HOUR, 3)
    write_market(settings.storage.raw_dir, hours)
    env = environment(settings, tmp_path)
    done = dagster(
        *("asset", "materialize", "--select", MARKET, "--partition-range", f"{hours[0]}...{hours[-1]}"),
        *MODULE,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Lake(settings.storage.lake_dir).partitions("seconds/labels") == hours
    with open_instance(Path(env["DAGSTER_HOME"])) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS]
        assert instance.get_materialized_partitions(dg.AssetKey(["seconds", "labels"])) == set(hours)


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for a minute's tick of the schedule, and a loaded machine for everything
def test_a_daemon_left_alone_keeps_up_with_a_recorder(tmp_path: Path) -> None:
    """Simulator, recorder and daemon at once: nobody but a backfill of an old hour asks for anything."""
    settings = small_settings(tmp_path, first_hour=PLAYED[0], models=("baseline_zscore", "ewma"))
    ingest = settings.ingest.model_copy(update={"checkpoint_s": 1.0})
    storage = settings.storage.model_copy(update={"flush_s": 1.0})
    settings = settings.model_copy(update={"ingest": ingest, "storage": storage})
    location = tmp_path / "every_minute.py"
    location.write_text(EVERY_MINUTE)
    lake, log = Lake(settings.storage.lake_dir), tmp_path / "daemon.log"
    recorder_log, target = tmp_path / "recorder.log", ("-f", str(location))
    env = environment(settings, tmp_path)
    play = ("--hours", "3.1", "--speed", "900", "--once")
    with receiving() as receiver:
        env["CRYPTOVOL__MONITORING__ALERT_WEBHOOK_URL"] = receiver.url
        with (
            running("dagster-daemon", "run", *target, env=env, log=log) as daemon,
            simulated(*play, env=env) as market,
            running(
                "cryptovol", "ingest", "--url", market.url, "--until-closed", env=env, log=recorder_log
            ) as recorder,
        ):
            assert recorder.wait(180) == 0, recorder_log.read_text()[-3000:]
            wait_until(
                lambda: lake.partitions("seconds/labels") == PLAYED, "every hour's labels", 360, daemon, log
            )
            submitted = dagster(
                *("job", "backfill", "-j", "hourly_pipeline", "--partitions", PLAYED[0], "--noprompt"),
                *target,
                env=env,
            )
            assert submitted.returncode == 0, submitted.stderr[-3000:]
            wait_until(
                lambda: {PLAYED[0], PLAYED[-1]} <= set(lake.partitions("seconds/model_evaluation", "json")),
                "the backfill and a scheduled retrain",
                360,
                daemon,
                log,
            )
            wait_until(lambda: _all_finished(env), "the last run's end", 90, daemon, log)
        assert receiver.bodies == []
    assert [(hour.hour, hour.revision) for hour in RawReader(settings.storage.raw_dir).closed_hours()] == [
        (hour, 0) for hour in PLAYED
    ]
    with open_instance(Path(env["DAGSTER_HOME"])) as instance:
        runs = instance.get_runs()
        sensed = [run for run in runs if run.tags.get("dagster/sensor_name") == "closed_hours"]
        checked = {
            run.tags["dagster/partition"]: len(
                instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            )
            for run in sensed
        }
        raw = instance.get_materialized_partitions(dg.AssetKey("raw_ticks"))
        skipped, failed = _ticks(instance, TickStatus.SKIPPED), _ticks(instance, TickStatus.FAILURE)
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert raw == set(PLAYED)
    assert sorted(run.tags["dagster/partition"] for run in sensed) == PLAYED
    assert min(checked.values()) >= 10
    scheduled = [run for run in runs if run.tags.get("dagster/schedule_name") == "hourly_retrain"]
    assert PLAYED[-1] in {run.tags["dagster/partition"] for run in scheduled}
    # Whoever asks for nothing says why.
    assert not failed
    assert any(reason.startswith("no hour has closed") for reason in skipped["closed_hours"])
    assert all(reason for reasons in skipped.values() for reason in reasons)


def _ticks(instance: dg.DagsterInstance, status: TickStatus) -> dict[str, list[str]]:
    """The reasons (or errors) of every tick of a state, by sensor or schedule."""
    found: dict[str, list[str]] = {}
    for state in instance.all_instigator_state():
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, statuses=[status]):
            found.setdefault(state.instigator_name, []).append(tick.skip_reason or str(tick.error or ""))
    return found


def _all_finished(env: dict[str, str]) -> bool:
    with open_instance(Path(env["DAGSTER_HOME"])) as instance:
        return all(run.is_finished for run in instance.get_runs())

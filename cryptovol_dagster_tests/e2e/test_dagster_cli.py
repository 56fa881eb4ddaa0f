"""Dagster's own command line and daemon on the code location, as real processes."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from cryptovol_dagster.resources.lake import Lake
from cryptovol_dagster_tests.defs.synthetic import FIRST_HOUR, hours_from, small_settings, write_market
from cryptovol_dagster_tests.e2e.processes import dagster, environment, running, wait_until

#: The same code location with a retrain due every minute instead of once an hour: what is tested is that the
#: daemon runs the schedule by itself, not that Dagster can count to sixty.
EVERY_MINUTE = """
from cryptovol_dagster.defs.build import build_defs
from ingestor.settings import load_settings

defs = build_defs(load_settings().settings, retrain_cron="* * * * *")
"""
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
    with dg.DagsterInstance.from_config(env["DAGSTER_HOME"]) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS]
        assert instance.get_materialized_partitions(dg.AssetKey(["seconds", "labels"])) == set(hours)


@pytest.mark.slow
def test_the_daemon_left_alone_runs_closed_hours_a_backfill_and_a_retrain(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, models=("baseline_zscore", "ewma"))
    hours = hours_from(FIRST_HOUR, 3)
    write_market(settings.storage.raw_dir, hours[:1], close=False)
    write_market(settings.storage.raw_dir, hours[1:], seed=11, first_offset=1_440)
    env = environment(settings, tmp_path)
    location = tmp_path / "every_minute.py"
    location.write_text(EVERY_MINUTE)
    lake, log = Lake(settings.storage.lake_dir), tmp_path / "daemon.log"
    target = ("-f", str(location))
    with running("dagster-daemon", "run", *target, env=env, log=log) as daemon:
        wait_until(lambda: lake.partitions("seconds/labels") == hours[1:], "both hours", 90, daemon, log)
        submitted = dagster(
            *("job", "backfill", "-j", "hourly_pipeline", "--partitions", hours[0], "--noprompt"),
            *target,
            env=env,
        )
        assert submitted.returncode == 0, submitted.stderr[-3000:]
        evaluation = "seconds/model_evaluation"
        wait_until(
            lambda: {hours[0], hours[-1]} <= set(lake.partitions(evaluation, "json")),
            "the backfill and a scheduled retrain",
            150,
            daemon,
            log,
        )
        wait_until(lambda: _all_finished(env), "the last run's end", 90, daemon, log)
    with dg.DagsterInstance.from_config(env["DAGSTER_HOME"]) as instance:
        runs = instance.get_runs()
        checked = {
            run.tags["dagster/partition"]: len(
                instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            )
            for run in runs
            if "dagster/sensor_name" in run.tags
        }
        raw = instance.get_materialized_partitions(dg.AssetKey("raw_ticks"))
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert raw == set(hours[1:])
    assert sorted(checked) == hours[1:]
    assert min(checked.values()) >= 10
    scheduled = [run for run in runs if run.tags.get("dagster/schedule_name") == "hourly_retrain"]
    assert [run.tags["dagster/partition"] for run in scheduled] == [hours[-1]]


def _all_finished(env: dict[str, str]) -> bool:
    with dg.DagsterInstance.from_config(env["DAGSTER_HOME"]) as instance:
        return all(run.is_finished for run in instance.get_runs())

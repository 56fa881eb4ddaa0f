"""Each check, run by Dagster, fails on a partition that was damaged for it, and says what and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.live.parity import compare
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.chains.seconds import seconds_checks
from cryptovol_dagster.defs.checks import learning
from cryptovol_dagster.defs.failures import failure_line
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.verbs.runs import RANGE_END, RANGE_START, quiet_dagster
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import PRODUCTS
from ingestor.envelope import TICKS
from ingestor.settings import Settings

Damage = Callable[["Copy", str], None]


@dataclass(frozen=True)
class Copy:
    """A pipeline's data under another folder; files are shared until they are replaced."""

    settings: Settings

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> Copy:
        """Link what there is of raw storage and lake into a folder."""
        for name in ("raw", "lake"):
            if (settings.storage.data_dir / name).is_dir():
                shutil.copytree(settings.storage.data_dir / name, folder / name, copy_function=os.link)
        moved = settings.storage.model_copy(update={"data_dir": folder})
        return cls(settings.model_copy(update={"storage": moved}))

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)

    def table(self, asset: str, key: str, spoil: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        frame = self.lake.read_table(asset, *partition_window(key)).to_pandas()
        self.lake.write_table(asset, key, to_table(spoil(frame)))

    def json(self, asset: str, key: str, spoil: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(self.lake.read_bytes(asset, key, "json"))
        spoil(content)
        self.lake.write_bytes(asset, key, json.dumps(content).encode(), "json")


@pytest.fixture
def copy(pipeline: Pipeline, tmp_path: Path) -> Copy:
    return Copy.of(pipeline.settings, tmp_path)


def without_last_column(asset: str) -> Damage:
    def damage(copy: Copy, key: str) -> None:
        table = copy.lake.read_table(asset, *partition_window(key))
        copy.lake.write_table(asset, key, table.drop_columns([table.column_names[-1]]))

    return damage


def with_text_for(asset: str, column: str) -> Damage:
    def damage(copy: Copy, key: str) -> None:
        table = copy.lake.read_table(asset, *partition_window(key))
        index = table.column_names.index(column)
        text = table[column].cast(pa.string())
        copy.lake.write_table(asset, key, table.set_column(index, column, text))

    return damage


def spoilt(asset: str, spoil: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    return lambda copy, hour: copy.table(asset, hour, spoil)


def changed(asset: str, spoil: Callable[[dict[str, Any]], None]) -> Damage:
    return lambda copy, hour: copy.json(asset, hour, spoil)


def crossed(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[7, "bid"] = frame.loc[7, "ask"] * 2
    return frame


def without_the_eighth(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[np.flatnonzero(np.arange(len(frame)) != 7)]


def in_a_gap(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(in_gap=frame["product"] == PRODUCTS[0])


def known_across_the_loss(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(ret_ok=frame["ret_ok"] | frame["lossy"])


def not_a_number(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[frame.index[frame["valid"]][0], "ln_rv_15"] = float("nan")
    return frame


def unlabelled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(sigma=frame["sigma"].where(frame["product"] != PRODUCTS[1]))


def nothing_recorded(copy: Copy, hour: str) -> None:
    for path in copy.settings.storage.raw_dir.glob(f"*/date={hour[:10]}/hour={hour[11:13]}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def a_file_is_lost(copy: Copy, hour: str) -> None:
    next((copy.settings.storage.raw_dir / TICKS).glob(f"date=*/hour={hour[11:13]}/*-p1-*")).unlink()


def labels_reach_across(plan: dict[str, Any]) -> None:
    plan["split"]["train"]["end_ns"] = plan["split"]["validation"]["start_ns"]


def no_spikes(plan: dict[str, Any]) -> None:
    plan["counts"]["validation"]["positives"] = 0


def without_ewma(report: dict[str, Any]) -> None:
    del report["models"]["ewma"]


def learned_nothing(report: dict[str, Any]) -> None:
    report["verdict"] = "ok"
    for name, result in report["models"].items():
        result["average_precision"] = 0.1 if name in learning.LEARNED else 0.2


def flagged_as_the_test_liked_it(report: dict[str, Any]) -> None:
    report["models"]["xgboost"]["operating_points"]["max_f1"] = {"threshold": 0.0123}


def one_published_row_differs(copy: Copy, key: str) -> None:
    end_ns = partition_window(key)[0] + NS
    live = pd.DataFrame(
        {
            "product_id": PRODUCTS[0],
            "bar_end_ns": [end_ns, end_ns + NS],
            "reason": "ok",
            "row_hash": ["a", "b"],
            "probability": 0.1,
        }
    )
    computed = live.assign(row_hash=["a", "x"], without="")
    body = {"reason": "", "parity": compare(live, computed).to_dict()}
    copy.lake.write_bytes("seconds/live_outcomes", key, json.dumps(body).encode(), "json")


#: check → damage, and what a sentence says about it. The hour is the newest, or the one with a gap.
def surely_below(report: dict[str, Any]) -> None:
    report["verdict"] = "ok"
    for comparison in report["comparisons"]:
        comparison |= {"ap_difference": -0.175, "interval": {"low": -0.3, "high": -0.05}}


POISONS: dict[tuple[str, str], tuple[Damage, str]] = {
    ("gap_ledger", "schema"): (
        without_last_column("gap_ledger"),
        "gap_ledger: expected column in_hour bool, found no such column",
    ),
    ("gap_ledger", "nothing_unaccounted_for"): (
        a_file_is_lost,
        "connection c0ffee, sequence 12960 to 17279: expected 4320 frames with entries, found 2880",
    ),
    ("gap_ledger", "recorded"): (
        nothing_recorded,
        "expected raw storage to contain the hour, or to have closed it empty; found no files of it",
    ),
    ("ticks", "schema"): (
        with_text_for("ticks", "price"),
        "ticks: expected column price double, found string",
    ),
    ("ticks", "ordered_inside_the_hour"): (
        spoilt("ticks", lambda frame: frame.iloc[::-1]),
        f"{PRODUCTS[0]}: expected ascending event times, found 1439 steps back, the first after ",
    ),
    ("ticks", "no_crossed_quotes"): (
        spoilt("ticks", crossed),
        "expected 0 < bid <= ask, found 1 of 2880 ticks without, the first ",
    ),
    ("seconds/bars", "schema"): (
        spoilt("seconds/bars", lambda frame: frame.assign(weather="fine")),
        "seconds/bars: found unexpected columns: weather",
    ),
    ("seconds/bars", "complete_grid"): (
        spoilt("seconds/bars", without_the_eighth),
        f"{PRODUCTS[0]}: expected 720 bars in order, found 719 (1 missing, the first at ",
    ),
    ("seconds/bars", "no_return_across_a_loss"): (
        spoilt("seconds/bars", known_across_the_loss),
        f"{PRODUCTS[0]}: expected no return from ",
    ),
    ("seconds/bars", "gap_share"): (
        spoilt("seconds/bars", in_a_gap),
        f"{PRODUCTS[0]}: expected at most 20% of the bars in a gap, found 100%",
    ),
    ("seconds/features", "schema"): (
        without_last_column("seconds/features"),
        "seconds/features: expected column ",
    ),
    ("seconds/features", "finite_where_valid"): (
        spoilt("seconds/features", not_a_number),
        "ln_rv_15: expected a finite number in every valid row, found 1 of ",
    ),
    ("seconds/labels", "schema"): (without_last_column("seconds/labels"), "seconds/labels: expected column "),
    ("seconds/labels", "labelled_share"): (
        spoilt("seconds/labels", unlabelled),
        f"{PRODUCTS[1]}: expected 50% of rows labelled or more, found 0%",
    ),
    ("seconds/splits", "disjoint_with_purge"): (
        changed("seconds/splits", labels_reach_across),
        "expected validation to start at ",
    ),
    ("seconds/splits", "base_rate"): (
        changed("seconds/splits", no_spikes),
        "validation: expected a share of spikes between 0.5% and 60%, found 0.00%",
    ),
    ("seconds/model_evaluation", "complete"): (
        changed("seconds/model_evaluation", without_ewma),
        "expected model ewma to be measured, found [",
    ),
    ("seconds/model_evaluation", "not_worse_than_baseline"): (
        changed("seconds/model_evaluation", learned_nothing),
        "expected the best learned model to reach the best baseline's average precision 0.200, found 0.100",
    ),
    ("seconds/model_evaluation", "no_leak"): (
        changed("seconds/model_evaluation", flagged_as_the_test_liked_it),
        "operating_point: expected nothing, found: xgboost flags from 0.0123 on; validation rows would have ",
    ),
    ("seconds/champion", "champion_not_worse_than_baseline"): (
        changed("seconds/model_evaluation", surely_below),
        "expected ewma, the champion's kind, not to rank below baseline ",
    ),
    ("seconds/live_outcomes", "live_equals_batch"): (
        one_published_row_differs,
        "to equal the computed one, found 1 of 2 that differ (1 in hash)",
    ),
}


def run_checks(
    settings: Settings,
    selection: dg.AssetSelection,
    first: str,
    last: str,
    *,
    instance: dg.DagsterInstance | None = None,
    **resources: Any,
) -> dg.ExecuteInProcessResult:
    """Run checks without their assets over a range of hours."""
    job = dg.define_asset_job("checks_alone", selection)
    defs = dg.Definitions.merge(build_defs(settings, **resources), dg.Definitions(jobs=[job]))
    with ExitStack() as stack, quiet_dagster():
        instance = instance or stack.enter_context(dg.DagsterInstance.ephemeral())
        return defs.resolve_job_def("checks_alone").execute_in_process(
            instance=instance,
            # Dagster takes no partition key for a job that holds checks alone.
            tags={RANGE_START: first, RANGE_END: last},
            raise_on_error=False,
        )


def evaluated(
    settings: Settings, check: dg.AssetCheckKey, first: str, last: str
) -> tuple[bool, dg.AssetCheckEvaluation]:
    """Run one check alone over a range of hours: whether the run succeeded, and what the check said of it."""
    result = run_checks(settings, dg.AssetSelection.checks(check), first, last)
    (evaluation,) = of_the_range(result)
    return result.success, evaluation


def of_the_range(result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
    """Give what checks came to over the range of a run, without what they came to for each hour."""
    return [one for one in result.get_asset_check_evaluations() if one.partition is None]


@pytest.mark.parametrize("poison", POISONS, ids=": ".join)
def test_a_damaged_partition_is_found(pipeline: Pipeline, copy: Copy, poison: tuple[str, str]) -> None:
    damage, says = POISONS[poison]
    hour = pipeline.hours[1] if poison[1] == "no_return_across_a_loss" else pipeline.hours[-1]
    check = dg.AssetCheckKey(dg.AssetKey.from_user_string(poison[0]), poison[1])
    damage(copy, hour)
    succeeded, evaluation = evaluated(copy.settings, check, hour, hour)
    assert not evaluation.passed
    first_line = (evaluation.description or "").splitlines()[0]
    assert first_line.startswith(f"{hour}: ")
    assert says in first_line
    # What blocks fails its run, and so raises an alert; what warns does neither.
    assert succeeded is (evaluation.severity is dg.AssetCheckSeverity.WARN)


def test_every_check_declared_has_a_damage_it_finds(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    declared = seconds_checks(settings, timescale_spec(settings.timescales.seconds, "seconds"))
    assert {(check.asset.to_user_string(), check.name) for check in declared} == set(POISONS)


def test_in_a_run_over_a_range_the_failing_hours_are_named(pipeline: Pipeline, copy: Copy) -> None:
    first, second, third, _ = pipeline.hours
    for hour in (first, third):
        copy.table("ticks", hour, crossed)
    check = dg.AssetCheckKey(dg.AssetKey("ticks"), "no_crossed_quotes")
    succeeded, evaluation = evaluated(copy.settings, check, first, third)
    assert not succeeded
    assert evaluation.metadata["failing_partitions"].value == [first, third]
    assert evaluation.metadata["partitions"].value == 3
    lines = (evaluation.description or "").splitlines()
    assert [line[: len(first)] for line in lines] == [first, third]
    assert second not in (evaluation.description or "")


def test_of_a_run_over_a_range_dagster_is_told_how_each_check_of_each_hour_ended(
    pipeline: Pipeline, copy: Copy
) -> None:
    """What is planned for an hour and never told, its UI shows as skipped."""
    first, second, third, _ = pipeline.hours
    copy.table("ticks", third, crossed)
    ticks = dg.AssetKey("ticks")
    with dg.DagsterInstance.ephemeral() as instance:
        run_checks(copy.settings, dg.AssetSelection.checks_for_assets(ticks), first, third, instance=instance)
        ended = {
            name: {
                record.partition: record.status.value
                for record in instance.event_log_storage.get_asset_check_execution_history(
                    dg.AssetCheckKey(ticks, name), limit=10
                )
            }
            for name in ("ordered_inside_the_hour", "no_crossed_quotes")
        }
    passed = dict.fromkeys((first, second, third, None), "SUCCEEDED")
    assert ended == {
        "ordered_inside_the_hour": passed,
        "no_crossed_quotes": passed | {third: "FAILED", None: "FAILED"},
    }


BARS_KEY = dg.AssetKey(["seconds", "bars"])
BARS_CHECKS = dg.AssetSelection.checks_for_assets(BARS_KEY)


def without_a_bar_and_in_a_gap(frame: pd.DataFrame) -> pd.DataFrame:
    return in_a_gap(without_the_eighth(frame))


def outcomes(result: dg.ExecuteInProcessResult) -> list[tuple[str, bool, str]]:
    return [(one.check_name, one.passed, one.severity.value) for one in of_the_range(result)]


def test_the_checks_of_an_asset_share_a_step_and_all_of_them_are_stored(
    pipeline: Pipeline, copy: Copy
) -> None:
    hour = pipeline.hours[-1]
    copy.table("seconds/bars", hour, without_a_bar_and_in_a_gap)
    result = run_checks(copy.settings, BARS_CHECKS, hour, hour)
    assert outcomes(result) == [
        ("schema", True, "ERROR"),
        ("complete_grid", False, "ERROR"),
        ("gap_share", False, "WARN"),
        ("no_return_across_a_loss", True, "ERROR"),
    ]
    assert {event.step_key for event in result.all_events if event.is_step_event} == {"seconds__bars_checks"}
    (failure,) = result.get_step_failure_events()
    assert "seconds/bars: complete_grid" in failure_line(failure)


def test_a_check_alone_says_nothing_of_those_it_shares_its_step_with(pipeline: Pipeline, copy: Copy) -> None:
    hour = pipeline.hours[-1]
    copy.table("seconds/bars", hour, without_a_bar_and_in_a_gap)
    alone = dg.AssetSelection.checks(dg.AssetCheckKey(BARS_KEY, "gap_share"))
    result = run_checks(copy.settings, alone, hour, hour)
    assert outcomes(result) == [("gap_share", False, "WARN")]
    assert result.success


def test_a_rule_that_raises_fails_the_step_and_takes_no_other_result_along(
    pipeline: Pipeline, copy: Copy
) -> None:
    first, second = pipeline.hours[-2:]
    copy.table("seconds/bars", first, lambda frame: frame.drop(columns="in_gap"))
    copy.table("seconds/bars", second, without_the_eighth)
    result = run_checks(copy.settings, BARS_CHECKS, first, second)
    assert outcomes(result) == [
        ("schema", False, "ERROR"),
        ("complete_grid", False, "ERROR"),
        ("no_return_across_a_loss", True, "ERROR"),
    ]
    (failure,) = result.get_step_failure_events()
    assert "in_gap" in failure_line(failure)


@dataclass(frozen=True)
class _CountingLake(Lake):
    reads: list[str] = field(default_factory=list)

    def read_table(
        self, asset: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        self.reads.append(asset)
        return super().read_table(asset, start_ns, end_ns, columns)


def test_the_checks_of_an_asset_read_each_of_its_partitions_once(pipeline: Pipeline) -> None:
    lake = _CountingLake(pipeline.lake.root)
    result = run_checks(pipeline.settings, BARS_CHECKS, pipeline.hours[0], pipeline.hours[-1], lake=lake)
    assert result.success
    assert len(outcomes(result)) == 4
    assert lake.reads.count("seconds/bars") == len(pipeline.hours)

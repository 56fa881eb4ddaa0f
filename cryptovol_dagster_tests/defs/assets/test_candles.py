"""`minutes/history` and `minutes/candles`, run by Dagster over days, and what their checks find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from cryptovol_dagster.chains import minutes_specs
from cryptovol_dagster.core.market.candle_rollup import CANDLES
from cryptovol_dagster.core.times import HOUR_NS
from cryptovol_dagster.defs.assets.candles import CANDLES_KEY, candle_assets
from cryptovol_dagster.defs.checks.candles import candle_checks
from cryptovol_dagster.defs.checks.framework import asset_checks
from cryptovol_dagster.defs.unstable import accepted_warnings
from cryptovol_dagster.history.store import DAY_NS, History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.verbs.runs import RANGE_END, RANGE_START, quiet_dagster
from cryptovol_dagster_tests.candle_server import made_candles
from cryptovol_dagster_tests.history.test_days import write_trades
from cryptovol_dagster_tests.synthetic import PRODUCTS, small_settings
from ingestor.settings import Settings

FIRST, SECOND, THIRD = "2024-02-29", "2024-03-01", "2024-03-02"
FIRST_NS, SECOND_NS = (pd.Timestamp(day, tz="UTC").value for day in (FIRST, SECOND))
NAME = "minutes/candles"


@pytest.fixture
def settings(tmp_path: Path, own_dagster_home: None) -> Settings:
    """A day of imported candles of both products, and one of trades for three hours."""
    settings = small_settings(tmp_path)
    history = History(settings.storage.history_dir)
    for number, product in enumerate(PRODUCTS):
        candles = made_candles(FIRST_NS, 1_440, level=100.0, seed=number).assign(product=product)
        history.record(product, candles, source="file:a.csv", now_ns=SECOND_NS)
    write_trades(Lake(settings.storage.lake_dir), [SECOND_NS + hour * HOUR_NS for hour in (-1, 0, 1, 2)])
    return settings


def materialized(settings: Settings, first: str, last: str) -> dg.ExecuteInProcessResult:
    with accepted_warnings():
        days = dg.DailyPartitionsDefinition(start_date=FIRST, end_date="2024-03-10")
        assets = candle_assets(settings, minutes_specs(settings.timescales.minutes)[0], days)
        checks = asset_checks(candle_checks(), days)
    resources = {"lake": Lake(settings.storage.lake_dir), "history": History(settings.storage.history_dir)}
    defs = dg.Definitions(
        assets=assets, asset_checks=checks, resources=resources, executor=dg.in_process_executor
    )
    with dg.DagsterInstance.ephemeral() as instance, quiet_dagster():
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[CANDLES_KEY],
            tags={RANGE_START: first, RANGE_END: last},
            raise_on_error=False,
        )


def said(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {
        one.check_name: one.description or ""
        for one in result.get_asset_check_evaluations()
        if not one.passed
    }


def test_a_range_of_days_joins_what_there_is_and_says_what_there_is_not(settings: Settings) -> None:
    result = materialized(settings, FIRST, THIRD)
    assert result.success
    lake = Lake(settings.storage.lake_dir)
    assert lake.partitions(NAME) == [FIRST, SECOND, THIRD]
    tables = {
        day: lake.read_table(NAME, start, start + DAY_NS)
        for day, start in ((FIRST, FIRST_NS), (SECOND, SECOND_NS), (THIRD, SECOND_NS + DAY_NS))
    }
    assert {day: table.num_rows for day, table in tables.items()} == {FIRST: 2_880, SECOND: 358, THIRD: 0}
    assert all(table.schema.equals(CANDLES) for table in tables.values())
    first = tables[FIRST].to_pandas()
    assert set(first["source"]) == {"history"}
    # The feed's hour before midnight is beside the exchange's candles, which are other ones here.
    assert int(first["n_trades"].notna().sum()) == 2 * 59
    events = {event.partition: event for event in result.asset_materializations_for_node("minutes__candles")}
    told = {name: value.value for name, value in events[SECOND].metadata.items()}
    assert (told["feed_BTC-USD"], told["history_BTC-USD"], told["incomplete_minutes"]) == (179, 0, 2)
    assert events[THIRD].metadata["dagster/partition_row_count"].value == 0
    lines = said(result)
    assert set(lines) == {"holes", "overlap_agrees"}
    assert lines["holes"].splitlines() == [
        f"{day}: {product}: expected at most 5% of the minutes without a candle, found {found} of 1,440)"
        for day, found in ((SECOND, "87.6% (1,261"), (THIRD, "100.0% (1,440"))
        for product in PRODUCTS
    ]
    assert lines["overlap_agrees"].startswith(
        f"{FIRST}: expected the 118 minutes of both sources to agree, found 118 that do not, the worst"
    )


def impossible(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[7, "low"] = frame.loc[7, "high"] + 1
    return frame


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[[3]]])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            impossible,
            "expected 0 < low <= open, close <= high and volume >= 0, found 1 of 2880 candles without, ",
        ),
        (twice, "expected a minute once, found 1 again, the first BTC-USD 2024-02-29 00:03:00+00:00"),
    ],
)
def test_an_impossible_candle_fails_the_run(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    says: str,
) -> None:
    from cryptovol_dagster.defs.assets import candles

    def spoilt(*arguments: object):
        found = read(*arguments)
        return type(found)(**{**found.__dict__, "candles": spoil(found.candles)})

    read = candles.read_candles
    monkeypatch.setattr(candles, "read_candles", spoilt)
    result = materialized(settings, FIRST, FIRST)
    assert not result.success
    assert said(result)["no_impossible_ohlc"].startswith(f"{FIRST}: {says}")

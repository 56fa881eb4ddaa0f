"""Every rule that blocks, on a partition spoilt the way it is there to catch; genuine ones pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.specs import SECONDS, TimescaleSpec
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.checks import learning
from cryptovol_dagster.defs.checks import market as market_rules
from cryptovol_dagster.defs.checks.framework import Rule, Stored
from cryptovol_dagster.defs.checks.market import (
    _complete_grid,
    _finite_where_valid,
    _no_return_across_a_loss,
    _ordered_ticks,
    _unaccounted,
)
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.pipeline import MARKET, Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, MODELS, PRODUCTS, hours_from
from ingestor.envelope import TICKS
from ingestor.settings import Settings

Spoil = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def spec(pipeline: Pipeline) -> TimescaleSpec:
    return timescale_spec(pipeline.settings.timescales.seconds, SECONDS)


@pytest.fixture
def spoilt(pipeline: Pipeline, tmp_path: Path) -> Callable[..., Stored]:
    """Copy the newest partition of a table elsewhere, changed."""

    def make(asset: str, spoil: Spoil) -> Stored:
        key, lake = pipeline.hours[-1], Lake(tmp_path)
        frame = pipeline.lake.read_table(asset, *hour_window(key)).to_pandas()
        lake.write_table(asset, key, to_table(spoil(frame)))
        return Stored(lake, asset, key)

    return make


def _first_value(column: str, value: float) -> Spoil:
    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        row = frame.index[frame["valid"]][0]
        frame.loc[row, column] = value
        return frame

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda frame: frame, None),
        (lambda frame: frame[frame["product"] != PRODUCTS[1]], rf"{PRODUCTS[1]}: expected .* found none"),
        (lambda frame: frame.drop(frame.index[7]), rf"{PRODUCTS[0]}: .* \(1 missing, the first at"),
        (lambda frame: frame.iloc[::-1], "bars in order"),
        (lambda frame: frame.iloc[:0], "found none"),
    ],
)
def test_a_grid_with_a_hole_is_found(spoilt, spec: TimescaleSpec, spoil: Spoil, says: str | None) -> None:
    _expect(_complete_grid(spec, PRODUCTS), spoilt("seconds/bars", spoil), says)


@pytest.mark.parametrize(
    ("name", "value", "is_found"),
    [
        ("ln_rv_15", 0.0, False),
        ("ln_rv_15", np.nan, True),
        ("ln_rv_15", np.inf, True),
        ("ln_trade_rate_15", np.nan, False),  # optional
        ("ln_trade_rate_15", np.inf, True),
    ],
)
def test_a_number_that_is_none_in_a_valid_row_is_found(
    spoilt, spec: TimescaleSpec, name: str, value: float, is_found: bool
) -> None:
    says = f"{name}: expected a finite number in every valid row, found 1 of" if is_found else None
    stored = spoilt("seconds/features", _first_value(name, value))
    _expect(_finite_where_valid(spec), stored, says)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda frame: frame, None),
        (lambda frame: frame.iloc[::-1], "steps back"),
        (lambda frame: frame.assign(event_time_ns=frame["event_time_ns"] + 3_600 * 10**9), "outside"),
    ],
)
def test_ticks_that_go_back_or_outside_the_hour_are_found(spoilt, spoil: Spoil, says: str | None) -> None:
    _expect(_ordered_ticks, spoilt("ticks", spoil), says)


def _gap_hour(pipeline: Pipeline, folder: Path, spoil: Spoil) -> Stored:
    """Copy what the bars of the hour with a gap were made of, and the bars, changed."""
    key, lake = pipeline.hours[1], Lake(folder)
    for asset in ("gap_ledger", "ticks", "next_ticks"):
        for hour in pipeline.hours[:2]:
            lake.write_table(asset, hour, pipeline.lake.read_table(asset, *hour_window(hour)))
    bars = pipeline.lake.read_table("seconds/bars", *hour_window(key)).to_pandas()
    lake.write_table("seconds/bars", key, to_table(spoil(bars)))
    return Stored(lake, "seconds/bars", key)


def _return_within_the_loss(frame: pd.DataFrame) -> pd.DataFrame:
    inside = frame.index[frame["lossy"] & (frame["product"] == PRODUCTS[1])]
    assert len(inside) > 5
    frame.loc[inside[2], "ret_ok"] = True
    return frame


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda frame: frame, None),
        (_return_within_the_loss, rf"{PRODUCTS[1]}: expected no return from .* found 1, the first at"),
    ],
)
def test_a_return_across_a_loss_is_found(
    pipeline: Pipeline, tmp_path: Path, spec: TimescaleSpec, spoil: Spoil, says: str | None
) -> None:
    _expect(_no_return_across_a_loss(spec, PRODUCTS), _gap_hour(pipeline, tmp_path, spoil), says)


def test_bars_that_do_not_reflect_a_ledgered_gap_are_found(
    pipeline: Pipeline, tmp_path: Path, spec: TimescaleSpec
) -> None:
    stored = _gap_hour(pipeline, tmp_path, lambda frame: frame)
    ledger = stored.lake.read_table("gap_ledger", *hour_window(stored.key)).to_pandas()
    ticks = stored.lake.read_table("ticks", *hour_window(stored.key)).to_pandas()
    # A number between two ticks of each product, 2.5 s apart.
    lost = int(ticks["sequence_num"].iloc[300]) + 2
    ledger[["from_sequence", "to_sequence"]] = lost
    stored.lake.write_table("gap_ledger", stored.key, to_table(ledger))
    says = rf"{PRODUCTS[0]}: expected no return from .* \(connection c0ffee lost {lost} to {lost}\)"
    _expect(_no_return_across_a_loss(spec, PRODUCTS), stored, says)


def test_raw_storage_that_lacks_something_is_found_and_stops_the_run(market: Settings) -> None:
    hours, raw_dir = hours_from(FIRST_HOUR, 2), market.storage.raw_dir
    assert _unaccounted(RawStore(raw_dir), hours) == {key: [] for key in hours}
    lost = next((raw_dir / TICKS).glob("date=*/hour=04/*-p1-*"))
    lost.unlink()
    found = _unaccounted(RawStore(raw_dir), hours)
    assert found[hours[0]] == []
    assert "expected 4320 frames with entries, found 2880" in found[hours[1]][0]
    with pytest.raises(runs.RunFailed, match="nothing_unaccounted_for"):
        runs.materialize_range(market, hours[0], hours[1], MARKET)
    assert Lake(market.storage.lake_dir).partitions("seconds/bars") == []


def test_a_rule_that_raises_stops_what_follows_even_if_it_only_warns(
    market: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(stored: Stored) -> list[str]:
        raise OSError(f"cannot read {stored.asset} of {stored.key}")

    monkeypatch.setattr(market_rules, "_gap_share", breaks)
    hour, lake = hours_from(FIRST_HOUR, 1)[0], Lake(market.storage.lake_dir)
    with pytest.raises(runs.RunFailed, match=f"cannot read seconds/bars of {hour}"):
        runs.materialize_range(market, hour, hour, MARKET)
    assert lake.partitions("seconds/bars") == [hour]
    assert lake.partitions("seconds/features") == []


def test_a_split_closer_than_purge_and_embargo_is_found(
    pipeline: Pipeline, tmp_path: Path, spec: TimescaleSpec
) -> None:
    key, lake = pipeline.hours[-1], Lake(tmp_path)
    plan = json.loads(pipeline.lake.read_bytes("seconds/splits", key, "json"))
    rule, stored = learning._disjoint(spec), Stored(lake, "seconds/splits", key)
    lake.write_bytes("seconds/splits", key, json.dumps(plan).encode(), "json")
    _expect(rule, stored, None)
    plan["split"]["embargo_ns"] = 0
    plan["split"]["validation"]["end_ns"] += spec.bar_ns
    lake.write_bytes("seconds/splits", key, json.dumps(plan).encode(), "json")
    _expect(rule, stored, "expected test to start at")
    plan["split"]["train"]["end_ns"] += spec.bar_ns
    lake.write_bytes("seconds/splits", key, json.dumps(plan).encode(), "json")
    _expect(rule, stored, "expected validation to start at")


def test_an_evaluation_that_lacks_a_model_or_is_of_other_rows_is_found(
    pipeline: Pipeline, spec: TimescaleSpec, tmp_path: Path
) -> None:
    key, lake = pipeline.hours[-1], Lake(tmp_path)
    lake.write_bytes("seconds/splits", key, pipeline.lake.read_bytes("seconds/splits", key, "json"), "json")
    report = json.loads(pipeline.lake.read_bytes("seconds/model_evaluation", key, "json"))
    rule = learning._complete_evaluation(spec, MODELS)
    stored = Stored(lake, "seconds/model_evaluation", key)
    lake.write_bytes(stored.asset, key, json.dumps(report).encode(), "json")
    _expect(rule, stored, None)
    _expect(learning._complete_evaluation(spec, [*MODELS, "oracle"]), stored, "expected model oracle")
    lacking = {name: value for name, value in report.items() if name != "sufficiency"}
    lake.write_bytes(stored.asset, key, json.dumps(lacking).encode(), "json")
    _expect(rule, stored, "found an evaluation of another form: Object missing required field `sufficiency`")
    report["data"]["hash"] = "other"
    lake.write_bytes(stored.asset, key, json.dumps(report).encode(), "json")
    _expect(rule, stored, "found other: splits were materialized again later")


def _expect(rule: Rule, stored: Stored, says: str | None) -> None:
    found = rule(stored)
    if says is None:
        assert found == []
    else:
        assert found
        assert pd.Series(found).str.contains(says).any(), found

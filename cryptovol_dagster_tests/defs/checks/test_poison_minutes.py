"""Each check of the minutes, from candles to labels, fails on a day that was damaged for it.

What is trained from labels on is made by the factories of the seconds, and damaged there (`test_poison.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from cryptovol_dagster.chains import minutes_specs
from cryptovol_dagster.defs.chains.minutes import minutes_checks
from cryptovol_dagster.defs.checks.candles import candle_checks
from cryptovol_dagster.defs.checks.framework import Check
from cryptovol_dagster.defs.checks.learning import chain_checks
from cryptovol_dagster.defs.checks.market import grid_checks
from cryptovol_dagster.history.store import History
from cryptovol_dagster.verbs import runs
from cryptovol_dagster_tests.defs.chains.test_minutes import DAYS, FIRST_NS, market_candles, minutes_settings
from cryptovol_dagster_tests.defs.checks.test_poison import (
    Copy,
    Damage,
    changed,
    evaluated,
    in_a_gap,
    spoilt,
    unlabelled,
    with_text_for,
    without_last_column,
    without_the_eighth,
)
from cryptovol_dagster_tests.synthetic import PRODUCTS
from ingestor.settings import Settings

CANDLES, BARS, FEATURES, LABELS = "minutes/candles", "minutes/bars", "minutes/features", "minutes_h5/labels"
FIRST, LAST = DAYS[0], DAYS[1]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, own_dagster_home: None) -> Settings:
    """Two days from candles to labels, on which every check passes."""
    settings = minutes_settings(tmp_path_factory.mktemp("minutes"))
    for number, product in enumerate(PRODUCTS):
        candles = market_candles(number).iloc[: 2 * 1_440].assign(product=product)
        History(settings.storage.history_dir).record(product, candles, source="file:a.csv", now_ns=FIRST_NS)
    summary = runs.materialize_range(settings, FIRST, LAST, [CANDLES, BARS, FEATURES, LABELS])
    assert len(summary.checks) == len(POISONS_OF_CHECKS)
    assert summary.checks_failed == ()
    return settings


def impossible(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[7, "low"] = frame.loc[7, "high"] + 1
    return frame


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[[3]]])


def without_two_hours(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[(frame["product"] != PRODUCTS[0]) | (frame["bar_start"].dt.hour >= 2)]


def sources_differ(summary: dict[str, Any]) -> None:
    summary["overlap"] = {"compared": 60, "agreeing": 59, "worst": ["close 1 in the history, 2 from trades"]}


def infinite(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[frame.index[frame["valid"]][0], "ln_gk_5"] = float("inf")
    return frame


#: (check, what is wrong) → damage, and what a sentence says about it.
POISONS: dict[tuple[str, str, str], tuple[Damage, str]] = {
    (CANDLES, "schema", "a column less"): (
        without_last_column(CANDLES),
        "minutes/candles: expected column source dictionary<values=string, indices=int8, ordered=0>, found "
        "no such column",
    ),
    (CANDLES, "schema", "text"): (
        with_text_for(CANDLES, "close"),
        "minutes/candles: expected column close double, found string",
    ),
    (CANDLES, "no_impossible_ohlc", "low above high"): (
        spoilt(CANDLES, impossible),
        "expected 0 < low <= open, close <= high and volume >= 0, found 1 of 2880 candles without, the first "
        "BTC-USD 2024-03-02 00:07:00+00:00: open ",
    ),
    (CANDLES, "no_impossible_ohlc", "twice"): (
        spoilt(CANDLES, twice),
        "expected a minute once, found 1 again, the first BTC-USD 2024-03-02 00:03:00+00:00",
    ),
    (CANDLES, "overlap_agrees", "another close"): (
        changed(CANDLES, sources_differ),
        "expected the 60 minutes of both sources to agree, found 1 that do not, the worst: close 1",
    ),
    (CANDLES, "holes", "two hours"): (
        spoilt(CANDLES, without_two_hours),
        "BTC-USD: expected at most 5% of the minutes without a candle, found 8.3% (120 of 1,440)",
    ),
    (BARS, "schema", "a column more"): (
        spoilt(BARS, lambda frame: frame.assign(weather="fine")),
        "minutes/bars: found unexpected columns: weather",
    ),
    (BARS, "complete_grid", "a bar less"): (
        spoilt(BARS, without_the_eighth),
        "BTC-USD: expected 1440 bars in order, found 1439 (1 missing, the first at 2024-03-02T00:07:00Z",
    ),
    (BARS, "gap_share", "all of them"): (
        spoilt(BARS, in_a_gap),
        "BTC-USD: expected at most 20% of the bars in a gap, found 100%",
    ),
    (FEATURES, "schema", "a column less"): (
        without_last_column(FEATURES),
        "minutes/features: expected column ",
    ),
    (FEATURES, "finite_where_valid", "infinite"): (
        spoilt(FEATURES, infinite),
        "ln_gk_5: expected a finite number in every valid row, found 1 of ",
    ),
    (LABELS, "schema", "a column less"): (without_last_column(LABELS), "minutes_h5/labels: expected column "),
    (LABELS, "labelled_share", "one product"): (
        spoilt(LABELS, unlabelled),
        "ETH-USD: expected 50% of rows labelled or more, found 0%",
    ),
}
POISONS_OF_CHECKS = {poison[:2] for poison in POISONS}


@pytest.mark.parametrize("poison", POISONS, ids=": ".join)
def test_a_damaged_day_is_found(market: Settings, tmp_path: Path, poison: tuple[str, str, str]) -> None:
    damage, says = POISONS[poison]
    copy = Copy.of(market, tmp_path)
    damage(copy, LAST)
    check = dg.AssetCheckKey(dg.AssetKey.from_user_string(poison[0]), poison[1])
    succeeded, evaluation = evaluated(copy.settings, check, LAST, LAST)
    assert not evaluation.passed
    first_line = (evaluation.description or "").splitlines()[0]
    assert first_line.startswith(f"{LAST}: ")
    assert says in first_line
    assert succeeded is (evaluation.severity is dg.AssetCheckSeverity.WARN)


def test_every_check_of_candles_bars_features_and_labels_has_a_damage_it_finds(market: Settings) -> None:
    specs, enabled = minutes_specs(market.timescales.minutes), market.timescales.minutes.models.enabled

    def keys(checks: list[Check]) -> set[tuple[str, str]]:
        return {(check.asset.to_user_string(), check.name) for check in checks}

    own = keys([*candle_checks(), *grid_checks(specs[0], PRODUCTS)])
    chains = keys([check for spec in specs for check in chain_checks(spec, enabled)])
    assert own | {key for key in chains if key[0] == LABELS} == POISONS_OF_CHECKS
    assert keys(minutes_checks(market, specs)) == own | chains

"""Drift of the volatility to be told, without any model: what it is compared with and held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.drift.limits import MIN_PAIRS, DriftLimits
from cryptovol_dagster.core.learning.labels import label_hash
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.monitoring import performance
from cryptovol_dagster.monitoring.drift import DriftWindow
from cryptovol_dagster.monitoring.performance import LN_SIGMA, SCORE, OutcomeDrift
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, PRODUCTS, hours_from, small_settings

SPEC = timescale_spec(small_settings(Path()).timescales.seconds, "seconds")
HOURS = hours_from(FIRST_HOUR, MIN_PAIRS + 2)
LIMITS = DriftLimits(distance=1.2, share=0.3)
WHY = "nothing was decided yet"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def _label(
    lake: Lake,
    key: str,
    *,
    factor: float = 1.0,
    rows: int = 200,
    unknown: int = 0,
    products: tuple[str, ...] = PRODUCTS,
    version: str = label_hash(SPEC),
) -> None:
    random = np.random.default_rng(HOURS.index(key))
    count = rows * len(products)
    frame = pd.DataFrame(
        {
            "product": pd.Categorical(np.repeat(products, rows)),
            "sigma": 1e-5 * factor * np.exp(0.1 * random.normal(size=count)),
            "reason": np.zeros(count, np.int8),
        }
    )
    frame.loc[: unknown - 1, ["sigma", "reason"]] = [np.nan, 1]
    lake.write_table("seconds/labels", key, to_table(frame), version=version)


def _drift(lake: Lake, key: str, reference_hours: int = 1) -> OutcomeDrift:
    window = DriftWindow(reference_hours, MIN_PAIRS + 5, LIMITS)
    return performance.outcome_drift(lake, SPEC, key, window, WHY)


def test_volatility_that_moved_is_far_and_what_has_no_distance_says_why(lake: Lake) -> None:
    _label(lake, HOURS[0])
    _label(lake, HOURS[1])
    _label(lake, HOURS[2], factor=3.0)
    calm, moved = _drift(lake, HOURS[1]), _drift(lake, HOURS[2], 2)
    assert calm.columns[LN_SIGMA] is not None
    assert moved.columns[LN_SIGMA] is not None
    assert calm.columns[LN_SIGMA] < 0.5 < 1.2 < moved.columns[LN_SIGMA]
    assert (calm.over, moved.over) == ((), (LN_SIGMA,))
    assert (moved.columns[SCORE], moved.without) == (None, {SCORE: WHY})
    assert moved.reference_hours == tuple(HOURS[:2])
    assert moved.limits.basis == "uncalibrated: no past pairs"
    _label(lake, HOURS[3], products=PRODUCTS[:1])
    _label(lake, HOURS[4], products=PRODUCTS[1:])
    alone = _drift(lake, HOURS[4])
    assert alone.without[LN_SIGMA] == f"no product of {HOURS[4]} has rows in the hours before"
    nothing = _drift(lake, HOURS[6])
    assert nothing.without[LN_SIGMA] == f"no product has 100 rows in {HOURS[6]}"
    assert _drift(lake, HOURS[0]).without[LN_SIGMA].startswith("0 of the 1 hours before have valid rows")


def test_rows_without_a_label_and_hours_of_other_labels_do_not_count(lake: Lake) -> None:
    _label(lake, HOURS[0], factor=3.0, version="other")
    _label(lake, HOURS[1], unknown=150)  # 50 of the first product are left
    _label(lake, HOURS[2])
    found = _drift(lake, HOURS[2], 2)
    assert found.reference_hours == (HOURS[1],)
    assert list(found.products) == [PRODUCTS[1]]


def test_past_partitions_calibrate_what_they_know_of(lake: Lake) -> None:
    for key in HOURS:
        _label(lake, key)
    for key in HOURS[1:-1]:
        found = _drift(lake, key)
        window = DriftWindow(1, MIN_PAIRS + 5, LIMITS)
        body = {"schema_version": performance.SCHEMA_VERSION, "as_of": key}
        body |= performance.drift_body(SPEC, window, found)
        lake.write_bytes("seconds/performance", key, performance.to_bytes(body), "json")
    newest = _drift(lake, HOURS[-1])
    assert newest.limits.basis == f"calibrated on 30 past pairs, {HOURS[1]} … {HOURS[-2]}"
    limit = newest.limits.columns[LN_SIGMA]
    assert limit is not None
    assert 0.0 < limit < 1.0
    # Nobody ever scored anything: scores have no limit, and that is no fault of the labels.
    assert newest.limits.columns[SCORE] is None
    _label(lake, HOURS[-1], factor=3.0)
    assert _drift(lake, HOURS[-1]).over == (LN_SIGMA,)
    assert not _drift(lake, HOURS[5]).limits.calibrated

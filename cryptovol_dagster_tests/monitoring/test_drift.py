"""Which rows an hour is compared with, and what is stored of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.chains import timescale_spec
from cryptovol_dagster.core.drift.limits import MIN_PAIRS, DriftLimits
from cryptovol_dagster.core.features.catalogue import feature_hash, feature_names, market_feature_names
from cryptovol_dagster.lake.files import Lake, LakeError
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.drift import DriftError, DriftScores, DriftWindow
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, PRODUCTS, hours_from, small_settings

SPEC = timescale_spec(small_settings(Path()).timescales.seconds, "seconds")
HOURS = hours_from(FIRST_HOUR, MIN_PAIRS + 5)
LIMITS = DriftLimits(distance=0.5, share=0.3)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def _write(
    lake: Lake,
    key: str,
    *,
    shift: float = 0.0,
    rows: int = 300,
    products: tuple[str, ...] = PRODUCTS,
    version: str = feature_hash(SPEC),
) -> None:
    random = np.random.default_rng(HOURS.index(key))
    names = list(feature_names(SPEC))
    frame = pd.DataFrame(random.normal(size=(rows * len(products), len(names))) + shift, columns=names)
    frame["product"] = pd.Categorical(np.repeat(products, rows))
    frame["valid"] = True
    frame["ret_1"] = np.nan
    lake.write_table("seconds/features", key, to_table(frame), version=version)


def _score(
    lake: Lake, key: str, reference_hours: int = 4, calibration_hours: int = MIN_PAIRS + 2
) -> DriftScores:
    return drift.score_hour(lake, SPEC, key, DriftWindow(reference_hours, calibration_hours, LIMITS))


def _store(lake: Lake, key: str, **more: object) -> dict[str, Any]:
    """Score an hour against one before it and store that as the asset does."""
    found = _score(lake, key, 1).to_dict() | more
    lake.write_bytes("seconds/drift_scores", key, json.dumps(found, allow_nan=False).encode(), "json")
    return found


def test_an_hour_like_those_before_is_not_over_the_limit_and_one_that_moved_is(lake: Lake) -> None:
    for key in HOURS[:4]:
        _write(lake, key)
    _write(lake, HOURS[4], shift=2.0)
    calm, moved = _score(lake, HOURS[3]), _score(lake, HOURS[4])
    assert (calm.status, calm.drift.over_limit) == ("scored", False)
    assert (moved.status, moved.drift.over_limit, moved.drift.share_over) == ("scored", True, 1.0)
    stored = json.loads(json.dumps(moved.to_dict(), allow_nan=False))
    assert stored["reference"] == {
        "wanted": 4,
        "hours": 4,
        "first": HOURS[0],
        "last": HOURS[3],
        "rows": 4 * 60 * len(PRODUCTS),
    }
    assert (stored["rows"], stored["calibrated"], stored["limit"]) == (600, False, 0.3)
    assert stored["calibration"]["told"] == "uncalibrated: no past pairs"
    assert set(stored["columns"]) == set(stored["limits"]) == set(market_feature_names(SPEC))
    assert set(feature_names(SPEC)) - set(stored["columns"]) == {"sin_day", "cos_day", "sin_week", "cos_week"}
    assert stored["columns"]["ret_1"] is None
    lake.write_bytes("seconds/drift_scores", HOURS[4], json.dumps(stored).encode(), "json")
    assert drift.read_scores(lake, SPEC, HOURS[4]) == stored


def test_thirty_past_hours_calibrate_the_next_and_no_later_one_touches_it(lake: Lake) -> None:
    for key in HOURS[: MIN_PAIRS + 3]:
        _write(lake, key, rows=100)
    past = [_store(lake, key) for key in HOURS[1 : MIN_PAIRS + 1]]
    assert [found["calibration"]["pairs"] for found in past] == list(range(MIN_PAIRS))
    assert not any(found["calibrated"] for found in past)
    newest = HOURS[MIN_PAIRS + 1]
    found = _store(lake, newest)
    assert found["calibration"]["told"] == f"calibrated on 30 past pairs, {HOURS[1]} … {HOURS[MIN_PAIRS]}"
    worst = {name: [one["columns"][name] for one in past] for name in market_feature_names(SPEC)}
    expected = {name: max(known) if None not in known else None for name, known in worst.items()}
    assert found["limits"] == expected
    assert found["limits"]["ret_1"] is None
    # An hour that is far out comes later; whether it is there or not, earlier ones are what they were.
    _write(lake, HOURS[MIN_PAIRS + 2], rows=100, shift=5.0)
    later = _store(lake, HOURS[MIN_PAIRS + 2])
    assert (later["over_limit"], later["share_over"]) == (True, 1.0)
    assert _store(lake, newest) == found
    # Nor is it judged by itself: scored again it is as far out as it was.
    assert _store(lake, HOURS[MIN_PAIRS + 2]) == later


def test_numbers_that_an_earlier_build_stored_calibrate_without_their_calendar(lake: Lake) -> None:
    for key in HOURS[: MIN_PAIRS + 2]:
        _write(lake, key, rows=100)
    for key in HOURS[1 : MIN_PAIRS + 1]:
        found = _score(lake, key, 1).to_dict()
        _store(lake, key, columns={**found["columns"], "sin_day": 1.9}, share_over=1.0, over_limit=True)
    newest = _score(lake, HOURS[MIN_PAIRS + 1], 1)
    assert (newest.limits.calibrated, newest.limits.pairs) == (True, MIN_PAIRS)
    assert "sin_day" not in newest.limits.columns
    assert newest.limits.share < 1.0


@pytest.mark.parametrize(
    "unlike",
    [
        {"version": "other"},
        {"reference": {"wanted": 2}},
        {"products": {PRODUCTS[0]: {}}},
        {"columns": {"ret_1": None}},
        {"schema_version": 1},
    ],
)
def test_hours_unlike_this_one_calibrate_nothing(lake: Lake, unlike: dict[str, object]) -> None:
    for key in HOURS[:3]:
        _write(lake, key, rows=100)
    _store(lake, HOURS[1])
    assert _score(lake, HOURS[2], 1).limits.pairs == 1
    assert _score(lake, HOURS[2], 1, calibration_hours=1).limits.first == HOURS[1]
    _store(lake, HOURS[1], **unlike)
    assert _score(lake, HOURS[2], 1).limits.pairs == 0


def test_a_past_hour_that_cannot_be_read_is_named(lake: Lake) -> None:
    for key in HOURS[:2]:
        _write(lake, key, rows=100)
    lake.write_bytes("seconds/drift_scores", HOURS[0], b"{", "json")
    with pytest.raises(DriftError, match=f"seconds/drift_scores of {HOURS[0]} cannot be read"):
        _score(lake, HOURS[1], 1)


def test_too_few_hours_before_or_rows_are_said(lake: Lake) -> None:
    for key in HOURS[:5]:
        _write(lake, key)
    first = _score(lake, HOURS[0])
    assert (first.status, first.reason) == (
        "no_reference",
        "0 of the 4 hours before have valid rows, 1 are needed",
    )
    assert (first.drift.share_over, first.drift.over_limit) == (None, False)
    assert _score(lake, HOURS[1], 24).reason == "1 of the 24 hours before have valid rows, 6 are needed"
    _write(lake, HOURS[4], rows=99)
    empty = _score(lake, HOURS[4])
    assert (empty.status, empty.reason) == ("no_data", "no product has 100 valid rows")


def test_a_product_without_reference_is_left_out_and_one_without_any_is_said(lake: Lake) -> None:
    _write(lake, HOURS[0], products=PRODUCTS[:1])
    _write(lake, HOURS[1])
    assert list(_score(lake, HOURS[1]).products) == [PRODUCTS[0]]
    _write(lake, HOURS[1], products=PRODUCTS[1:])
    alone = _score(lake, HOURS[1])
    assert alone.status == "no_reference"
    assert alone.reason == "none of ETH-USD has valid rows in the 4 hours before"


def test_the_sample_beside_an_hour_is_what_its_features_give_and_no_longer_counts_once_they_change(
    lake: Lake,
) -> None:
    _write(lake, HOURS[0])
    from_features = drift.read_sample(lake, SPEC, HOURS[0])
    _score(lake, HOURS[0])
    kept = drift.read_sample(lake, SPEC, HOURS[0])
    assert from_features is not None
    assert kept is not None
    assert kept.equals(from_features)
    assert kept.num_rows == drift.SAMPLE_ROWS * len(PRODUCTS)
    sample = lake.path("seconds/drift_scores_sample", HOURS[0], "arrow")
    made = lake.path("seconds/features", HOURS[0]).stat().st_mtime_ns
    sample.write_bytes(b"no Arrow file")
    with pytest.raises(DriftError, match=rf"seconds/drift_scores_sample of {HOURS[0]} cannot be read"):
        drift.read_sample(lake, SPEC, HOURS[0])
    os.utime(sample, ns=(made - 1, made - 1))
    again = drift.read_sample(lake, SPEC, HOURS[0])
    assert again is not None
    assert again.equals(from_features)


def test_hours_of_other_features_are_no_reference_and_are_not_scored(lake: Lake) -> None:
    _write(lake, HOURS[0], version="other")
    _write(lake, HOURS[1])
    assert drift.read_sample(lake, SPEC, HOURS[0]) is None
    assert _score(lake, HOURS[1]).status == "no_reference"
    with pytest.raises(DriftError, match=f"seconds/features of {HOURS[0]} was computed with another config"):
        _score(lake, HOURS[0])


def test_what_cannot_be_read_is_named(lake: Lake) -> None:
    with pytest.raises(LakeError, match="seconds/features lacks partition"):
        _score(lake, HOURS[0])
    with pytest.raises(LakeError, match=f"seconds/features has no partition in {HOURS[0]} … {HOURS[2]}"):
        drift.valid_rows(lake, SPEC, HOURS[:3])
    assert drift.read_scores(lake, SPEC, HOURS[0]) is None
    for content, says in ((b'{"schema_version": 0}', "of another schema version"), (b"{", "cannot be read")):
        lake.write_bytes("seconds/drift_scores", HOURS[0], content, "json")
        with pytest.raises(DriftError, match=says):
            drift.read_scores(lake, SPEC, HOURS[0])

"""What Evidently is never shown, and what its reports say of themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cryptovol_dagster.core.drift.limits import DriftLimits, LimitsInForce, limits_in_force
from cryptovol_dagster.monitoring import evidently as evidently_module
from cryptovol_dagster.monitoring.evidently import (
    DRIFT,
    Criteria,
    EvidentlyError,
    EvidentlyReport,
    Sampling,
    Side,
    comparison_report,
    data_quality_report,
    measured_on,
)

HOUR = "2026-04-04-03:00"
SCHEMA = pa.schema([("same", pa.float64()), ("moved", pa.float64()), ("none", pa.float64())])
FIXED = limits_in_force([], SCHEMA.names, DriftLimits(distance=0.5, share=0.3))
TYPED = pa.schema(
    [
        ("at", pa.timestamp("ns", tz="UTC")),
        ("product", pa.dictionary(pa.int8(), pa.string())),
        ("stale", pa.bool_()),
        ("count", pa.int64()),
        ("value", pa.float64()),
        ("stuck", pa.float64()),
    ]
)


def _frame(rows: int, shift: float = 0.0, **columns: object) -> pd.DataFrame:
    random = np.random.default_rng(rows)
    numbers = {"same": random.normal(size=rows), "moved": random.normal(size=rows) + shift, "none": 1.0}
    return pd.DataFrame({**numbers, **columns})


def _compare(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    schema: pa.Schema = SCHEMA,
    limits: LimitsInForce = FIXED,
    **more: Any,
) -> EvidentlyReport:
    return comparison_report(
        DRIFT,
        HOUR,
        Side("reference", "hours before", reference),
        Side("recent", HOUR, current),
        schema,
        Criteria(limits, **more),
        Sampling(max_rows=500, seed=1),
    )


@pytest.mark.parametrize(
    ("reference", "current", "says"),
    [
        (_frame(9).drop(columns="moved"), _frame(9), "reference (hours before) lacks moved: expected 3 decl"),
        (_frame(9), _frame(9, more=1.0, other=2), f"recent ({HOUR}) has more, other besides: expected 3"),
        (_frame(9), _frame(9).rename(columns={"moved": "gone"}), "lacks moved and has gone besides"),
        (_frame(9), _frame(9).iloc[:0], f"drift_report: recent ({HOUR}) has no rows"),
        (_frame(9, none="x"), _frame(9), "none: expected number (double), found text (object)"),
        (_frame(9), _frame(9, none=True), "none: expected number (double), found flag (bool)"),
        (
            _frame(9, same=np.nan, none=None),
            _frame(9, moved=np.nan),
            "no column has a value in both reference and recent",
        ),
    ],
)
def test_frames_that_evidently_would_stumble_over_are_refused_saying_what_was_expected(
    reference: pd.DataFrame, current: pd.DataFrame, says: str
) -> None:
    with pytest.raises(EvidentlyError) as refused:
        _compare(reference, current)
    assert says in str(refused.value)


def test_a_comparison_takes_numbers_only() -> None:
    with pytest.raises(EvidentlyError, match="flag is declared as bool, expected a number"):
        _compare(
            pd.DataFrame({"flag": [True]}), pd.DataFrame({"flag": [True]}), pa.schema([("flag", pa.bool_())])
        )


def test_a_comparison_is_sampled_names_what_it_left_out_and_calls_its_verdict_uncalibrated() -> None:
    current = _frame(300, 3.0, none=pd.array([None] * 300, dtype="Int64"))
    current.loc[3, "same"] = np.inf
    report = _compare(_frame(900), current)
    summary = report.summary
    assert report.rows == {"reference": 500, "recent": 300}
    assert summary["left_out"] == {"none": "no value in recent"}
    assert list(summary["strongest"]) == ["moved", "same"]
    assert summary["strongest"]["moved"] > 1.0 > 0.5 > summary["strongest"]["same"]
    assert (summary["share_over"], summary["calibrated"]) == (0.5, False)
    told = "1 of 2 columns over their limits, over the limit of 30% (uncalibrated: no past pairs)"
    assert summary["verdict"] == told
    assert (summary["over"], summary["over_limit"], summary["limits"]) == (
        ["moved"],
        True,
        {"moved": 0.5, "same": 0.5},
    )
    said = f"reference: 500 rows sampled from 900, hours before; recent: 300 rows, {HOUR}"
    assert measured_on(summary) == said
    page = report.html.decode()
    for text in (said, "not an alarm", told, "Left out: none (no value in recent)", f"as of {HOUR} UTC"):
        assert text in page
    stored = json.loads(report.json)
    assert stored["cryptovol"] == summary
    scores = {m["config"]["column"]: m["value"] for m in stored["metrics"] if "column" in m["config"]}
    assert scores == summary["strongest"]
    assert "threshold is 0.3" in page
    assert "0.30000000000000004" not in page


def test_calibrated_limits_hold_column_by_column_and_page_and_summary_say_so() -> None:
    columns = ("same", "moved", "none", "score", "ln_sigma", "sin_day", "cos_day")
    schema = pa.schema([(name, pa.float64()) for name in columns])
    limits = LimitsInForce({"same": 0.1, "moved": 0.9, "none": None}, 0.4, True, 44, "first", "last")
    beside = LimitsInForce({"score": 0.3, "ln_sigma": 0.3}, 0.3, False, 5, "first", "last")
    more = {"score": 0.5, "ln_sigma": np.nan, "sin_day": 0.5, "cos_day": 0.5}
    # As stored: of the worst product, so not what the rows below would give.
    measured = {"same": 0.2, "moved": 0.8, "none": 1.9, "score": 0.4, "ln_sigma": None}
    report = _compare(
        _frame(300, **more),
        _frame(200, **more),
        schema,
        limits,
        measured=measured,
        beside=beside,
        without={"sin_day": "calendar", "cos_day": "calendar"},
    )
    summary = report.summary
    assert summary["strongest"] == {"none": 1.9, "moved": 0.8, "score": 0.4, "same": 0.2}
    # One of the two that have a limit; what stands beside is not counted.
    assert (summary["share_over"], summary["over"], summary["over_limit"]) == (0.5, ["same"], True)
    told = (
        "1 of 2 columns over their limits, over the limit of 40% (calibrated on 44 past pairs, first … last)"
    )
    assert summary["verdict"] == told
    assert summary["beside"] == {
        "score": {
            "distance": 0.4,
            "limit": 0.3,
            "over": True,
            "told": "uncalibrated: 5 of the 30 past pairs needed",
        }
    }
    assert summary["left_out"] == {
        "ln_sigma": "no value in reference and recent",
        "sin_day": "calendar",
        "cos_day": "calendar",
    }
    page = report.html.decode()
    assert told in page
    # Header and body count the same columns: those that are judged.
    assert (summary["columns"], summary["not_counted"]) == (2, ["none", "score"])
    assert "Shown below but not counted: none, score" in page
    assert "Left out: ln_sigma (no value in reference and recent); sin_day, cos_day (calendar)" in page
    (drifted,) = (m for m in json.loads(report.json)["metrics"] if "drift_share" in m["config"])
    assert drifted["value"] == {"count": 1.0, "share": 0.5}
    assert "Drift is detected for 50.0% of columns (1 out of 2)" in page
    assert "95th percentile of its own distance" in page
    by_column = {
        m["config"]["column"]: (m["value"], m["config"]["threshold"])
        for m in json.loads(report.json)["metrics"]
        if "column" in m["config"]
    }
    assert by_column == {"same": (0.2, 0.1), "moved": (0.8, 0.9), "none": (1.9, 2.0), "score": (0.4, 0.3)}
    with pytest.raises(EvidentlyError, match="no column has a distance between reference and recent"):
        _compare(_frame(9), _frame(9), measured={})


@pytest.mark.parametrize(
    ("limit", "share", "is_over", "says"),
    [
        (0.3, 0.25, False, 0.3),
        (0.3, 0.5, True, 0.3),
        (0.3, 0.3, False, 0.301),
        (25 / 87, 25 / 87, False, 0.288),
        (25 / 87, 26 / 87, True, 0.287),
        (1.0, 1.0, True, 1.0),
        (0.3, None, False, 0.3),
    ],
)
def test_the_limit_on_evidentlys_page_reads_well_and_says_what_we_say(
    limit: float, share: float | None, is_over: bool, says: float
) -> None:
    assert evidently_module._shown_limit(limit, share, is_over) == says


def test_data_quality_counts_rows_that_are_twice_constant_missing_and_infinite() -> None:
    rows = 40
    frame = pd.DataFrame(
        {
            "at": pd.date_range("2026-04-04", periods=rows, freq="s", tz="UTC"),
            "product": pd.Categorical(["BTC-USD"] * rows),
            "stale": False,
            "count": pd.array([1, None] * (rows // 2), dtype="Int64"),
            "value": np.linspace(0, 1, rows),
            "stuck": 2.0,
        }
    )
    frame.loc[rows - 1, "at"] = frame.loc[0, "at"]
    frame.loc[5, "value"] = np.inf
    side = Side("the hour", HOUR, frame)
    report = data_quality_report(HOUR, side, TYPED, ("at", "product"), Sampling(max_rows=30, seed=1))
    summary = report.summary
    assert report.rows == {"the hour": 30}
    assert summary["duplicate_rows"] == 1
    assert summary["constant"] == ["stuck"]
    assert summary["infinite"] == ["value"]
    assert summary["missing_share"] == {"count": 0.5}
    assert summary["verdict"] == "1 duplicate rows, 1 constant columns, 1 columns with infinite values"
    assert b"1 duplicate rows" in report.html
    text = Side("the hour", HOUR, frame.astype({"value": object}))
    with pytest.raises(EvidentlyError, match=r"value: expected number \(double\), found text \(object\)"):
        data_quality_report(HOUR, text, TYPED, ("at", "product"), Sampling(max_rows=30, seed=1))

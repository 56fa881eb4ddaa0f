"""Files of other versions, days of minutes, and a file that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster import api
from cryptovol_dagster.core.features.catalogue import feature_hash, feature_names
from cryptovol_dagster.core.market.bars import frame_keys
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake.files import LakeError
from cryptovol_dagster.lake.market import to_table

PRODUCTS = ("BTC-USD", "ETH-USD")
DAYS = ("2025-12-01", "2025-12-02", "2025-12-03")


@pytest.fixture
def minutes(empty: Path) -> api.Market[pd.DataFrame]:
    """Three days of features of the minutes, the second written by a version with other columns."""
    market = api.open(empty)
    spec = market.chains["minutes_h5"]
    for number, day in enumerate(DAYS):
        starts = partition_window(day)[0] + spec.bar_ns * np.arange(1_440)
        frame = frame_keys(PRODUCTS, starts)
        frame |= {name: np.full(2 * len(starts), float(number)) for name in feature_names(spec)}
        frame |= {"valid": True, "reason": np.zeros(2 * len(starts), np.int8)}
        version = feature_hash(spec)
        if day == DAYS[1]:
            version, frame["of_before"] = "0ther", frame.pop("ret_1")
        market.lake.write_table("minutes/features", day, to_table(pd.DataFrame(frame)), version=version)
    return market


def test_another_version_says_which_and_what_to_type(minutes: api.Market[pd.DataFrame]) -> None:
    spec = minutes.chains["minutes_h5"]
    message = (
        rf"minutes/features: 1 of 3 partitions \(2025-12-02 … 2025-12-02\) are of version 0ther, this build "
        rf"computes {feature_hash(spec)}: `cryptovol backfill --timescale minutes --from 2025-12-02 --to "
        r"2025-12-02 --market-only` computes them again; in Python, any_version=True reads them"
    )
    for chain in ("minutes", "minutes_h15"):
        with pytest.raises(api.ApiError, match=message):
            minutes.features(chain=chain)
    with pytest.raises(api.ApiError, match=message):
        next(minutes.batches("features", chain="minutes"))
    assert len(minutes.features(start=DAYS[0], chain="minutes")) == 2 * 1_440


def test_any_version_gives_what_each_file_has(minutes: api.Market[pd.DataFrame]) -> None:
    found = minutes.features(PRODUCTS[0], chain="minutes", any_version=True)
    assert found["ret_1"].groupby(found.index.date).count().tolist() == [1_440, 0, 1_440]
    assert found["of_before"].groupby(found.index.date).count().tolist() == [0, 1_440, 0]
    chosen = minutes.features(columns=["of_before", "reason"], chain="minutes", any_version=True)
    assert list(chosen.columns) == ["product", "of_before", "reason"]
    with pytest.raises(api.ApiError, match="no column 'of_befor'"):
        minutes.features(columns=["of_befor"], chain="minutes", any_version=True)


def test_batches_of_any_version_have_the_same_columns(minutes: api.Market[pd.DataFrame]) -> None:
    parts = list(minutes.batches("features", PRODUCTS[0], chain="minutes", any_version=True))
    assert [len(part) for part in parts] == [1_440] * 3
    whole = minutes.features(PRODUCTS[0], chain="minutes", any_version=True)
    for part in parts:
        pd.testing.assert_series_equal(part.dtypes, whole.dtypes)
    pd.testing.assert_frame_equal(pd.concat(parts), whole)
    chosen = ["reason", "of_before", "ret_1"]
    for part in minutes.batches("features", columns=chosen, chain="minutes", any_version=True):
        assert list(part.columns) == ["product", *chosen]
    with pytest.raises(api.ApiError, match="no column 'of_befor'"):
        next(minutes.batches("features", columns=["of_befor"], chain="minutes", any_version=True))


def test_a_span_within_days_reads_the_days_it_touches(minutes: api.Market[pd.DataFrame]) -> None:
    found = minutes.features(PRODUCTS[1], "2025-12-03T23:58", chain="minutes", columns=["ret_5"])
    assert found.index.tolist() == list(pd.date_range("2025-12-03T23:58", periods=2, freq="min", tz="UTC"))
    assert minutes.partitions("features", "2025-12-02T23:59", chain="minutes") == list(DAYS[1:])


def test_a_file_that_cannot_be_read_is_named(minutes: api.Market[pd.DataFrame]) -> None:
    minutes.lake.path("minutes/features", DAYS[2]).write_bytes(b"no Parquet")
    with pytest.raises(LakeError, match=r"date=2025-12-03/part\.parquet: cannot be read as Parquet"):
        minutes.features(start=DAYS[2], chain="minutes")

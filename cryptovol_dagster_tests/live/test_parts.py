"""`features.parquet`: one table, one row a key, the last revision, whoever wrote when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.features.live import LiveFeatures
from cryptovol_dagster.core.features.live_rows import LiveRows
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import HOUR_NS
from cryptovol_dagster.live.errors import LiveError
from cryptovol_dagster.live.parts import FeatureParts
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, spec


@pytest.fixture(scope="module")
def rows() -> LiveRows:
    """Rows of two products over an hour's edge."""
    start_ns = START_NS + HOUR_NS - 50 * NS
    ticks = random_ticks(2, seconds=100, per_second=2, faults=False, start_ns=start_ns)
    stream = LiveFeatures(spec(), lateness_ns=2 * NS)
    stream.add(ticks)
    return stream.close(start_ns + 100 * NS, start_ns + 100 * NS)


def test_pandas_and_duckdb_read_the_folder_as_one_table(rows: LiveRows, tmp_path: Path) -> None:
    folder = tmp_path / "features.parquet"
    parts = FeatureParts(folder, "v1")
    parts.add(rows.take(np.arange(100)))
    parts.flush()
    parts.add(rows.take(np.arange(90, len(rows))))
    parts.flush()
    assert len(list(folder.iterdir())) == 4
    table = pd.read_parquet(folder)
    assert len(table) == len(rows)
    assert not table.duplicated(["product", "bar_start"]).any()
    expected = rows.to_frame().sort_values(["product", "bar_start"]).reset_index(drop=True)
    found = table.sort_values(["product", "bar_start"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)
    counted = duckdb.sql(f"select count(*), count(distinct product) from '{folder}/*.parquet'").fetchall()
    assert counted == [(len(rows), 2)]
    for product in rows.products:
        own = rows.bar_end_ns[rows.product == rows.products.index(product)]
        assert parts.newest_end_ns(product, NS) == own.max()
    assert parts.newest_end_ns("DOGE-USD", NS) is None


def test_the_higher_revision_stays_even_if_the_lower_is_written_later(rows: LiveRows, tmp_path: Path) -> None:
    again = replace(rows, revision=rows.revision + 2, provisional=~rows.provisional)
    first = FeatureParts(tmp_path, "v1")
    first.add(again)
    first.flush()
    other = FeatureParts(tmp_path, "v1")
    other.add(rows)
    other.flush()
    assert (pd.read_parquet(tmp_path)["revision"] == 2).all()


def test_features_of_another_version_are_never_mixed_in(rows: LiveRows, tmp_path: Path) -> None:
    parts = FeatureParts(tmp_path, "v1")
    parts.add(rows)
    parts.flush()
    with pytest.raises(LiveError, match="contains features of version v1, not v2"):
        FeatureParts(tmp_path, "v2")


def test_what_was_dropped_is_not_written(rows: LiveRows, tmp_path: Path) -> None:
    parts = FeatureParts(tmp_path, "v1")
    parts.add(rows)
    assert parts.rows_waiting == len(rows)
    parts.drop()
    parts.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_moved_away_is_an_error_and_the_rows_stay(rows: LiveRows, tmp_path: Path) -> None:
    folder = tmp_path / "features.parquet"
    parts = FeatureParts(folder, "v1")
    parts.add(rows)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(LiveError, match=r"features\.parquet: was moved or removed"):
        parts.flush()
    assert not folder.exists()
    assert parts.rows_waiting == len(rows)

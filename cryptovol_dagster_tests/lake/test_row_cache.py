"""Rows joined hour by hour are those of one join, whatever the window, and each file is read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cryptovol_dagster.core.learning.dataset import Dataset, join_dataset
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.learning.labels import forward_volatility, rows_labelled_by
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import hour_key, hour_keys, hour_window
from cryptovol_dagster.lake import row_cache as rows
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.core.clustered_market import SPEC, START_NS, make_bars, make_features

#: Ten-second bars: five hours are few rows.
COARSE = replace(SPEC, bar_interval_s=10, horizon_bars=30)
#: Labels that reach over more than an hour.
FAR = replace(COARSE, horizon_bars=500)
HOURS = hour_keys(START_NS, START_NS + 5 * 3_600 * NS)


class CountingLake(Lake):
    """A lake that remembers what was read."""

    reads: list[str] = []  # noqa: RUF012 - reset by the fixture; a frozen dataclass takes no other

    def read_table(
        self, asset: str, start_ns: int, end_ns: int, columns: list[str] | None = None
    ) -> pa.Table:
        self.reads.append(f"{asset} {hour_key(start_ns)}")
        return super().read_table(asset, start_ns, end_ns, columns)


@pytest.fixture(scope="module")
def frames() -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Features and labels by name of the spec's horizon."""
    bars = replace(make_bars(1_800), bar_ns=10 * NS)
    bars.in_gap[1, 900:920] = True
    features = make_features(bars).fillna(0.0)
    valid = np.random.default_rng(3).random(len(features)) < 0.95
    features = features.assign(valid=valid, reason=np.where(valid, 0, 2).astype(np.int8))
    return {
        name: (features, forward_volatility(bars, spec).to_frame())
        for name, spec in (("coarse", COARSE), ("far", FAR))
    }


@pytest.fixture
def lake(tmp_path: Path) -> CountingLake:
    CountingLake.reads.clear()
    return CountingLake(tmp_path)


def store(lake: Lake, spec: TimescaleSpec, features: pd.DataFrame, labels: pd.DataFrame) -> None:
    """Write hours as the assets do: labels of an hour are of the rows whose last bar lies in it."""
    for hour in HOURS:
        start_ns, end_ns = hour_window(hour)
        spans = {"features": (start_ns, end_ns), "labels": rows_labelled_by(start_ns, end_ns, spec)}
        for (name, span), frame in zip(spans.items(), (features, labels), strict=True):
            at = frame["bar_start"].astype(np.int64)
            part = frame[(at >= span[0]) & (at < span[1])]
            if len(part):
                table = pa.Table.from_pandas(part, preserve_index=False)
                lake.write_table(f"{spec.name}/{name}", hour, table)


def whole(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> Dataset:
    """One join over everything that is stored of a window."""
    tables = (lake.read_table(f"{spec.name}/{name}", start_ns, end_ns) for name in ("features", "labels"))
    return join_dataset(*(table.to_pandas() for table in tables), spec)


def assert_same(one: Dataset, other: Dataset) -> None:
    pd.testing.assert_frame_equal(one.features, other.features)
    for name in ("product", "t_ns", "sigma", "trailing_sigma"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.dropped == other.dropped


@pytest.mark.parametrize(("name", "spec"), [("coarse", COARSE), ("far", FAR)])
@pytest.mark.parametrize("absent", [None, ("features", 2), ("labels", 2), ("features", 0)])
def test_any_window_holds_the_rows_of_one_join(
    frames: dict[str, tuple[pd.DataFrame, pd.DataFrame]],
    lake: CountingLake,
    name: str,
    spec: TimescaleSpec,
    absent: tuple[str, int] | None,
) -> None:
    store(lake, spec, *frames[name])
    if absent is not None:
        lake.delete(f"{spec.name}/{absent[0]}", HOURS[absent[1]])
    for first, last in ((0, 2), (0, 4), (2, 4), (1, 3), (3, 4), (0, 4)):
        window = hour_window(HOURS[first])[0], hour_window(HOURS[last])[1]
        found, digest = rows.read_rows(lake, spec, *window)
        assert_same(found, whole(lake, spec, *window))
        assert rows.read_rows(Lake(lake.root), spec, *window)[1] == digest


def test_a_file_is_read_once_and_again_only_when_it_changes(
    frames: dict[str, tuple[pd.DataFrame, pd.DataFrame]], lake: CountingLake
) -> None:
    store(lake, COARSE, *frames["coarse"])
    windows = [(hour_window(HOURS[0])[0], hour_window(hour)[1]) for hour in HOURS]
    given = [rows.read_rows(lake, COARSE, *window) for window in windows]
    assert sorted(lake.reads) == sorted(
        # An hour's features are looked at again for the labels that the next hour brings.
        [f"seconds/features {hour}" for hour in [*HOURS, *HOURS[:-1]]]
        + [f"seconds/labels {hour}" for hour in HOURS]
    )
    lake.reads.clear()
    again = [rows.read_rows(lake, COARSE, *window) for window in windows]
    assert [digest for _, digest in again] == [digest for _, digest in given]
    assert all(one is other for (one, _), (other, _) in zip(again[-1:], given[-1:], strict=True))
    assert np.shares_memory(again[2][0].features.to_numpy(), again[-1][0].features.to_numpy())
    assert lake.reads == []
    labels = lake.read_table("seconds/labels", *hour_window(HOURS[1])).to_pandas()
    labels["trailing_sigma"] *= 2
    lake.write_table("seconds/labels", HOURS[1], pa.Table.from_pandas(labels, preserve_index=False))
    lake.reads.clear()
    changed, digest = rows.read_rows(lake, COARSE, *windows[-1])
    assert digest != given[-1][1]
    assert_same(changed, whole(Lake(lake.root), COARSE, *windows[-1]))
    assert sorted(lake.reads) == [
        f"seconds/features {HOURS[0]}",
        f"seconds/features {HOURS[1]}",
        f"seconds/labels {HOURS[1]}",
    ]


def test_a_window_without_a_row_says_where_its_rows_went(
    frames: dict[str, tuple[pd.DataFrame, pd.DataFrame]], lake: CountingLake
) -> None:
    features, labels = frames["coarse"]
    store(lake, COARSE, features.assign(valid=False, reason=np.int8(1)), labels)
    with pytest.raises(LearningError, match=r"no row has both valid features and a label .*feature_reason_1"):
        rows.read_rows(lake, COARSE, hour_window(HOURS[0])[0], hour_window(HOURS[-1])[1])

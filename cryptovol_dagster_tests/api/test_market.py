"""Frames of a market: the lake's rows in units for people, and one line where there are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cryptovol_dagster import api
from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.inference.scorer import find_scorer, read_features, score
from cryptovol_dagster.lake.files import Lake, version_of
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import PRODUCTS
from ingestor.errors import CryptovolError

Opened = api.Market[pd.DataFrame]
HOUR = "2026-04-04T04"
HOURS = [f"2026-04-04-0{hour}:00" for hour in range(3, 7)]
ENDS = (HOURS[0], HOURS[3])


def utc(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz="UTC")


def test_the_import_is_light() -> None:
    code = (
        "import sys; from cryptovol_dagster import api; "
        "heavy = {'dagster', 'mlflow', 'sklearn', 'xgboost', 'matplotlib', 'duckdb', 'evidently'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bars_are_those_of_the_lake_in_units_for_people(opened: Opened, pipeline: Pipeline) -> None:
    found = opened.bars(PRODUCTS[0], HOUR)
    stored = pipeline.lake.read_table("seconds/bars", *hour_window("2026-04-04-04:00")).to_pandas()
    stored = stored.loc[stored["product"] == PRODUCTS[0]].set_index("bar_start")
    assert found.index.equals(pd.DatetimeIndex(stored.index))
    assert (found.index.name, str(found.index.dtype)) == ("bar_start", "datetime64[ns, UTC]")
    assert set(found["product"]) == {PRODUCTS[0]}
    for name in ("open", "high", "low", "close", "age_s"):
        pd.testing.assert_series_equal(found[name], stored[name], check_freq=False)
    for name, source, scale in (
        ("volume", "volume_e8", 1e-8),
        ("log_return", "ret_nano", 1e-9),
        ("spread_bps", "spread_nano", 1e-5),
        ("range_bps", "range_nano", 1e-5),
        ("garman_klass", "gk_atto", 1e-18),
        ("imbalance", "imbalance_nano", 1e-9),
    ):
        expected = stored[source].astype("Float64").to_numpy(np.float64, na_value=np.nan) * scale
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
        assert np.isnan(expected).any() == found[name].isna().any()
    moves = np.log(found["close"]).diff()
    np.testing.assert_allclose(found["log_return"].iloc[100:200], moves.iloc[100:200], atol=2e-9)
    assert found["log_return"].isna().any()  # the gap of this hour


def test_features_are_those_of_the_lake(opened: Opened, pipeline: Pipeline) -> None:
    found = opened.features(start="2026-04-04T04:30", end="2026-04-04T05:30")
    window = hour_window("2026-04-04-04:00")[0], hour_window("2026-04-04-05:00")[1]
    stored = pipeline.lake.read_table("seconds/features", *window).to_pandas()
    inside = (stored["bar_start"] >= utc("2026-04-04T04:30")) & (
        stored["bar_start"] < utc("2026-04-04T05:30")
    )
    stored = stored.loc[inside].sort_values(["bar_start", "product"]).set_index("bar_start")
    names = list(feature_names(opened.chains["seconds"]))
    assert list(found.columns) == ["product", *names, "valid", "reason"]
    pd.testing.assert_frame_equal(found[[*names, "valid"]], stored[[*names, "valid"]])
    assert found["product"].tolist() == stored["product"].tolist()
    assert set(found["reason"]) <= {"ok", "in_gap", "warming_up", "break", "stale"}
    assert ((found["reason"] == "ok") == found["valid"]).all()


def test_rows_are_in_order_of_time_then_product(opened: Opened) -> None:
    for frame in (opened.ticks(), opened.trades(), opened.bars(), opened.features(), opened.labels()):
        assert frame.index.is_monotonic_increasing
        assert set(frame["product"]) == set(PRODUCTS)
    bars = opened.bars()
    assert bars["product"].tolist()[:4] == [*PRODUCTS, *PRODUCTS]
    assert not bars.reset_index().duplicated(["bar_start", "product"]).any()
    assert len(bars.loc["2026-04-04T04:00":"2026-04-04T04:59:59"]) == 2 * 720


def test_ticks_and_trades(opened: Opened) -> None:
    ticks, trades = opened.ticks(PRODUCTS[0], HOUR), opened.trades(PRODUCTS[0], HOUR)
    assert ticks.index.name == trades.index.name == "time"
    np.testing.assert_allclose(ticks["mid"], (ticks["bid"] + ticks["ask"]) / 2)
    np.testing.assert_allclose(ticks["spread_bps"], 1e4 * (ticks["ask"] - ticks["bid"]) / ticks["mid"])
    assert ticks["gap_before"].sum() == 1
    assert ticks["sequence"].is_monotonic_increasing
    assert set(trades["side"]) == {"buy", "sell"}
    assert trades["size"].between(0.1, 2.0).all()


def test_a_row_of_labels_speaks_of_the_bars_after_it(opened: Opened) -> None:
    chain = opened.chains["seconds"]
    labels, bars = opened.labels(PRODUCTS[0], HOUR), opened.bars(PRODUCTS[0])
    labelled = labels.loc[labels["reason"] == "ok"]
    assert len(labels) == 720
    assert labels["volatility_bps"].notna().equals(labels["reason"] == "ok")
    at = labelled.index[50]
    after = bars["log_return"].loc[bars.index > at].iloc[: chain.horizon_bars]
    assert labelled["volatility_bps"].iloc[50] == pytest.approx(1e4 * np.sqrt((after**2).mean()))


def test_arrow_holds_the_same_and_says_what_columns_mean(opened: Opened) -> None:
    table = opened.arrow.bars(PRODUCTS[0], HOUR, columns=["close", "spread_bps"])
    assert isinstance(table, pa.Table)
    assert table.column_names == ["bar_start", "product", "close", "spread_bps"]
    frame = opened.bars(PRODUCTS[0], HOUR, columns=["close", "spread_bps"])
    pd.testing.assert_frame_equal(table.to_pandas().set_index("bar_start"), frame)
    assert table.schema.field("spread_bps").metadata[b"unit"] == b"bps"


def test_only_the_columns_asked_for_are_read(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    asked = []
    read = parquet.ParquetFile.read

    def watched(self: parquet.ParquetFile, *, columns: list[str] | None = None, **others: object) -> pa.Table:
        asked.append(columns)
        return read(self, columns=columns, **others)

    monkeypatch.setattr(parquet.ParquetFile, "read", watched)
    opened.bars(columns=["spread_bps"])
    assert asked == [["bar_start", "product", "spread_nano"]] * 4


def test_several_products_in_any_order_and_partitions_by_the_last_hours(opened: Opened) -> None:
    pd.testing.assert_frame_equal(opened.bars([*reversed(PRODUCTS)]), opened.bars(PRODUCTS))
    assert opened.bars(PRODUCTS[1])["product"].cat.categories.tolist() == [PRODUCTS[1]]
    last = opened.bars(PRODUCTS[0], timedelta(hours=-1))
    assert (last.index[0], last.index[-1]) == (utc("2026-04-04T06:00"), utc("2026-04-04T06:59:55"))
    assert opened.partitions("bars", "2026-04-04T04:30", "2026-04-04T05:30") == [
        "2026-04-04-04:00",
        "2026-04-04-05:00",
    ]


def test_scores_are_those_of_infer(opened: Opened, pipeline: Pipeline) -> None:
    storage, spec = pipeline.settings.storage, opened.chains["seconds"]
    reports = Reports(storage.reports_dir, storage.artifacts_dir)
    scorer = find_scorer(pipeline.lake, spec, reports, name=None, path=None)
    expected = score(read_features(pipeline.lake, spec, None), scorer)
    found = opened.scores(start="2026-04-04T06")
    np.testing.assert_array_equal(found["probability"], expected["probability"])
    assert found["product"].tolist() == expected["product"].tolist()
    assert found["reason"].tolist() == expected["reason"].tolist()
    assert found.attrs["model"] == scorer.version
    assert utc(found.attrs["learned_until"][:-1]) < found.index[0]
    by_file = opened.scores(PRODUCTS[0], "-10min", model=storage.artifacts_dir / "seconds-xgboost.zip")
    assert len(by_file) == 120
    assert by_file.attrs["model"].startswith("xgboost")
    assert opened.scores(PRODUCTS[0], "-10min", model="xgboost").equals(by_file)


def test_coverage_shows_each_hour_and_the_hole_in_one(opened: Opened) -> None:
    found = opened.coverage()
    assert len(found) == 8
    hours = found.loc[found["product"] == PRODUCTS[0]]
    assert list(hours.index) == list(pd.date_range("2026-04-04T03:00", periods=4, freq="h", tz="UTC"))
    worst = hours.loc[utc("2026-04-04T04:00")]
    # 100 s were lost, of which those over the gap limit are a gap.
    gap_s = 100 - opened.chains["seconds"].gap_after_s
    assert 1 - worst["recorded"] == pytest.approx(gap_s / 3_600, abs=2 * 5 / 3_600)
    assert hours["recorded"].drop(worst.name).eq(1).all()
    assert worst["messages"] == 1_440 - 40
    assert found[["features", "labels"]].notna().all(axis=None)


@pytest.fixture
def parts(opened: Opened, tmp_path: Path) -> Callable[..., Opened]:
    """Open a market that holds only these partitions of assets, of these products."""

    def part(*assets: str, keys: Sequence[str], products: Sequence[str] = PRODUCTS) -> Opened:
        market = api.open(tmp_path / "data")
        for asset in assets:
            for key in keys:
                with opened.lake.open_partition(asset, key) as file:
                    table, version = file.read(), version_of(file.schema_arrow)
                name = "product_id" if asset == "ticks" else "product"
                if name in table.column_names:
                    table = table.filter(pc.field(name).isin(products))
                market.lake.write_table(asset, key, table, version=version)
        return market

    (tmp_path / "data").mkdir()
    return part


def test_coverage_shows_hours_that_nobody_recorded(parts: Callable[..., Opened]) -> None:
    found = parts("seconds/bars", keys=ENDS).coverage(PRODUCTS[0])
    assert found["recorded"].tolist() == [1, 0, 0, 1]
    assert found["messages"].tolist()[1:3] == [0, 0]
    assert found["features"].isna().all()


def test_coverage_of_a_product_without_features_and_back_from_the_newest_bar(
    parts: Callable[..., Opened],
) -> None:
    market = parts("seconds/bars", keys=[*HOURS])
    parts("seconds/features", "seconds/labels", keys=HOURS[:3], products=PRODUCTS[:1])
    found = market.coverage(PRODUCTS[1], "-2h")
    assert list(found.index) == [utc("2026-04-04T05"), utc("2026-04-04T06")]
    assert found["recorded"].eq(1).all()
    assert found[["features", "labels"]].isna().all(axis=None)
    of_both = market.coverage(start="-2h").reset_index().pivot(
        index="start", columns="product", values="features"
    )  # fmt: skip
    assert of_both[PRODUCTS[0]].notna().tolist() == [True, False]
    assert of_both[PRODUCTS[1]].isna().all()


def test_a_span_after_the_last_bar_of_its_hour_has_no_rows(opened: Opened) -> None:
    for kind in ("bars", "scores", "coverage", "gaps"):
        found = getattr(opened, kind)(PRODUCTS[0], "2026-04-04T06:59:57", "2026-04-04T07:00")
        assert found.empty
        assert [*found.columns] == [*getattr(opened, kind)().columns]


def test_scores_of_a_product_that_came_later(opened: Opened, parts: Callable[..., Opened]) -> None:
    market = parts("seconds/features", keys=HOURS[:1], products=PRODUCTS[:1])
    parts("seconds/features", keys=HOURS[1:2])
    model = opened.settings.storage.artifacts_dir / "seconds-xgboost.zip"
    # This lake has no evaluation, and so no operating point to flag by.
    expected = opened.scores(PRODUCTS[1], HOURS[1], model=model).drop(columns="flag")
    found = market.scores(PRODUCTS[1], model=model).drop(columns="flag")
    pd.testing.assert_frame_equal(found, expected, check_categorical=False)
    assert [len(part) for part in market.batches("scores", PRODUCTS[1], model=model)] == [0, 720]
    assert len(market.scores(start="2026-04-04T03:59:57", model=model)) == 2 * 720


def test_gaps_are_the_ledgers(opened: Opened) -> None:
    (gap,) = opened.gaps().itertuples()
    assert (gap.kind, gap.connection_id, gap.lost) == ("sequence", "c0ffee", 120)
    assert gap.Index < gap.end
    assert gap.seconds == pytest.approx((gap.end - gap.Index).total_seconds())
    assert len(opened.gaps(PRODUCTS[0], "2026-04-04T04")) == 1
    assert opened.gaps(start="2026-04-04T06").empty
    assert opened.gaps(start="2026-04-04T06").columns.equals(opened.gaps().columns)


def test_gaps_of_hours_that_nobody_recorded(parts: Callable[..., Opened]) -> None:
    market = parts("ticks", "gap_ledger", keys=ENDS)
    ledger = market.lake.read_partition("gap_ledger", ENDS[1])
    start, end = utc("2026-04-04T03:59:58"), utc("2026-04-04T06:00:01")
    hole = dict.fromkeys(ledger.column_names) | {
        "connection_id": "c0ffee", "kind": "between", "start_ns": start.value, "end_ns": end.value,
        "detail": "{}", "in_hour": True,
    }  # fmt: skip
    market.lake.write_table("gap_ledger", ENDS[1], pa.Table.from_pylist([hole], ledger.schema))
    for product in (None, PRODUCTS[1]):
        found = market.gaps(product, "2026-04-04T04")
        assert found.index.tolist() == [start]
        assert found[["end", "kind"]].to_numpy().tolist() == [[end, "between"]]
    for day in ("2026-04-03", "2026-04-05"):
        with pytest.raises(api.ApiError, match=r"ticks: nothing is stored in .*There are 2 hours, 2 of them"):
            market.gaps(start=day)


def test_the_ticks_of_an_hour_are_read_once_for_all_its_losses(
    parts: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    market = parts("ticks", "gap_ledger", keys=HOURS[1:2])
    ledger = market.lake.read_partition("gap_ledger", HOURS[1])
    market.lake.write_table("gap_ledger", HOURS[1], pa.concat_tables([ledger] * 20))
    read = Lake.read_partition
    columns: list[Sequence[str] | None] = []

    def watched(self: Lake, asset: str, key: str, names: Sequence[str] | None = None) -> pa.Table:
        columns.append(names)
        return read(self, asset, key, names)

    monkeypatch.setattr(Lake, "read_partition", watched)
    assert len(market.gaps(PRODUCTS[0])) == 20
    assert columns.count(["connection_id", "product_id"]) == 1


def test_batches_hold_a_partition_each(opened: Opened) -> None:
    for kind in ("ticks", "features", "scores", "gaps"):
        parts = list(opened.batches(kind, PRODUCTS[0]))
        whole = getattr(opened, kind)(PRODUCTS[0])
        assert len(parts) == (1 if kind == "gaps" else 4)
        pd.testing.assert_frame_equal(pd.concat(parts), whole, check_categorical=False)


def test_batches_of_what_is_computed_have_the_columns_asked_for(opened: Opened) -> None:
    for kind, columns in (
        ("scores", ["reason", "probability"]),
        ("coverage", ["stale", "messages"]),
        ("gaps", ["lost", "kind"]),
    ):
        whole = pd.concat(opened.batches(kind))
        keys = [name for name in ("product",) if name in whole.columns]
        found = pd.concat(opened.batches(kind, columns=columns))
        pd.testing.assert_frame_equal(found, whole[[*keys, *columns]])


def test_every_column_of_a_frame_is_described(opened: Opened) -> None:
    for kind in ("ticks", "trades", "bars", "features", "labels", "scores", "coverage", "gaps"):
        frame = getattr(opened, kind)(start="2026-04-04T04")
        assert ["product", *opened.describe(kind).index] == [*dict.fromkeys(["product", *frame.columns])]
    assert set(opened.describe().index.unique("kind")) >= {"ticks", "bars", "gaps"}
    assert opened.describe("features").loc["ln_rv_5", "unit"] == "ln(volatility per √bar)"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda market: market.bars(start="2026-05-01"),
            r"seconds/bars: nothing is stored in 2026-05-01T00:00Z … 2026-05-02T00:00Z\. There are 4 hours, "
            r"2026-04-04T03:00Z … 2026-04-04T07:00Z: choose a span in there, e\.g\. start=\"-1h\"",
        ),
        (
            lambda market: market.bars("BCT-USD"),
            r"seconds/bars have no product BCT-USD .*: there are BTC-USD, ETH-USD\. Did you mean 'BTC-USD'\?",
        ),
        (lambda market: market.bars([PRODUCTS[0], "DOGE-USD"]), r"no product DOGE-USD in [^(]*: there are"),
        (lambda market: market.ticks("btc/usd"), r"Did you mean 'BTC-USD'\?"),
        (lambda market: market.gaps("DOGE-USD"), r"ticks have no product DOGE-USD"),
        (lambda market: market.bars([]), r"no product is named: product=None means all"),
        (lambda market: market.bars(columns=["closee"]), r"no column 'closee': .*\. Did you mean 'close'\?"),
        (lambda market: market.bars(columns="close"), r"columns=\['close'\]"),
        (
            lambda market: market.bars(chain="second"),
            r"'second' is not a chain: seconds.*\. Did you mean 'seconds'\?",
        ),
        (
            lambda market: market.batches("bar"),
            r"'bar' is not a kind of rows: ticks.* Did you mean 'bars'\?",
        ),
        (lambda market: market.batches("bars", model="xgboost"), r"a model is for scores: bars are not"),
        (lambda market: market.batches("gaps", columns=["knd"]), r"gaps have no column 'knd'"),
        (lambda market: market.batches("scores", columns="flag"), r"columns=\['flag'\]"),
        (lambda market: market.scores(model="xgbost"), r"no such model; .* Did you mean .xgboost.\?"),
        (lambda market: market.labels(start="2026-04-04T07:10"), r"seconds/labels: nothing is stored"),
    ],
)
def test_what_is_not_there_is_one_line_that_says_what_is(opened: Opened, ask, message: str) -> None:
    with pytest.raises(CryptovolError, match=message) as error:
        ask(opened)
    assert "\n" not in str(error.value)
    assert error.value._render_traceback_() == [f"{type(error.value).__name__}: {error.value}"]


def test_an_empty_folder_says_how_to_fill_it(empty: Path) -> None:
    market = api.open(empty)
    with pytest.raises(api.ApiError, match=r"has no seconds/bars yet: record with `cryptovol ingest`"):
        market.bars(start="-1h")
    with pytest.raises(api.ApiError, match=r"no minutes/features yet: `cryptovol import-bars`, then"):
        market.features(chain="minutes")
    with pytest.raises(
        api.ApiError, match=r"minutes have several horizons: chain='minutes_h5' or 'minutes_h15'"
    ):
        market.labels(chain="minutes")
    with pytest.raises(api.ApiError, match=r"has no ticks yet"):
        market.gaps()
    assert market.stored()["partitions"].eq(0).all()


def test_a_folder_is_found_from_below_and_a_wrong_name_says_which_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = tmp_path / "data" / "demo"
    for folder in (tmp_path, demo):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text("storage: {data_dir: .}\n")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    monkeypatch.delenv("CRYPTOVOL_CONFIG", raising=False)
    monkeypatch.setenv("CRYPTOVOL__STORAGE__DATA_DIR", "elsewhere")
    assert api.open("data/demo").settings.storage.data_dir == demo
    assert api.open("data").settings.storage.data_dir == tmp_path / "data"
    assert api.open().settings.storage.data_dir == tmp_path / "elsewhere"
    monkeypatch.setenv("CRYPTOVOL_CONFIG", "data/demo/config.yaml")
    assert api.open().config_file == demo / "config.yaml"
    monkeypatch.setenv("CRYPTOVOL_CONFIG", "nope.yaml")
    with pytest.raises(CryptovolError, match=r"^nope\.yaml: no such configuration file$"):
        api.open()
    with pytest.raises(api.ApiError, match=r"`cryptovol --config \.\./data/demo/config\.yaml ingest`"):
        api.open("data/demo").bars()
    with pytest.raises(api.ApiError, match=r"data/dmo: no such folder; .* Did you mean 'data/demo'"):
        api.open("data/dmo")

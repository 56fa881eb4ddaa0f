"""Replay: streamed rows are those of one computation over everything, and failures are one clear line."""

from __future__ import annotations

import errno
import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from cryptovol_dagster import replay as replay_module
from cryptovol_dagster.chains import timescale_spec, timescale_specs
from cryptovol_dagster.cli import main
from cryptovol_dagster.core.features.catalogue import feature_names, features_version
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.market.bars import build_bars
from cryptovol_dagster.core.market.cleaning import clean_ticks, clean_trades
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import HOUR_NS, hour_window
from cryptovol_dagster.lake.files import Lake, meaning_of
from cryptovol_dagster.lake.raw_ticks import trade_columns
from cryptovol_dagster.replay import FeatureStream, ReplayError, replay
from cryptovol_dagster_tests.core.market.builders import START_NS, random_ticks, spec
from cryptovol_dagster_tests.pipeline import MARKET, Pipeline
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings, write_market
from ingestor.archive.reader import RawReader
from ingestor.recordings import RecordingError, iter_recording, read_recording
from ingestor.settings.sections import Settings

SPEC = spec()
REAL = timescale_spec(Settings().timescales.seconds, "seconds")


def stamp(time_ns: int) -> str:
    """The exchange's form of a time."""
    seconds, rest = divmod(time_ns, NS)
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def write_recording(path: Path, ticks: TickColumns) -> Path:
    """The ticks as `{received_at, frame}` lines."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        for k in range(len(ticks)):
            at = stamp(int(ticks.event_time_ns[k]))
            ticker = {
                "type": "ticker",
                "product_id": ticks.products[ticks.product[k]],
                "price": str(ticks.price[k]),
                "best_bid": str(ticks.bid[k]),
                "best_ask": str(ticks.ask[k]),
                "best_bid_quantity": str(ticks.bid_size[k]),
                "best_ask_quantity": str(ticks.ask_size[k]),
            }
            frame = {
                "channel": "ticker",
                "timestamp": at,
                "sequence_num": int(ticks.sequence_num[k]),
                "events": [{"type": "update", "tickers": [ticker]}],
            }
            file.write(json.dumps({"received_at": at, "frame": frame}) + "\n")
    return path


def numbered(ticks: TickColumns) -> TickColumns:
    """The ticks as one connection without a gap."""
    return replace(ticks, sequence_num=np.arange(len(ticks)))


def at_once(ticks: TickColumns, used=SPEC, trades: TradeColumns | None = None) -> pd.DataFrame:
    """Features of everything in one go, over the whole hours that cover it."""
    cleaned = clean_ticks(ticks, round(used.late_after_s * NS)).ticks
    start_ns = int(cleaned.event_time_ns.min()) // HOUR_NS * HOUR_NS
    end_ns = (int(cleaned.event_time_ns.max()) // HOUR_NS + 1) * HOUR_NS
    bars = build_bars(cleaned, start_ns=start_ns, end_ns=end_ns, spec=used, trades=trades)
    return compute_features(bars, used).to_frame()


def trades_of(path: Path) -> TradeColumns | None:
    """The trades of a recording, each once."""
    reader = iter_recording(path, with_trades=True)
    for _ in reader:
        pass
    found = reader.take_trades()
    return None if found is None else clean_trades(trade_columns(found))


def by_key(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(product=frame["product"].astype(str))
    return frame.sort_values(["product", "bar_start"]).reset_index(drop=True)


def assert_same_rows(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    one, two = by_key(actual), by_key(expected)
    assert list(one.columns) == list(two.columns)
    pd.testing.assert_frame_equal(
        one[["bar_start", "product", "valid", "reason"]],
        two[["bar_start", "product", "valid", "reason"]],
        check_dtype=False,
    )
    names = list(one.columns[2:-2])
    np.testing.assert_allclose(one[names], two[names], rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_rows", [500, 7_000])
@pytest.mark.parametrize("hours_at_once", [1, 6])
def test_hours_streamed_equal_everything_at_once(
    chunk_rows: int, hours_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "HOURS_AT_ONCE", hours_at_once)
    ticks = random_ticks(11, seconds=4 * 3_600, per_second=0.7)
    stream, frames = FeatureStream(SPEC), []
    for start in range(0, len(ticks), chunk_rows):
        part = ticks.take(slice(start, start + chunk_rows))
        stream.add(part)
        frames += [grid.to_frame() for grid in stream.close_until(int(part.event_time_ns.max()))]
        assert sum(len(tick) for tick in stream._open) < 3_600 + 2 * chunk_rows
    frames += [grid.to_frame() for grid in stream.finish()]
    assert_same_rows(pd.concat(frames), at_once(ticks))
    assert stream.counts == clean_ticks(ticks, 2 * NS).counts


@pytest.mark.parametrize(
    ("name", "lines", "ticks", "kept", "duplicates", "rows", "valid_rows"),
    [
        ("btc_eth_2026-04-04_2h.ndjson.gz", 30_123, 30_123, 30_123, 0, 21_600, 12_451),
        ("btc_2026-04-05_20min_verbatim.ndjson.gz", 5_971, 5_970, 5_970, 0, 3_600, 228),
        ("btc_2025-12-06_overnight_sessions.ndjson.gz", 28_393, 28_381, 28_381, 0, 10_800, 3_732),
        ("multichannel_2026-08-09_25s_session.jsonl.gz", 1_038, 160, 160, 0, 7_200, 0),
        ("faulty_every_line_twice.ndjson.gz", 7_156, 7_156, 3_578, 3_578, 3_600, 0),
        ("faulty_heartbeats_dropped.ndjson.gz", 2_500, 2_500, 2_500, 0, 7_200, 0),
    ],
)
def test_real_recordings_are_counted_and_equal_one_computation(
    recordings: Path, tmp_path: Path, name, lines, ticks, kept, duplicates, rows, valid_rows
) -> None:
    out = tmp_path / "features.parquet"
    result = replay([recordings / name], spec=REAL, out=out)
    assert (result.lines, result.ticks, result.kept) == (lines, ticks, kept)
    assert (result.duplicates, result.late, result.rejected) == (duplicates, 0, 0)
    assert (result.rows, result.valid_rows) == (rows, valid_rows)
    recorded = TickColumns.from_arrays(read_recording(recordings / name).ticks)
    trades = trades_of(recordings / name)
    assert result.trades == (0 if trades is None else len(trades))
    assert_same_rows(pd.read_parquet(out), at_once(recorded, REAL, trades))


def test_overlapping_files_in_any_order_equal_one_recording(tmp_path: Path) -> None:
    ticks = random_ticks(3, seconds=9_000, per_second=0.5, faults=False)
    # As raw storage keeps them: a file a product, here with the later half of one in a file of its own.
    first, second = (numbered(ticks.take(ticks.product == code)) for code in (0, 1))
    early = first.event_time_ns < START_NS + 5_000 * NS
    files = [
        write_recording(tmp_path / "late.ndjson", numbered(first.take(~early))),
        write_recording(tmp_path / "other.ndjson.gz", second),
        write_recording(tmp_path / "early.ndjson", first.take(early)),
    ]
    result = replay(files, spec=SPEC, out=tmp_path / "rows.csv")
    assert (result.files, result.kept, result.products) == (3, len(ticks), ("BTC-USD", "ETH-USD"))
    rows = pd.read_csv(tmp_path / "rows.csv", parse_dates=["bar_start"])
    single = replay(
        [write_recording(tmp_path / "all.ndjson", ticks)], spec=SPEC, out=tmp_path / "one.parquet"
    )
    expected = pd.read_parquet(tmp_path / "one.parquet")
    # Where one file ends and the next goes on, the connection changes: a break that the single file lacks.
    assert single.rows == result.rows
    own = by_key(rows)["product"] == "ETH-USD"
    names = list(feature_names(SPEC))
    np.testing.assert_allclose(
        by_key(rows).loc[own, names], by_key(expected).loc[own, names], rtol=1e-9, atol=1e-12
    )


def test_only_the_products_asked_for(recordings: Path) -> None:
    result = replay(
        [recordings / "btc_eth_2026-04-04_2h.ndjson.gz"], spec=REAL, products=["SOL-USD", "ETH-USD"]
    )
    assert result.products == ("SOL-USD", "ETH-USD")
    assert result.rows == 21_600
    assert 0 < result.ticks < 30_123


def test_a_product_that_appears_later_has_rows_from_its_first_hour() -> None:
    ticks = random_ticks(5, seconds=3 * 3_600, per_second=0.5, faults=False)
    late = ticks.take((ticks.product == 0) | (ticks.event_time_ns > START_NS + 7_300 * NS))
    stream, grids = FeatureStream(SPEC), []
    for start in range(0, len(late), 300):
        part = late.take(slice(start, start + 300))
        stream.add(TickColumns.concat([TickColumns.empty(), part]))
        grids += list(stream.close_until(int(part.event_time_ns.max())))
    grids += list(stream.finish())
    frame = pd.concat([grid.to_frame().astype({"product": str}) for grid in grids])
    second = by_key(frame)[lambda rows: rows["product"] == "ETH-USD"]
    expected = by_key(at_once(late))[lambda rows: rows["product"] == "ETH-USD"]
    assert_same_rows(second, expected[expected["bar_start"] >= second["bar_start"].min()])


def test_a_tick_for_an_hour_already_closed_is_late() -> None:
    ticks = random_ticks(6, seconds=2 * 3_600, per_second=0.5, n_products=1, faults=False)
    stream = FeatureStream(SPEC)
    stream.add(ticks)
    assert len(list(stream.close_until(START_NS + 3_600 * NS + 121 * NS))) == 1
    straggler = random_ticks(7, seconds=60, n_products=2, faults=False)
    straggler = straggler.take(straggler.product == 1)
    stream.add(straggler)
    assert stream.counts.late == len(straggler)
    assert stream.counts.read == stream.counts.kept + stream.counts.late


def test_of_the_hours_before_a_span_nothing_is_counted_beside_its_rows() -> None:
    ticks = random_ticks(6, seconds=2 * 3_600, per_second=0.5, n_products=1, faults=False)
    jumped = ticks.event_time_ns >= START_NS + 1_800 * NS
    for quote in (ticks.bid, ticks.ask):
        quote[jumped] *= 2
    counted = []
    for first_hour in (0, 1):
        stream = FeatureStream(SPEC)
        stream.add(ticks)
        rows = list(stream.only(START_NS + first_hour * HOUR_NS, START_NS + 2 * HOUR_NS))
        assert sum(grid.reason.size for grid in rows) == (2 - first_hour) * 3_600
        counted.append(stream.out_of_bounds)
    assert counted == [1, 0]


def test_a_wrong_clock_does_not_open_a_thousand_hours(tmp_path: Path) -> None:
    one = random_ticks(1, seconds=60, faults=False)
    two = random_ticks(2, seconds=60, faults=False, start_ns=START_NS + 400 * 24 * HOUR_NS)
    files = [write_recording(tmp_path / f"{k}.ndjson", ticks) for k, ticks in enumerate((one, two))]
    with pytest.raises(ReplayError, match=r"event time jumps between 2026-04-04T.* and 2027-"):
        replay(files, spec=SPEC)


def test_an_earlier_result_survives_a_replay_that_fails(tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    out.write_text("earlier")
    broken = tmp_path / "broken.ndjson"
    broken.write_text("no recording\n")
    with pytest.raises(RecordingError, match="broken"):
        replay([broken], spec=SPEC, out=out)
    assert out.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.ndjson", "features.parquet"]


def test_an_earlier_result_survives_a_disk_that_fills_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "features.parquet"
    out.write_text("earlier")
    recording = write_recording(tmp_path / "ticks.ndjson", random_ticks(1, seconds=60, faults=False))

    close = pq.ParquetWriter.close

    def full(writer: pq.ParquetWriter) -> None:
        close(writer)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "close", full)
    with pytest.raises(ReplayError, match=r"features.parquet: cannot be written: No space left on device"):
        replay([recording], spec=SPEC, out=out)
    assert out.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.parquet", "ticks.ndjson"]


def run(*arguments: str):
    return CliRunner().invoke(main, ["replay", *arguments])


def test_the_command_prints_counts_as_json(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    file = str(recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz")
    done = run("--data-file", file, "--json", "--out", str(out))
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    asked = ("lines", "ticks", "duplicates", "late", "rejected", "rows")
    assert [counts[name] for name in asked] == [5_971, 5_970, 0, 0, 0, 3_600]
    assert counts["seconds"] > 0
    assert counts["hour"] is None
    assert len(pd.read_parquet(out)) == 3_600
    assert "5,970 kept" in run("--data-file", file).stdout


def test_failures_are_one_line(recordings: Path, tmp_path: Path) -> None:
    file = str(recordings / "btc_2026-04-05_20min_verbatim.ndjson.gz")
    crossed = random_ticks(1, seconds=60, faults=False)
    crossed.bid[:] = 1e9
    unusable = write_recording(tmp_path / "crossed.ndjson", crossed)
    (tmp_path / "empty.ndjson").write_text("")
    (tmp_path / "folder.parquet").mkdir()
    for arguments, message in (
        (["--data-file", str(tmp_path / "absent")], "absent"),
        (["--data-file", str(tmp_path / "empty.ndjson")], "empty"),
        (["--data-file", file, "--data-file", file], "named more than once"),
        (["--data-file", file, "--out", "rows.xlsx"], "written as .parquet or .csv"),
        (["--data-file", file, "--out", str(tmp_path / "folder.parquet")], "cannot be written"),
        (["--data-file", file, "--out", "/proc/rows.csv"], "cannot be written"),
        (["--data-file", file, "--products", "SOL-USD,SOL-USD,"], "but none of SOL-USD"),
        (["--data-file", file, "--products", ","], "has no product"),
        (["--data-file", str(unusable)], f"none of {len(crossed)} ticks has a usable quote"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1, done.output
        assert done.stderr.startswith("Error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_a_file_the_newest_closed_hour_gives_the_rows_of_its_asset(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first rows too: the hour before serves their windows. And `infer` reads what was written."""
    config, out = tmp_path / "config.yaml", tmp_path / "features.parquet"
    config.write_text(yaml.safe_dump(pipeline.settings.model_dump(mode="json", exclude={"kafka"})))
    monkeypatch.setenv("CRYPTOVOL_CONFIG", str(config))
    done = run("--out", str(out))
    assert done.exit_code == 0, done.output
    newest = pipeline.hours[-1]
    assert done.stdout.startswith(f"hour     {newest}, the newest closed one in ")
    assert json.loads(run("--json").stdout)["hour"] == newest
    stored = pipeline.lake.read_table("seconds/features", *hour_window(newest)).to_pandas()
    found = pd.read_parquet(out)
    keys = ["bar_start", "product"]
    stored, found = (
        rows.astype({"product": str}).sort_values(keys, ignore_index=True) for rows in (stored, found)
    )
    assert len(stored.columns) > 50
    pd.testing.assert_frame_equal(found, stored, check_exact=True)
    scored = CliRunner().invoke(main, ["infer", "--model", "logreg", "--features", str(out), "--json"])
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["scored"] == int(found["valid"].sum()) > 0


TICKER_FIELDS = (
    "product_id", "price", "best_bid", "best_ask", "best_bid_quantity", "best_ask_quantity",
)  # fmt: skip
TRADE_FIELDS = ("product_id", "trade_id", "price", "size", "side")


def as_frames(raw_dir: Path, path: Path) -> Path:
    """What a recorder of frames would have written: the messages of raw storage, frame by frame."""
    reader, frames = RawReader(raw_dir), {}
    kinds = (
        ("ticks.raw", "ticker", "tickers", TICKER_FIELDS),
        ("trades.raw", "market_trades", "trades", TRADE_FIELDS),
    )
    for topic, channel, entries, names in kinds:
        for row in reader.read(topic, 0, 2**62).to_pylist():
            place = row["connection_id"], row["sequence_num"]
            event = {"type": row["event_type"], entries: []}
            head = {"channel": channel, "timestamp": stamp(row["event_time_ns"]), "sequence_num": place[1]}
            frame = frames.setdefault(place, {**head, "events": [event]})
            entry = {name: str(row[name]) for name in names}
            if topic == "trades.raw":
                entry["time"] = stamp(row["trade_time_ns"])
            frame["events"][0][entries].append(entry)
    lines = (json.dumps(frames[key]) + "\n" for key in sorted(frames))
    path.write_text("".join(lines))
    return path


def test_with_trades_and_three_products_every_feature_is_that_of_the_assets(
    tmp_path: Path, own_dagster_home: None
) -> None:
    """Bit for bit, column by column: the assets, a replay of raw files, and one of frames."""
    from cryptovol_dagster.verbs import runs

    products, hours = ("BTC-USD", "ETH-USD", "SOL-USD"), hours_from(FIRST_HOUR, 3)
    small = small_settings(tmp_path)
    timescales = small.timescales.model_copy(update={"reference_set": products})
    coinbase = small.coinbase.model_copy(update={"products": products})
    settings = small.model_copy(update={"coinbase": coinbase, "timescales": timescales})
    raw_dir, chain = settings.storage.raw_dir, timescale_specs(settings)["seconds"]
    write_market(raw_dir, hours, products=products, gap_in=hours[1])
    runs.materialize_range(settings, hours[0], hours[-1], list(MARKET[:4]))
    lake = Lake(settings.storage.lake_dir)
    span = hour_window(hours[0])[0], hour_window(hours[-1])[1]
    expected = sorted_rows(lake.read_table("seconds/features", *span).to_pandas())

    raw = [file.path for file in RawReader(raw_dir).files("ticks.raw", 0, 2**62)]
    for files in (raw, [as_frames(raw_dir, tmp_path / "frames.ndjson")]):
        out = tmp_path / "rows.parquet"
        result = replay(files, spec=chain, out=out)
        assert result.trades > 1_000
        found = sorted_rows(pd.read_parquet(out))
        assert list(found.columns) == ["bar_start", "product", *feature_names(chain), "valid", "reason"]
        for name in found.columns:
            pd.testing.assert_series_equal(found[name], expected[name], check_exact=True)
        known = found[[*feature_names(chain)]].notna().any()
        assert known.all(), known[~known].index.tolist()
        assert meaning_of(out) == (features_version(chain), products)


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({"product": str}).sort_values(["bar_start", "product"], ignore_index=True)


def test_a_trade_that_is_none_is_left_out_and_its_frame_still_counts(tmp_path: Path) -> None:
    ticks = numbered(random_ticks(3, seconds=60, per_second=4.0, n_products=1, faults=False))
    path = write_recording(tmp_path / "ticks.ndjson", ticks)
    good = {"product_id": "BTC-USD", "trade_id": "7", "price": "1", "size": "2", "side": "BUY"}
    at = stamp(START_NS + 30 * NS)
    trades = [
        {**good, "time": at},
        {**good, "time": at},  # twice
        {**good, "trade_id": "8", "time": "yesterday"},
        {**good, "trade_id": "nine", "time": at},
        {**good, "trade_id": "10", "size": None, "time": at},
        {**good, "trade_id": "11", "product_id": None, "time": at},
        "no object",
    ]
    for kind, entries in (("update", trades), ("snapshot", [{**good, "trade_id": "12", "time": at}])):
        frame = {"channel": "market_trades", "timestamp": at, "sequence_num": len(ticks)}
        frame["events"] = [{"type": kind, "trades": entries}]
        with path.open("a") as file:
            file.write(json.dumps({"received_at": at, "frame": frame}) + "\n")
    result = replay([path], spec=SPEC, out=tmp_path / "rows.parquet")
    assert (result.trades, result.unreadable, result.kept) == (1, 0, len(ticks))
    rate = pd.read_parquet(tmp_path / "rows.parquet").set_index("bar_start")["ln_trade_rate_15"]
    assert rate.isna().sum() >= 3_600 - 30


def test_without_a_closed_hour_one_line_says_what_to_do(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    raw, spec = settings.storage.raw_dir, timescale_spec(settings.timescales.seconds, "seconds")
    with pytest.raises(ReplayError, match="holds no closed hour: record with `cryptovol ingest`, or name a"):
        replay_module.newest_closed_hour(raw, spec)
    write_market(raw, [FIRST_HOUR], close=False)
    with pytest.raises(ReplayError, match=f"no hour has closed yet, {FIRST_HOUR} is open: wait for its end"):
        replay_module.newest_closed_hour(raw, spec)

"""Recording → features without Dagster: the functions of the hourly assets, streamed hour by hour.

Belongs here: reading recordings in order of time, carrying the look-back from hour to hour, writing the rows.
Does not belong here: any computation on ticks, bars or features.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cryptovol_dagster.core.features.catalogue import features_version
from cryptovol_dagster.core.features.compute import with_cross_features
from cryptovol_dagster.core.features.grid import FeatureGrid, Reason
from cryptovol_dagster.core.features.live import FeatureWindow
from cryptovol_dagster.core.market.bars import TRADES_KNOWN_FOR_NS, build_bars, tick_ahead_ns, tick_reach_ns
from cryptovol_dagster.core.market.cleaning import TickCleaner, TickCounts, clean_trades, order_ticks
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS, hour_key, hour_window
from cryptovol_dagster.lake.atomic import atomic_writer
from cryptovol_dagster.lake.files import stamped
from cryptovol_dagster.lake.look_back import feature_look_back
from cryptovol_dagster.lake.raw_ticks import RawStore, trade_columns
from ingestor.archive.reader import RawReader
from ingestor.envelope import TICKS
from ingestor.errors import CryptovolError
from ingestor.recordings import RecordingCounts, RecordingReader, iter_recording
from ingestor.recordings.raw import RAW_FORMATS, raw_dir_of

#: An hour closes when the recording is past its end by this, as in the live archive.
SETTLE_NS = 120 * NS
#: Frames with trades of a span are searched within this much event time around it, as by the hourly assets.
FRAMES_AROUND_NS = 300 * NS
#: Repeats are searched within this much event time (see `TickCleaner`).
REPEAT_HORIZON_NS = 120 * NS
#: Hours computed in one go once they are closed; more would only cost memory.
HOURS_AT_ONCE = 6
#: A longer hole is a wrong clock or two recordings, not a pause.
LONGEST_HOLE_NS = 31 * DAY_NS


#: Reads the trades of a span: start, end, products.
StoredTrades = Callable[[int, int, Sequence[str]], TradeColumns]


class ReplayError(CryptovolError):
    """A replay that cannot be done; the message is one line."""


@dataclass(frozen=True)
class ReplayResult:
    """Result of a replay.

    Attributes:
        files: recordings read.
        formats: the formats they were recognised as.
        products: products of the recording (or the requested ones).
        start: start of the first hour, UTC.
        end: end of the last hour, UTC.
        lines: lines read, those before the span of the rows included; so are all counts up to `rejected`.
        unreadable: lines without a frame of the exchange.
        missing: sequence numbers missing within connections.
        ticks: ticker entries read.
        kept: ticks used.
        duplicates: ticks left out as repeats.
        late: ticks left out as too late.
        rejected: ticks left out without a usable quote.
        trades: trades in the hours computed, each once.
        rows: (product, bar) rows computed.
        valid_rows: rows that may be scored.
        reasons: rows by reason.
        out_of_bounds: bars of the span that moved too far in one step to be summed.
        feature_hash: version of the features.
        out: where the rows were written, or None.
        seconds: wall time.
    """

    files: int
    formats: tuple[str, ...]
    products: tuple[str, ...]
    start: str
    end: str
    lines: int
    unreadable: int
    missing: int
    ticks: int
    kept: int
    duplicates: int
    late: int
    rejected: int
    trades: int
    rows: int
    valid_rows: int
    reasons: dict[str, int]
    out_of_bounds: int
    feature_hash: str
    out: str | None
    seconds: float


class FeatureStream:
    """Ticks in chunks → features in runs of whole UTC hours, with a look-back of bars carried along.

    The rows are those of one computation over everything at once. State is bounded: the ticks of hours that
    are still open, the bars of the longest window, and the rows kept by `TickCleaner`.
    """

    def __init__(
        self, spec: TimescaleSpec, products: Sequence[str] = (), stored_trades: StoredTrades | None = None
    ) -> None:
        """Begin without ticks.

        Args:
            spec: what to compute.
            products: have rows from the first hour on, others from their first hour.
            stored_trades: reads the trades of a span of these products, where they need not be added.
        """
        self._spec = spec
        self._stored_trades = stored_trades
        self._trades = TradeColumns.empty()
        self.trades = 0
        self._cleaner = TickCleaner(round(spec.late_after_s * NS), REPEAT_HORIZON_NS, products)
        self._open: list[TickColumns] = []
        self._window = FeatureWindow(spec)
        self._newest_ns = 0
        self.start_ns: int | None = None
        self.end_ns: int | None = None
        self.counts = TickCounts()
        self.out_of_bounds = 0

    @property
    def products(self) -> tuple[str, ...]:
        """Products seen so far."""
        return self._cleaner.products

    def add(self, ticks: TickColumns) -> None:
        """Add the next ticks in recorded order.

        Raises:
            ReplayError: event time jumps so far that the hours between would be no data at all.
        """
        cleaned = self._cleaner.add(ticks)
        kept, counts = cleaned.ticks, cleaned.counts
        if self.end_ns is not None:
            too_late = kept.event_time_ns < self.end_ns
            if n_late := int(too_late.sum()):
                kept = kept.take(~too_late)
                counts += TickCounts(kept=-n_late, late=n_late)
        self.counts += counts
        if not len(kept):
            return
        oldest_ns, newest_ns = int(kept.event_time_ns.min()), int(kept.event_time_ns.max())
        if max(newest_ns, self._newest_ns) - min(oldest_ns, self._newest_ns or oldest_ns) > LONGEST_HOLE_NS:
            raise ReplayError(
                f"event time jumps between {_iso(self._newest_ns or oldest_ns)} and "
                f"{_iso(newest_ns if oldest_ns >= self._newest_ns else oldest_ns)}: "
                f"more than {LONGEST_HOLE_NS // DAY_NS} days; replay the parts one by one"
            )
        self._newest_ns = max(newest_ns, self._newest_ns)
        self._open.append(kept)

    def add_trades(self, trades: TradeColumns) -> None:
        """Add the next trades in recorded order."""
        self._trades = TradeColumns.concat([self._trades, trades])

    def close_until(self, watermark_ns: int) -> Iterator[FeatureGrid]:
        """Yield the features of the hours that end `SETTLE_NS` before the watermark: they are complete."""
        settle_ns = max(SETTLE_NS, tick_ahead_ns(self._spec))
        yield from self._close((watermark_ns - settle_ns) // HOUR_NS * HOUR_NS)

    def finish(self) -> Iterator[FeatureGrid]:
        """Yield the features of the hours that are still open."""
        yield from self._close(-(-(self._newest_ns + 1) // HOUR_NS) * HOUR_NS)

    def only(self, start_ns: int, end_ns: int) -> Iterator[FeatureGrid]:
        """Yield the features of whole hours; earlier ones, still open, only serve their windows."""
        for _ in self._close(start_ns):
            pass
        self.out_of_bounds = 0
        yield from self._close(end_ns)

    def _close(self, until_ns: int) -> Iterator[FeatureGrid]:
        if self.end_ns is None:
            if not self._open:
                return
            oldest_ns = min(int(part.event_time_ns.min()) for part in self._open)
            self.start_ns = self.end_ns = oldest_ns // HOUR_NS * HOUR_NS
        while self.end_ns < until_ns:
            yield self._hours(self.end_ns, min(until_ns, self.end_ns + HOURS_AT_ONCE * HOUR_NS))

    def _hours(self, start_ns: int, end_ns: int) -> FeatureGrid:
        spec = self._spec
        ticks = order_ticks(TickColumns.concat([TickColumns.empty(self.products), *self._open]))
        trades = self._trades_of(start_ns, end_ns)
        bars = build_bars(ticks, start_ns=start_ns, end_ns=end_ns, spec=spec, trades=trades)
        self.out_of_bounds += bars.n_out_of_bounds
        self._window.put(bars)
        features = with_cross_features(self._window.features(start_ns), spec)
        self._window.forget_before(end_ns)
        self._open = [ticks.take(ticks.event_time_ns >= end_ns - tick_reach_ns(spec))]
        self.end_ns = end_ns
        return features

    def _trades_of(self, start_ns: int, end_ns: int) -> TradeColumns | None:
        """Return the trades that bars of the span depend on; None without any. Later ones are kept."""
        parts = [self._trades]
        if self._stored_trades is not None:
            parts.append(self._stored_trades(start_ns - TRADES_KNOWN_FOR_NS, end_ns, self.products))
        trades = clean_trades(TradeColumns.concat(parts))
        times = trades.trade_time_ns
        self._trades = trades.take(times >= end_ns - TRADES_KNOWN_FOR_NS)
        self.trades += int(((times >= start_ns) & (times < end_ns)).sum())
        return trades if len(trades) else None


def replay(
    files: Sequence[Path | str],
    *,
    spec: TimescaleSpec,
    products: Sequence[str] | None = None,
    out: Path | str | None = None,
    span_ns: tuple[int, int] | None = None,
) -> ReplayResult:
    """Compute the features of recordings, over the whole UTC hours that cover them.

    Trades are read where the recording has them: frames have, and raw files in `trades.raw` beside them. In
    other formats bars have `has_trades=False`, and the features of trades are null.

    Memory does not grow with the length of the recordings; files may be named in any order and may overlap.

    Args:
        files: recordings in any format of `ingestor.recordings`.
        spec: the timescale.
        products: only these, all of them with rows for every hour; by default every product found, each with
            rows from the hour of its first tick on.
        out: a ``.parquet`` or ``.csv`` file to write, replaced as a whole at the end. Parquet carries the
            feature version, which lets `cryptovol infer` fill in columns that a replay lacks.
        span_ns: rows of these whole hours only, start and end; what was recorded before them serves their
            windows. All of it is held in memory at once.

    Raises:
        ReplayError: no files, no usable tick, a jump of event time, or an `out` that cannot be written.
        RecordingError: a file that is absent, empty, broken or no recording.
    """
    began = time.perf_counter()
    if not files:
        raise ReplayError("no recording named")
    sources = _Sources([Path(file) for file in files], products)
    stream = FeatureStream(spec, products or (), sources.stored_trades)
    reasons: Counter[int] = Counter()
    with _sink(out, spec) as sink:
        for grid in _grids(stream, sources, span_ns):
            _take(grid, sink, reasons)
        if stream.start_ns is None or stream.end_ns is None:
            raise ReplayError(_nothing_usable(sources, stream.counts, products))
    return _result(
        sources,
        stream,
        reasons,
        span=(stream.start_ns if span_ns is None else max(stream.start_ns, span_ns[0]), stream.end_ns),
        version=features_version(spec),
        out=None if out is None else str(out),
        seconds=time.perf_counter() - began,
    )


def _grids(
    stream: FeatureStream, sources: _Sources, span_ns: tuple[int, int] | None
) -> Iterator[FeatureGrid]:
    for ticks, trades, watermark_ns in sources:
        if trades is not None:
            stream.add_trades(trades)
        stream.add(ticks)
        if span_ns is None:
            yield from stream.close_until(watermark_ns)
    yield from stream.finish() if span_ns is None else stream.only(*span_ns)


def _result(
    sources: _Sources,
    stream: FeatureStream,
    reasons: Counter[int],
    *,
    span: tuple[int, int],
    version: str,
    out: str | None,
    seconds: float,
) -> ReplayResult:
    counts = stream.counts
    return ReplayResult(
        files=len(sources.files),
        formats=tuple(dict.fromkeys(count.format for count in sources.counts)),
        products=stream.products,
        start=_iso(span[0]),
        end=_iso(span[1]),
        lines=sum(count.lines for count in sources.counts),
        unreadable=sum(count.unreadable for count in sources.counts),
        missing=sum(count.missing for count in sources.counts),
        ticks=counts.read,
        kept=counts.kept,
        duplicates=counts.duplicates,
        late=counts.late,
        rejected=counts.rejected,
        trades=stream.trades,
        rows=reasons.total(),
        valid_rows=reasons[Reason.OK],
        reasons={reason.name.lower(): reasons[reason] for reason in Reason if reasons[reason]},
        out_of_bounds=stream.out_of_bounds,
        feature_hash=version,
        out=out,
        seconds=seconds,
    )


def _take(grid: FeatureGrid, sink: _Sink, reasons: Counter[int]) -> None:
    for code, rows in enumerate(np.bincount(grid.reason.ravel(), minlength=len(Reason)).tolist()):
        reasons[code] += rows
    sink.write(grid)


def _nothing_usable(sources: _Sources, counts: TickCounts, products: Sequence[str] | None) -> str:
    names = ", ".join(str(path) for path in sources.files)
    seen = sum(count.ticks for count in sources.counts)
    if counts.read:
        return f"{names}: none of {counts.read} ticks has a usable quote"
    if seen and products:
        return f"{names}: {seen} ticks, but none of {', '.join(products)}"
    return f"{names}: holds no tick"


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / NS, tz=UTC).isoformat()


class _Sources:
    """Chunks of several recordings, in order of event time as far as a chunk is long.

    A file is opened once those before it have reached its first tick, so that a thousand hourly files cost
    no more memory than the few that overlap.
    """

    def __init__(self, files: Sequence[Path], products: Sequence[str] | None) -> None:
        resolved = Counter(path.resolve() for path in files)
        if twice := [path for path, times in resolved.items() if times > 1]:
            raise ReplayError(f"{twice[0]}: named more than once")
        self.files = files
        self.counts: list[RecordingCounts] = []
        self._products = products
        folders = dict.fromkeys(map(raw_dir_of, files))
        self._raw = [RawStore(folder) for folder in folders if folder is not None]

    def stored_trades(self, start_ns: int, end_ns: int, products: Sequence[str]) -> TradeColumns:
        """Read the trades of a span from the raw storage that the files lie in, as the hourly assets do."""
        window = (start_ns - FRAMES_AROUND_NS, end_ns + FRAMES_AROUND_NS)
        parts = [raw.trades(*window, products) for raw in self._raw]
        trades = TradeColumns.concat([TradeColumns.empty(), *parts])
        return trades.take((trades.trade_time_ns >= start_ns) & (trades.trade_time_ns < end_ns))

    def __iter__(self) -> Iterator[tuple[TickColumns, TradeColumns | None, int]]:
        """Yield ticks and trades, and the watermark: nothing older follows (but for disorder in a file)."""
        waiting = sorted(((self._first_ns(path), str(path)) for path in self.files), reverse=True)
        reading: dict[str, tuple[int, RecordingReader]] = {}
        while waiting or reading:
            least_ns = min((newest for newest, _ in reading.values()), default=None)
            if waiting and (least_ns is None or waiting[-1][0] <= least_ns):
                first_ns, name = waiting.pop()
                reader = iter_recording(name, products=self._products, with_trades=True)
                self.counts.append(reader.counts)
                reading[name] = (first_ns, reader)
                continue
            name = min(reading, key=lambda key: reading[key][0])
            newest_ns, reader = reading[name]
            chunk = next(reader, None)
            recorded = reader.take_trades()
            trades = None if recorded is None else trade_columns(recorded)
            if chunk is None:
                del reading[name]
                if trades is not None:
                    yield TickColumns.empty(), trades, newest_ns
                continue
            ticks = TickColumns.from_arrays(chunk)
            if len(self.files) > 1 and reader.counts.format not in RAW_FORMATS:
                # A reader's invented names and a recorder's own counters are unique within their file only.
                ticks = _named_by_file(ticks, name)
            reading[name] = (max(newest_ns, int(ticks.event_time_ns.max())), reader)
            watermark_ns = min(newest for newest, _ in reading.values())
            yield ticks, trades, min(watermark_ns, waiting[-1][0]) if waiting else watermark_ns

    def _first_ns(self, path: Path) -> int:
        first = next(iter_recording(path, chunk_lines=1, products=self._products), None)
        # A file without ticks is still read, for its counts.
        return 0 if first is None else int(first["event_time_ns"][0])


def _named_by_file(ticks: TickColumns, name: str) -> TickColumns:
    return replace(ticks, connections=tuple(f"{name}:{own}" for own in ticks.connections))


class _Sink:
    """Accepts grids and keeps nothing."""

    def write(self, grid: FeatureGrid) -> None:
        """Write the next hours."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _FileSink(_Sink):
    """Writes a file that replaces the target at the end; after an error the target is as it was."""

    def __init__(self, path: Path, spec: TimescaleSpec) -> None:
        self._path = path
        self._spec = spec
        self._open = ExitStack()
        self._parquet: pq.ParquetWriter | None = None
        self._has_header = False
        with self._failing():
            self._file = self._open.enter_context(atomic_writer(path))

    def write(self, grid: FeatureGrid) -> None:
        frame = grid.to_frame()
        with self._failing():
            if self._path.suffix == ".csv":
                self._write_csv(frame)
            else:
                self._write_parquet(frame)

    def _write_csv(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self._file, mode="wb", header=not self._has_header, index=False)
        self._has_header = True

    def _write_parquet(self, frame: pd.DataFrame) -> None:
        table = pa.Table.from_pandas(frame.astype({"product": str}), preserve_index=False)
        table = stamped(table, features_version(self._spec), self._spec.reference_set)
        if self._parquet is None:
            writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
            self._parquet = self._open.enter_context(writer)
        self._parquet.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._failing():
            self._open.__exit__(kind, error, trace)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Convert errors of writing to one line with the path."""
        try:
            yield
        except OSError as error:
            raise ReplayError(f"{self._path}: cannot be written: {error.strerror or error}") from error


def _sink(out: Path | str | None, spec: TimescaleSpec) -> _Sink:
    if out is None:
        return _Sink()
    path = Path(out)
    if path.suffix not in (".parquet", ".csv"):
        raise ReplayError(f"{path}: features are written as .parquet or .csv")
    return _FileSink(path, spec)


def newest_closed_hour(raw_dir: Path, spec: TimescaleSpec) -> tuple[str, list[Path]]:
    """Return the newest closed hour with ticks, and the raw files of it and of what its windows reach into.

    Not the running hour: most of it is not recorded yet.

    Raises:
        ReplayError: no hour with ticks has closed; the message says what to do.
        ArchiveError: raw storage cannot be read.
    """
    reader, look_back_ns = RawReader(raw_dir), feature_look_back(spec) * HOUR_NS
    for hour in reversed([hour.hour for hour in reader.closed_hours()]):
        start_ns, end_ns = hour_window(hour)
        if reader.files(TICKS, start_ns, end_ns):
            files = reader.files(TICKS, start_ns - look_back_ns, end_ns + tick_ahead_ns(spec))
            return hour, [file.path for file in files]
    # Raw storage belongs to one system, so its names lack the prefix that separates systems on a broker.
    topic = raw_dir / TICKS
    if running := reader.hours(TICKS):
        raise ReplayError(
            f"{topic}: no hour has closed yet, {hour_key(running[-1])} is open: wait for its end, or name a "
            "recording with --data-file"
        )
    raise ReplayError(
        f"{topic} holds no closed hour: record with `cryptovol ingest`, or name a recording with --data-file"
    )


def product_ids(text: str) -> list[str]:
    """Return the product ids of a comma-separated list, each once.

    Raises:
        ReplayError: it names none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ReplayError("--products has no product")
    return names

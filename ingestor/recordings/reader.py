"""Recordings as tick arrays, chunk by chunk, with memory flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa

from ingestor.exchange.clock import rfc3339_to_ns
from ingestor.exchange.messages import ERROR, TICKER, TRADES
from ingestor.recordings.arrays import (
    ARRAY_FIELDS,
    Recording,
    RecordingCounts,
    TickArrays,
    concatenate,
    tick_arrays,
)
from ingestor.recordings.formats import (
    KNOWN_CHANNELS,
    NO_SEQUENCE,
    FlattenedTickers,
    Frame,
    LineFormat,
    SessionLog,
    recognise,
)
from ingestor.recordings.lines import iter_line_blocks
from ingestor.recordings.raw import iter_raw, raw_format
from ingestor.recordings.sequence import Connection, ConnectionLog
from ingestor.recordings.trades import RecordedTrades

DEFAULT_CHUNK_LINES = 50_000


class RecordingReader(Iterator[TickArrays]):
    """Iterator over a recording's chunks; `counts` grows with it and is complete at its end."""

    def __init__(
        self, chunks: Iterator[TickArrays], counts: RecordingCounts, trades: RecordedTrades | None = None
    ) -> None:
        self._chunks = chunks
        self._trades = trades
        self.counts = counts

    def take_trades(self) -> pa.Table | None:
        """Return the trades read since the last call, in the columns of raw storage; None without any.

        Empty for raw files, whose trades lie in files of their own, and unless trades were asked for.
        """
        return None if self._trades is None else self._trades.take()

    def __next__(self) -> TickArrays:
        return next(self._chunks)


def iter_recording(
    path: Path | str,
    *,
    chunk_lines: int = DEFAULT_CHUNK_LINES,
    products: Sequence[str] | None = None,
    with_trades: bool = False,
) -> RecordingReader:
    """Read a recording of any known format as tick arrays.

    The format is recognised by content. `sequence_num` is −1 where the recording has none.

    `gap_before` comes from the sequence numbers over all frames of a connection, whatever their channel. In
    flattened ticker lines the recorder dropped the other channels, so that a missing number may have been
    only a heartbeat or an ack; nothing proves it, so there too a missing number is a gap, counted and
    flagged. For our own raw files the recorded gaps of `feed.events` beside it decide
    (`counts.gaps_known` is False without them).

    Where the recorder did not name connections, a new one begins where the sequence falls back to 0, or
    falls back at all while time goes on (a repeated frame carries an old time). Lines of two connections
    interleaved without names cannot be distinguished and appear as many short connections.

    Args:
        path: The recording, plain or gzipped.
        chunk_lines: Lines per chunk, which bounds memory.
        products: Keep only these, with their codes in this order; default: all, in order of appearance.
        with_trades: Read trades too, for `RecordingReader.take_trades`.

    Returns:
        An iterator of chunks (those without ticks left out) with `.counts`.

    Raises:
        RecordingError: At once, where the file is absent, empty or no recording; while iterating, where it
            breaks off unreadably. Single unreadable lines are counted, not raised.
    """
    if chunk_lines < 1:
        raise ValueError(f"chunk_lines is {chunk_lines}, not at least 1")
    path = Path(path)
    counts = RecordingCounts()
    if (ours := raw_format(path)) is not None:
        counts.format = ours
        return RecordingReader(iter_raw(path, counts, chunk_lines, products), counts)
    line_format = recognise(path)
    counts.format = line_format.name
    trades = RecordedTrades(products) if with_trades else None
    parser = _LineParser(path, line_format, counts, products, trades)
    return RecordingReader(parser.chunks(chunk_lines), counts, trades)


def read_recording(path: Path | str, products: Sequence[str] | None = None) -> Recording:
    """Read a whole recording into memory; see `iter_recording`.

    Raises:
        RecordingError: The file is absent, empty, unreadable or no recording.
    """
    reader = iter_recording(path, products=products)
    return Recording(concatenate(list(reader), tuple(products or ())), reader.counts)


class _LineParser:
    """Lines of one text format → columns."""

    def __init__(
        self,
        path: Path,
        line_format: LineFormat,
        counts: RecordingCounts,
        products: Sequence[str] | None,
        trades: RecordedTrades | None,
    ) -> None:
        self._path = path
        self._format = line_format
        self._counts = counts
        self._trades = trades
        self._log = ConnectionLog(path.name.partition(".")[0], counts)
        self._observe = self._observer()
        self._codes = {product: code for code, product in enumerate(products or ())}
        self._fixed_products = products is not None
        self._line_number = 0
        self._previous_line = b""

    def chunks(self, chunk_lines: int) -> Iterator[TickArrays]:
        columns = _empty_columns()
        room = chunk_lines
        for block in iter_line_blocks(self._path):
            begin = 0
            while begin < len(block):
                part = block[begin : begin + room]
                self._parse(part, columns)
                begin += len(part)
                room -= len(part)
                if room == 0:
                    if columns["product"]:
                        yield self._arrays(columns)
                        columns = _empty_columns()
                    room = chunk_lines
        if columns["product"]:
            yield self._arrays(columns)
        self._counts.unknown_channels.update(
            {
                channel: count
                for channel, count in self._counts.frames.items()
                if channel not in KNOWN_CHANNELS
            }
        )

    def _arrays(self, columns: dict[str, list]) -> TickArrays:
        return tick_arrays(tuple(self._codes), self._log.names, columns)

    def _parse(self, lines: list[bytes], columns: dict[str, list]) -> None:
        # One flat loop with everything it touches in locals: at 3 µs a line every attribute counts.
        decode, observe, codes = self._format.decode, self._observe, self._codes
        frames, fixed_products, trades = self._counts.frames, self._fixed_products, self._trades
        (
            add_product,
            add_connection,
            add_time,
            add_sequence,
            add_event_index,
            add_entry_index,
            add_bid,
            add_ask,
            add_bid_size,
            add_ask_size,
            add_price,
            add_gap,
        ) = (columns[name].append for name in ARRAY_FIELDS)
        line_number, ticks = self._line_number, 0
        for line in lines:
            line_number += 1
            try:
                frame = decode(line)
                if frame is None:
                    continue
                time_ns = rfc3339_to_ns(frame.timestamp)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                exact = self._exactly(line, line_number)
                if exact is None:
                    continue
                frame, time_ns = exact
            channel = frame.channel
            frames[channel] += 1
            connection = observe(frame.sequence_num, time_ns, line)
            if channel != TICKER:
                if channel == TRADES and trades is not None:
                    trades.add(frame, time_ns)
                continue
            for event_index, event in enumerate(frame.events):
                for entry_index, ticker in enumerate(event.tickers):
                    ticks += 1
                    product = ticker.product_id
                    code = codes.get(product)
                    if code is None and not fixed_products:
                        code = codes[product] = len(codes)
                    if code is not None:
                        add_product(code)
                        add_connection(connection.code)
                        add_time(time_ns)
                        add_sequence(frame.sequence_num)
                        add_event_index(event_index)
                        add_entry_index(entry_index)
                        add_bid(ticker.best_bid)
                        add_ask(ticker.best_ask)
                        add_bid_size(ticker.best_bid_quantity)
                        add_ask_size(ticker.best_ask_quantity)
                        add_price(ticker.price)
                        add_gap(connection.gap_before(product))
        self._counts.ticks += ticks
        self._counts.lines += len(lines)
        self._line_number = line_number

    def _exactly(self, line: bytes, line_number: int) -> tuple[Frame, int] | None:
        """Return a frame that the fast path refused, and its time; None (and count it) without a tick."""
        if not line.strip():
            self._counts.lines -= 1
            return None
        try:
            frame = self._format.decode_exact(line)
            if frame is None:
                return None
            if frame.channel == ERROR:
                self._counts.frames[ERROR] += 1
                return None
            return frame, rfc3339_to_ns(frame.timestamp)
        except ValueError as error:
            self._counts.add_unreadable(line_number, str(error))
            return None

    def _observer(self) -> Callable[[int, int, bytes], Connection]:
        log, line_format = self._log, self._format
        if isinstance(line_format, SessionLog):
            return lambda sequence_num, _time_ns, _line: log.observe_named(
                line_format.connection, sequence_num, holds_opening=line_format.holds_opening
            )
        if isinstance(line_format, FlattenedTickers):
            return self._observe_flattened
        return lambda sequence_num, time_ns, _line: log.observe(sequence_num, time_ns)

    def _observe_flattened(self, sequence_num: int, time_ns: int, line: bytes) -> Connection:
        if sequence_num != NO_SEQUENCE:
            return self._log.observe(sequence_num, time_ns)
        self._counts.gaps_known = False
        if line == self._previous_line:
            self._counts.repeats += 1
        self._previous_line = line
        return self._log.unnumbered()


def _empty_columns() -> dict[str, list]:
    return {name: [] for name in ARRAY_FIELDS}

"""Raw files of this recorder (`ticks.raw`, Parquet or NDJSON) as tick arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import DISORDER_NS, PARQUET_MAGIC, Footer, read_footer
from ingestor.archive.ndjson import LINE_START
from ingestor.archive.reader import RawReader
from ingestor.archive.rows import iter_rows
from ingestor.envelope import EVENTS, TICKS
from ingestor.exchange.messages import TICKER
from ingestor.recordings.arrays import RecordingCounts, TickArrays, tick_arrays
from ingestor.recordings.lines import RecordingError, starts_with
from ingestor.times import NS

#: `RecordingCounts.format` of raw files.
RAW_PARQUET, RAW_NDJSON = "raw Parquet", "raw NDJSON"
RAW_FORMATS = (RAW_PARQUET, RAW_NDJSON)
_COLUMNS = (
    "product_id",
    "connection_id",
    "event_time_ns",
    "sequence_num",
    "event_index",
    "entry_index",
    "best_bid",
    "best_ask",
    "best_bid_quantity",
    "best_ask_quantity",
    "price",
)
#: Connection id → (n, 3): first and last missing number of its recorded gaps, ascending, and event time.
_Gaps = dict[str, npt.NDArray[np.int64]]
#: Codes of the rows, and their names.
_Coded = tuple[npt.NDArray[np.int32], tuple[str, ...]]
#: A product's previous row is searched this far before a file, as the hourly assets do.
_BEFORE_NS = 300 * NS


def raw_format(path: Path) -> str | None:
    """Return which of `RAW_FORMATS` a file begins like; None where it is not a raw file.

    Raises:
        RecordingError: The file cannot be opened.
    """
    if starts_with(path, PARQUET_MAGIC):
        return RAW_PARQUET
    return RAW_NDJSON if starts_with(path, LINE_START) else None


def iter_raw(
    path: Path, counts: RecordingCounts, chunk_rows: int, products: Sequence[str] | None
) -> Iterator[TickArrays]:
    """Read one file of raw storage.

    `gap_before` comes from the `gap` events in `feed.events` of the same raw folder; a file that stands
    elsewhere cannot distinguish a lost message from a heartbeat: no gap is flagged and `counts.gaps_known` is
    False. Rows of records that raw storage could not decode are counted as unreadable.

    Raises:
        RecordingError: The file is not a raw file, is damaged, or has another topic.
    """
    try:
        footer = read_footer(path)
        if footer.topic != TICKS:
            raise RecordingError(f"{path}: contains {footer.topic}, not {TICKS}")
        gaps = _recorded_gaps(path, footer)
        passed = _passed_before(path, footer, gaps) if gaps else {}
    except ArchiveError as error:
        raise RecordingError(str(error)) from error
    counts.gaps_known = gaps is not None
    return _chunks(path, counts, chunk_rows, products, gaps or {}, passed, footer.min_time_ns)


def _chunks(
    path: Path,
    counts: RecordingCounts,
    chunk_rows: int,
    products: Sequence[str] | None,
    gaps: _Gaps,
    gaps_passed: dict[tuple[str, str], int],
    begin_ns: int,
) -> Iterator[TickArrays]:
    product_codes = {product: code for code, product in enumerate(products or ())}
    connection_codes: dict[str, int] = {}
    try:
        for batch in iter_rows(path, _COLUMNS, chunk_rows):
            readable = _readable(batch, counts)
            if products is not None:
                wanted = np.isin(readable["product_id"].to_numpy(zero_copy_only=False), list(products))
                readable = readable.filter(pa.array(wanted))
            if not readable.num_rows:
                continue
            product = _codes(readable["product_id"], product_codes)
            connection = _codes(readable["connection_id"], connection_codes)
            columns = {name: readable[name].to_numpy(zero_copy_only=False) for name in _COLUMNS[2:]}
            connections = tuple(connection_codes)
            yield tick_arrays(
                tuple(product_codes),
                connections,
                {
                    **columns,
                    "product": product,
                    "connection": connection,
                    "bid": columns["best_bid"],
                    "ask": columns["best_ask"],
                    "bid_size": columns["best_bid_quantity"],
                    "ask_size": columns["best_ask_quantity"],
                    "gap_before": _gap_flags(
                        (product, tuple(product_codes)),
                        (connection, connections),
                        columns["sequence_num"],
                        gaps,
                        gaps_passed,
                    ),
                },
            )
    except ArchiveError as error:
        raise RecordingError(f"{error} (after row {counts.lines})") from error
    for connection_id in connection_codes:
        for first, last, known_ns in gaps.get(connection_id, ()):
            if known_ns >= begin_ns:  # else the file before this one counts it
                counts.gaps += 1
                counts.missing += int(last - first + 1)


def _readable(batch: pa.RecordBatch, counts: RecordingCounts) -> pa.RecordBatch:
    """Count the rows; leave out those without a tick."""
    unreadable = np.flatnonzero(batch["product_id"].is_null().to_numpy(zero_copy_only=False))
    for row in unreadable.tolist():
        counts.add_unreadable(counts.lines + row + 1, "a record that raw storage could not decode")
    counts.lines += batch.num_rows
    counts.ticks += batch.num_rows - len(unreadable)
    counts.frames[TICKER] += batch.num_rows - len(unreadable)
    return batch.filter(batch["product_id"].is_valid()) if len(unreadable) else batch


def _codes(column: pa.Array, codes: dict[str, int]) -> npt.NDArray[np.int32]:
    encoded = column.dictionary_encode()
    mapped = [codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist()]
    return np.array(mapped, dtype=np.int32)[encoded.indices.to_numpy()]


def _gap_flags(
    product: _Coded,
    connection: _Coded,
    sequence_num: npt.NDArray[np.int64],
    gaps: _Gaps,
    gaps_passed: dict[tuple[str, str], int],
) -> npt.NDArray[np.bool_]:
    """Flag rows after a gap; `gaps_passed` carries (connection, product) from chunk to chunk."""
    (products, product_names), (connections, connection_names) = product, connection
    flags = np.zeros(len(products), dtype=np.bool_)
    for connection_code in np.unique(connections).tolist():
        recorded = gaps.get(connection_names[connection_code])
        if recorded is None:
            continue
        of_connection = connections == connection_code
        for product_code in np.unique(products[of_connection]).tolist():
            rows = np.flatnonzero(of_connection & (products == product_code))
            passed = np.searchsorted(recorded[:, 0], sequence_num[rows])
            # A product's first row of a connection has no earlier one to miss anything from.
            owner = connection_names[connection_code], product_names[product_code]
            flags[rows] = np.diff(passed, prepend=gaps_passed.get(owner, int(passed[0]))) > 0
            gaps_passed[owner] = int(passed[-1])
    return flags


def _recorded_gaps(path: Path, footer: Footer) -> _Gaps | None:
    """Return the gaps that the feed recorded up to the file's end; None without `feed.events` beside it."""
    topic_dir = _topic_dir(path)
    if topic_dir is None or not topic_dir.with_name(EVENTS).is_dir():
        return None
    events = RawReader(topic_dir.parent).read(
        EVENTS,
        footer.min_time_ns - _BEFORE_NS,
        footer.max_time_ns + 1,
        ["kind", "at_ns", "connection_id", "event_time_ns", "payload"],
    )
    found: dict[str, set[tuple[int, int, int]]] = {}
    for event in events.to_pylist():
        if event["kind"] == "gap":
            detail = json.loads(event["payload"])
            known_ns = event["at_ns"] if event["event_time_ns"] is None else event["event_time_ns"]
            missing = (detail["from_sequence"], detail["to_sequence"], known_ns)
            found.setdefault(event["connection_id"], set()).add(missing)
    return {name: np.array(sorted(ranges), dtype=np.int64) for name, ranges in found.items()}


def _passed_before(path: Path, footer: Footer, gaps: _Gaps) -> dict[tuple[str, str], int]:
    """Return how many gaps of its connection each product had passed with its last row before the file."""
    topic_dir = _topic_dir(path)
    if topic_dir is None or not gaps.keys() & footer.connections.keys():
        return {}
    rows = RawReader(topic_dir.parent).read(
        TICKS,
        footer.min_time_ns - _BEFORE_NS,
        footer.min_time_ns + DISORDER_NS,
        ["kafka_partition", "kafka_offset", "connection_id", "product_id", "sequence_num"],
    )
    newest: dict[tuple[str, str], int] = {}
    for row in rows.to_pylist():
        before = row["kafka_partition"] == footer.partition and row["kafka_offset"] < footer.first_offset
        if before and row["connection_id"] in gaps and row["connection_id"] in footer.connections:
            newest[row["connection_id"], row["product_id"]] = row["sequence_num"]
    return {owner: int(np.searchsorted(gaps[owner[0]][:, 0], sequence)) for owner, sequence in newest.items()}


def raw_dir_of(path: Path) -> Path | None:
    """Return the folder of raw storage that a file of `ticks.raw` lies in; None where it lies elsewhere."""
    topic_dir = _topic_dir(path)
    return None if topic_dir is None else topic_dir.parent


def _topic_dir(path: Path) -> Path | None:
    return next((folder for folder in path.resolve().parents if folder.name == TICKS), None)

"""Our own raw Parquet (`ticks.raw` files) as tick arrays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ingestor.envelope import EVENTS, TICKS
from ingestor.recordings.lines import RecordingError
from ingestor.recordings.model import RecordingCounts, TickArrays, tick_arrays

PARQUET_MAGIC = b"PAR1"
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
_Gaps = dict[str, npt.NDArray[np.int64]]


def iter_raw_parquet(
    path: Path, counts: RecordingCounts, chunk_rows: int, products: Sequence[str] | None
) -> Iterator[TickArrays]:
    """Read one file of raw storage.

    `gap_before` comes from the `gap` events in `feed.events` of the same raw folder; a file that stands
    elsewhere cannot tell a lost message from a heartbeat: no gap is flagged and `counts.gaps_known` is False.

    Raises:
        RecordingError: The file is no Parquet of ours, is damaged, or holds another topic.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(f"{path}: unreadable Parquet: {_one_line(error)}") from error
    missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise RecordingError(f"{path}: not a {TICKS} file: column {missing[0]} is missing")
    if file.metadata.num_rows == 0:
        raise RecordingError(f"{path}: empty recording")
    return _chunks(path, file, counts, chunk_rows, products)


def _chunks(
    path: Path,
    file: pq.ParquetFile,
    counts: RecordingCounts,
    chunk_rows: int,
    products: Sequence[str] | None,
) -> Iterator[TickArrays]:
    product_codes = {product: code for code, product in enumerate(products or ())}
    connection_codes: dict[str, int] = {}
    gaps = _recorded_gaps(path)
    counts.gaps_known = gaps is not None
    gaps_at_entry: Counter[tuple[int, int]] = Counter()
    try:
        for batch in file.iter_batches(batch_size=chunk_rows, columns=list(_COLUMNS)):
            counts.lines += batch.num_rows
            counts.ticks += batch.num_rows
            counts.frames["ticker"] += batch.num_rows
            if products is not None:
                wanted = np.isin(batch["product_id"].to_numpy(zero_copy_only=False), list(products))
                batch = batch.filter(pa.array(wanted))
            if not batch.num_rows:
                continue
            product = _codes(batch["product_id"], product_codes)
            connection = _codes(batch["connection_id"], connection_codes)
            columns = {name: batch[name].to_numpy(zero_copy_only=False) for name in _COLUMNS[2:]}
            gap_before = _gap_flags(
                product,
                connection,
                columns["sequence_num"],
                tuple(connection_codes),
                gaps or {},
                gaps_at_entry,
            )
            yield tick_arrays(
                tuple(product_codes),
                tuple(connection_codes),
                {
                    "product": product,
                    "connection": connection,
                    "bid": columns["best_bid"],
                    "ask": columns["best_ask"],
                    "bid_size": columns["best_bid_quantity"],
                    "ask_size": columns["best_ask_quantity"],
                    "gap_before": gap_before,
                    **columns,
                },
            )
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(
            f"{path}: row {counts.lines + 1}: unreadable Parquet: {_one_line(error)}"
        ) from error
    for connection_id in connection_codes:
        for first, last in (gaps or {}).get(connection_id, ()):
            counts.gaps += 1
            counts.missing += int(last - first + 1)


def _codes(column: pa.Array, codes: dict[str, int]) -> npt.NDArray[np.int32]:
    encoded = column.dictionary_encode()
    mapped = [codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist()]
    return np.array(mapped, dtype=np.int32)[encoded.indices.to_numpy()]


def _gap_flags(
    product: npt.NDArray[np.int32],
    connection: npt.NDArray[np.int32],
    sequence_num: npt.NDArray[np.int64],
    connections: tuple[str, ...],
    gaps: _Gaps,
    gaps_at_entry: Counter[tuple[int, int]],
) -> npt.NDArray[np.bool_]:
    flags = np.zeros(len(product), dtype=np.bool_)
    for connection_code in np.unique(connection):
        recorded = gaps.get(connections[connection_code])
        if recorded is None:
            continue
        of_connection = connection == connection_code
        for product_code in np.unique(product[of_connection]):
            rows = np.flatnonzero(of_connection & (product == product_code))
            passed = np.searchsorted(recorded[:, 0], sequence_num[rows])
            key = (int(connection_code), int(product_code))
            flags[rows] = np.diff(passed, prepend=gaps_at_entry[key]) > 0
            gaps_at_entry[key] = int(passed[-1])
    return flags


def _recorded_gaps(path: Path) -> _Gaps | None:
    """Gaps by connection, (n, 2) first and last missing number; None where no `feed.events` stand beside."""
    topic_dir = next((folder for folder in path.resolve().parents if folder.name.endswith(TICKS)), None)
    if topic_dir is None:
        return None
    events_dir = topic_dir.with_name(topic_dir.name.removesuffix(TICKS) + EVENTS)
    if not events_dir.is_dir():
        return None
    found: dict[str, set[tuple[int, int]]] = {}
    for events_path in sorted(events_dir.rglob("*.parquet")):
        try:
            table = pq.ParquetFile(events_path).read(["kind", "connection_id", "payload"])
        except (pa.ArrowException, OSError) as error:
            raise RecordingError(f"{events_path}: unreadable Parquet: {_one_line(error)}") from error
        for event in table.to_pylist():
            if event["kind"] != "gap":
                continue
            detail = json.loads(event["payload"])
            found.setdefault(event["connection_id"], set()).add(
                (detail["from_sequence"], detail["to_sequence"])
            )
    return {name: np.array(sorted(ranges), dtype=np.int64) for name, ranges in found.items()}


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

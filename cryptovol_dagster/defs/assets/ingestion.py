"""The front of the graph: the recorder's topics (external assets), the gap ledger, and the clean ticks."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import dagster as dg
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cryptovol_dagster.core.market.cleaning import TICKS_VERSION, clean_ticks, clean_trades
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.defs.assets.declare import Body
from cryptovol_dagster.defs.metadata import OWNERS, schema_metadata, shown
from cryptovol_dagster.defs.partitions import look_back
from cryptovol_dagster.defs.pools import MARKET
from cryptovol_dagster.defs.retries import retried
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import LEDGER, NEXT_TICKS, TICKS, TRADES, read_sequence_gaps
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.audit.findings import COUNTS, Loss
from ingestor.settings import Settings

_Columns = TypeVar("_Columns", TickColumns, TradeColumns)
GROUP = "ingestion"
TAGS = {"source": "coinbase"}
#: Increased when the ledger's rows change their meaning.
LEDGER_VERSION = "1"
#: Read around the hour, so that late or repeated rows at its edges are judged as in the middle of it.
MARGIN_NS = 300 * NS

LEDGER_SCHEMA = pa.schema(
    [
        ("connection_id", pa.string()),
        ("kind", pa.string()),
        ("from_sequence", pa.int64()),
        ("to_sequence", pa.int64()),
        ("count", pa.int64()),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("detail", pa.string()),
        ("in_hour", pa.bool_()),
    ]
)
LEDGER_COLUMNS = {
    "kind": "sequence: reported by the feed; in_flight: at least, of a killed recorder; between: from one "
    "connection to the next; offsets: lost by the broker",
    "count": "numbers (or offsets) lost; null where unknown",
    "start_ns": "event time of the last thing known before",
    "end_ns": "event time of the first thing known after; it decides the hour",
    "detail": "further facts, JSON",
    "in_hour": f"whether it ends in this hour; false within {MARGIN_NS // NS} s around it",
}
TICK_COLUMNS = {
    "event_time_ns": "the exchange's time, UTC nanoseconds",
    "sequence_num": "of the frame within its connection; -1 unknown",
    "gap_before": "messages were lost between the product's previous tick and this one",
    "price": "last trade; usually outside [bid, ask]",
}


def external_assets(settings: Settings, hours: dg.PartitionsDefinition) -> list[dg.AssetSpec]:
    """Declare the sources that exist before any run of Dagster."""
    topic = f"{settings.kafka.topic_prefix}ticks.raw"
    return [
        dg.AssetSpec(
            "ticks_raw_topic",
            description=f"Kafka topic {topic}: every entry of the exchange's ticker channel, as received. "
            "Written by `cryptovol ingest`.",
            group_name=GROUP,
            owners=OWNERS,
            kinds={"kafka"},
            tags=TAGS,
        ),
        dg.AssetSpec(
            "raw_ticks",
            deps=["ticks_raw_topic"],
            description="Raw storage: every Kafka message exactly once, by hour of event time. "
            "Written by the recorder's archive; the sensor `closed_hours` reports a closed hour here.",
            group_name=GROUP,
            owners=OWNERS,
            kinds={"parquet"},
            tags=TAGS,
            partitions_def=hours,
            metadata=shown(links={"folder": settings.storage.raw_dir}),
        ),
    ]


def _feed_asset(
    name: str,
    hours: dg.PartitionsDefinition,
    *,
    deps: Sequence[str | dg.AssetDep],
    version: str,
    metadata: Mapping[str, Any],
) -> Callable[[Body], dg.AssetsDefinition]:
    """Declare an asset that belongs to the feed and to no chain."""
    return dg.asset(
        key=name,
        deps=deps,
        partitions_def=hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=GROUP,
        owners=OWNERS,
        pool=MARKET,
        kinds={"python", "parquet"},
        tags=TAGS,
        code_version=version,
        metadata=metadata,
    )


def gap_ledger_asset(hours: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the asset `gap_ledger`."""

    @_feed_asset(
        LEDGER,
        hours,
        deps=[look_back("raw_ticks", 1)],
        version=LEDGER_VERSION,
        metadata=schema_metadata(LEDGER_SCHEMA, LEDGER_COLUMNS),
    )
    @retried
    def gap_ledger(
        context: dg.AssetExecutionContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        """Known losses of an hour: gaps of sequence numbers, killed recorders, holes, lost offsets.

        Computed by the audit of `cryptovol audit`, whose counts are in the metadata: every sequence number of
        the hour is stored, a control frame, a dead letter, or in here.
        """
        for key in context.partition_keys:
            context.add_asset_metadata(_write_ledger(raw, lake, key), partition_key=key)
        return dg.MaterializeResult()

    return gap_ledger


def _write_ledger(raw: RawStore, lake: Lake, key: str) -> dict[str, object]:
    start_ns, end_ns = hour_window(key)
    found = raw.audit(start_ns - MARGIN_NS, end_ns + MARGIN_NS, with_seals=False)
    rows = [_ledger_row(loss, start_ns, end_ns) for loss in found.losses]
    path = lake.write_table(LEDGER, key, pa.Table.from_pylist(rows, LEDGER_SCHEMA))
    own = [row for row in rows if row["in_hour"]]
    lines = [line for line in found.lines if line.hour_ns == start_ns]
    return shown(
        rows=len(own),
        numbers={
            **{f"rows_{kind}": count for kind, count in sorted(Counter(row["kind"] for row in own).items())},
            **{f"numbers_{name}": sum(getattr(line, name) for line in lines) for name in COUNTS},
        },
        links={"path": path},
    )


def _ledger_row(loss: Loss, start_ns: int, end_ns: int) -> dict[str, object]:
    columns = {name: getattr(loss, name) for name in LEDGER_SCHEMA.names if name not in ("detail", "in_hour")}
    return columns | {
        "detail": json.dumps(loss.detail, sort_keys=True),
        "in_hour": start_ns <= loss.end_ns < end_ns,
    }


def ticks_asset(
    settings: Settings, hours: dg.PartitionsDefinition, late_after_s: float
) -> dg.AssetsDefinition:
    """Build the asset `ticks`."""
    products = settings.coinbase.products

    @_feed_asset(
        TICKS,
        hours,
        deps=[look_back("raw_ticks", 1), LEDGER],
        version=f"{TICKS_VERSION}-{late_after_s:g}",
        metadata=schema_metadata(TickColumns.empty().to_table().schema, TICK_COLUMNS),
    )
    @retried
    def ticks(
        context: dg.AssetExecutionContext, raw: dg.ResourceParam[RawStore], lake: dg.ResourceParam[Lake]
    ) -> dg.MaterializeResult:
        """Clean ticks of an hour: each message once, in order, with a usable quote.

        Left out and counted: repeats, messages more than two seconds older than their product's newest, and
        quotes that are absent, non-positive or crossed. The hour's trades are written beside them (`trades`
        in the lake), and each product's first tick after the hour (`next_ticks`), which says whether
        something was lost up to it.
        """
        for key in context.partition_keys:
            context.add_asset_metadata(
                _write_hour(raw, lake, key, products, int(late_after_s * NS)), partition_key=key
            )
        return dg.MaterializeResult()

    return ticks


def _write_hour(
    raw: RawStore, lake: Lake, key: str, products: Sequence[str], late_after_ns: int
) -> dict[str, object]:
    start_ns, end_ns = hour_window(key)
    window = (start_ns - MARGIN_NS, end_ns + MARGIN_NS)
    recorded = raw.ticks(*window, products, _first_missing(read_sequence_gaps(lake, key)))
    cleaned = clean_ticks(recorded, late_after_ns)
    ticks = _inside(cleaned.ticks, cleaned.ticks.event_time_ns, start_ns, end_ns)
    trades = clean_trades(raw.trades(*window, products))
    trades = _inside(trades, trades.trade_time_ns, start_ns, end_ns)

    lake.write_table(TRADES, key, trades.to_table())
    lake.write_table(NEXT_TICKS, key, _first_of_each_product(cleaned.ticks, end_ns).to_table())
    path = lake.write_table(TICKS, key, ticks.to_table())
    read = int(((recorded.event_time_ns >= start_ns) & (recorded.event_time_ns < end_ns)).sum())
    counts = cleaned.counts
    return shown(
        rows=len(ticks),
        numbers={
            "read": read,
            "kept": len(ticks),
            "left_out": read - len(ticks),
            "trades": len(trades),
            "gaps": int(ticks.gap_before.sum()),
            "connections": len(set(ticks.connection.tolist())),
            **_closing(raw, key),
            "with_margins": {
                "read": counts.read,
                "kept": counts.kept,
                "duplicates": counts.duplicates,
                "late": counts.late,
                "rejected": counts.rejected,
                "note": f"reasons are counted with {MARGIN_NS // NS} s around the hour",
            },
        },
        links={"path": path},
    )


def _closing(raw: RawStore, key: str) -> dict[str, object]:
    """Return which record of the closed hour this was computed from, so that a rebuild shows its reason."""
    closed = raw.closed_hour(key)
    return {} if closed is None else {"revision": closed.revision, "late_rows": closed.late_rows}


def _first_missing(ledger: pa.Table) -> Mapping[str, NDArray[np.int64]]:
    """Return the first missing number of every gap, ascending, by connection."""
    firsts: dict[str, set[int]] = {}
    for row in ledger.select(["connection_id", "from_sequence"]).to_pylist():
        firsts.setdefault(row["connection_id"], set()).add(row["from_sequence"])
    return {name: np.array(sorted(numbers), dtype=np.int64) for name, numbers in firsts.items()}


def _first_of_each_product(ticks: TickColumns, from_ns: int) -> TickColumns:
    later = np.flatnonzero(ticks.event_time_ns >= from_ns)
    _, first = np.unique(ticks.product[later], return_index=True)
    return ticks.take(later[first])


def _inside(columns: _Columns, times: NDArray[np.int64], start_ns: int, end_ns: int) -> _Columns:
    return columns.take((times >= start_ns) & (times < end_ns))

"""Tables that are computed on request: scores of stored features, coverage by hour, the gap ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from cryptovol_dagster.api.columns import COVERAGE_KIND, FEATURES, PRODUCT
from cryptovol_dagster.api.reading import Query
from cryptovol_dagster.api.spans import shown
from cryptovol_dagster.core.learning.dataset import KEY_COLUMNS
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.market import LEDGER
from cryptovol_dagster.lake.market import TICKS as TICKS_ASSET

if TYPE_CHECKING:
    from cryptovol_dagster.inference.scorer import Scorer

#: Explicit types, because a partition may have no requested row, and then no value has a type.
_SCORES_SCHEMA = pa.schema(
    [
        ("bar_start", pa.timestamp("ns", "UTC")),
        (PRODUCT, pa.dictionary(pa.int32(), pa.string())),
        ("probability", pa.float64()),
        ("flag", pa.bool_()),
        ("reason", pa.string()),
    ]
)


def scorer_of(lake: Lake, spec: TimescaleSpec, reports: Reports, model: str | Path | None) -> Scorer:
    """Find the model that scores: a name, a file, or the champion.

    Raises:
        InferError: there is none, or it is another chain's.
        ModelError: the file is not a model file.
        DecisionError: the newest decision cannot be read.
    """
    from cryptovol_dagster.inference.scorer import find_scorer

    is_file = isinstance(model, Path) or (model is not None and model.endswith(".zip"))
    path = Path(model) if model is not None and is_file else None
    return find_scorer(lake, spec, reports, name=None if is_file else model, path=path)  # type: ignore[arg-type]


def described(scorer: Scorer) -> dict[str, str]:
    """Return which model scored, where it flags, and up to when it has learned; as words."""
    point = "none is stored" if scorer.threshold is None else f"{scorer.threshold:.6g}"
    return {
        "model": scorer.version,
        "source": scorer.source,
        "operating_point": point,
        "learned_until": shown(scorer.model.meta.train_end_ns),
    }


def score_partitions(query: Query, scorer: Scorer) -> Iterator[tuple[str, pa.Table]]:
    """Score stored features partition by partition.

    Args:
        query: of features; its columns are ignored.
        scorer: the model.

    Raises:
        ApiError: nothing is stored there.
        InferError: the rows are of another feature set than the model was trained on.
        LakeError: a file cannot be read.
    """
    from cryptovol_dagster.inference.scorer import FeatureRows, require_same_features, score

    wanted = [*KEY_COLUMNS, *scorer.model.meta.inputs]
    for key in query.partitions():
        version = query.lake.versions(query.asset, *partition_window(key))[key]
        reference_set, source = query.lake.reference_set(query.asset, key), f"{query.asset} of {key}"
        require_same_features(scorer.model.meta, source, version, reference_set)
        table = query.lake.read_partition(query.asset, key, wanted)
        frame = _wanted_rows(table, query)
        scores = score(FeatureRows(frame, source, version, reference_set), scorer)
        words = sorted(scores[PRODUCT].unique())
        scores[PRODUCT] = pd.Categorical(scores[PRODUCT], categories=pd.Index(words, dtype=str))
        table = pa.Table.from_pandas(scores, schema=_SCORES_SCHEMA, preserve_index=False)
        yield key, table.replace_schema_metadata()


def _wanted_rows(table: pa.Table, query: Query) -> pd.DataFrame:
    frame = table.to_pandas()
    mask = pd.Series(True, index=frame.index)
    if query.start_ns is not None:
        mask &= frame["bar_start"] >= pd.Timestamp(query.start_ns, tz="UTC")
    if query.end_ns is not None:
        mask &= frame["bar_start"] < pd.Timestamp(query.end_ns, tz="UTC")
    if query.products is not None:
        mask &= frame["product"].isin(query.products)
    return frame if mask.all() else frame.loc[mask].reset_index(drop=True)


def coverage(bars: Query, features: Query, labels: Query, partition_ns: int) -> pd.DataFrame:
    """Return the counts of each product in each hour (or day), holes included.

    Args:
        bars: of the span.
        features: of the same span, of any product: one may have none.
        labels: as features; a partition of them contains the labels that matured in it.
        partition_ns: length of an hour or a day.

    Raises:
        ApiError: no bars are stored there.
        LakeError: a file cannot be read.
    """
    found = _by_product(
        bars,
        {"in_gap": "mean", "updates": "sum", "trades": "sum", "stale": "mean", "lossy": "mean"},
    )
    found = found.rename(columns={"updates": "messages"})
    found["recorded"] = 1 - found["in_gap"]
    for name, query in (("features", features), ("labels", labels)):
        known = "valid" if name == FEATURES else "labelled"
        found[name] = (
            _by_product(query, {known: "mean"})[known] if query.stored_partitions() else float("nan")
        )
    every = starts = found.index.unique("start")
    if len(starts):
        every = pd.date_range(starts.min(), starts.max(), freq=pd.Timedelta(partition_ns, "ns"))
    found = found.reindex(
        pd.MultiIndex.from_product([every, found.index.unique(PRODUCT)], names=found.index.names)
    )
    found[["recorded", "messages"]] = found[["recorded", "messages"]].fillna(0)
    names = [column.name for column in COVERAGE_KIND.columns]
    return found.astype({"messages": "int64"}).reset_index(PRODUCT).reindex(columns=[PRODUCT, *names])


def _by_product(query: Query, measures: dict[str, str]) -> pd.DataFrame:
    """Aggregate columns of each partition by product; the index is `start` and `product`."""

    def aggregate(key: str) -> pd.DataFrame:
        table = query.read(key)
        if "labelled" in measures:
            table = table.append_column("labelled", table["volatility_bps"].is_valid())
        found = table.group_by(PRODUCT).aggregate(list(measures.items())).to_pandas()
        found["start"] = pd.Timestamp(partition_window(key)[0], tz="UTC")
        return found.astype({PRODUCT: str})

    frame = pd.concat([found for _, found in query.each(aggregate)])
    frame = frame.rename(columns={f"{name}_{how}": name for name, how in measures.items()})
    return frame.set_index(["start", PRODUCT]).sort_index()


def gaps(lake: Lake, span: tuple[int | None, int | None], products: tuple[str, ...] | None) -> pd.DataFrame:
    """Return the losses of the gap ledger that touch a span, by time.

    A loss is a connection's, and so of every product that it carries.

    Args:
        lake: where the ledger is.
        span: start and end; None is an open end.
        products: leave out losses of connections that carried none of these; None: all losses.

    Raises:
        LakeError: a file cannot be read.
    """
    start_ns, end_ns = span
    # Stored under the hour in which it ends, which may be after the span.
    keys = [key for key in lake.partitions(LEDGER) if start_ns is None or partition_window(key)[1] > start_ns]
    tables = [lake.read_partition(LEDGER, key) for key in keys]
    if not tables:
        return _ledger_frame(pd.DataFrame())
    losses = pa.concat_tables(tables).to_pandas(integer_object_nulls=True)
    losses = losses.loc[losses["in_hour"]]
    if start_ns is not None:
        losses = losses.loc[losses["end_ns"] > start_ns]
    if end_ns is not None:
        losses = losses.loc[losses["start_ns"] < end_ns]
    if products is not None and len(losses):
        carried = cache(partial(_carried, lake))
        losses = losses.loc[[_concerns(lake, carried, row, products) for row in losses.itertuples()]]
    return _ledger_frame(losses)


_LEDGER_COLUMNS = [
    "start_ns", "end_ns", "kind", "count", "connection_id", "from_sequence", "to_sequence", "detail",
]  # fmt: skip


def _ledger_frame(losses: pd.DataFrame) -> pd.DataFrame:
    frame = losses.reindex(columns=_LEDGER_COLUMNS)
    frame = frame.rename(columns={"start_ns": "start", "end_ns": "end", "count": "lost"})
    for name in ("start", "end"):
        frame[name] = pd.to_datetime(frame[name].astype("int64"), utc=True)
    for name in ("lost", "from_sequence", "to_sequence"):
        frame[name] = frame[name].astype("Int64")
    frame.insert(2, "seconds", (frame["end"] - frame["start"]).dt.total_seconds())
    return frame.set_index("start").sort_index(kind="stable")


def _concerns(
    lake: Lake, carried: Callable[[str], dict[str, set[str]]], loss: Any, products: tuple[str, ...]
) -> bool:
    """Return whether a loss may affect these products: its connection carried at least one of them."""
    keys = lake.written(TICKS_ASSET, loss.start_ns, loss.end_ns + 1)
    found = set[str]().union(*(carried(key).get(loss.connection_id, ()) for key in keys))
    return not found or bool(found & set(products))


def _carried(lake: Lake, key: str) -> dict[str, set[str]]:
    """Return the products that each connection carried in an hour."""
    table = lake.read_partition(TICKS_ASSET, key, ["connection_id", "product_id"])
    found = defaultdict(set)
    for row in table.group_by(["connection_id", "product_id"]).aggregate([]).to_pylist():
        found[row["connection_id"]].add(row["product_id"])
    return found

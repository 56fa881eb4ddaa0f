"""Checks from the gap ledger to the features."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg
import numpy as np

from cryptovol_dagster.core.features.catalogue import optional_feature_names
from cryptovol_dagster.core.learning.dataset import KEY_COLUMNS
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import hour_window, iso_utc, partition_window
from cryptovol_dagster.defs import schemas
from cryptovol_dagster.defs.assets.ingestion import LEDGER_SCHEMA
from cryptovol_dagster.defs.checks.framework import Check, RawRule, Rule, Stored
from cryptovol_dagster.defs.checks.schema import schema_check
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.lake.market import LEDGER, TICKS, read_sequence_gaps, read_ticks
from cryptovol_dagster.lake.raw_ticks import RawStore

#: Shares from which checks warn; none of them harms a model, since such rows are never learned from.
MAX_GAP_SHARE = 0.2


def _unaccounted(raw: RawStore, keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the findings of the audit, by hour."""
    found: dict[str, list[str]] = {key: [] for key in keys}
    for finding in raw.audit(hour_window(min(keys))[0], hour_window(max(keys))[1]).findings:
        if finding.hour in found:
            found[finding.hour].append(finding.text)
    return found


def _not_recorded(raw: RawStore, keys: Sequence[str]) -> dict[str, list[str]]:
    """Find hours without a recording, which is not the same as a quiet hour."""
    recorded = raw.recorded_hours()
    return {
        key: []
        if key in recorded or raw.closed_hour(key) is not None
        else ["expected raw storage to contain the hour, or to have closed it empty; found no files of it"]
        for key in keys
    }


def ledger_checks() -> list[Check]:
    """Declare the checks of `gap_ledger`."""
    return [
        schema_check(
            dg.AssetKey(LEDGER),
            LEDGER_SCHEMA,
            description="Columns and types are those that ticks and bars read.",
        ),
        Check(
            dg.AssetKey(LEDGER),
            "nothing_unaccounted_for",
            RawRule(_unaccounted),
            description="Every sequence number of the hour is stored, a control frame, a dead letter or in "
            "the ledger, every Kafka offset is stored or recorded as lost, and a sealed hour is as it was.",
            blocking=True,
        ),
        Check(
            dg.AssetKey(LEDGER),
            "recorded",
            RawRule(_not_recorded),
            description="The hour was recorded: raw storage has files of it, or closed it empty.",
        ),
    ]


def tick_checks() -> list[Check]:
    """Declare the checks of `ticks`."""
    ticks = dg.AssetKey(TICKS)
    return [
        schema_check(
            ticks,
            TickColumns.empty().to_table().schema,
            description="Columns and types are those that the core reads.",
        ),
        Check(
            ticks,
            "ordered_inside_the_hour",
            _ordered_ticks,
            description="Ticks of a product are in order of time and inside their hour.",
            blocking=True,
        ),
        Check(
            ticks,
            "no_crossed_quotes",
            _usable_quotes,
            description="Every quote is positive and its bid does not exceed its ask.",
            blocking=True,
        ),
    ]


def tick_bar_checks(spec: TimescaleSpec, products: Sequence[str]) -> list[Check]:
    """Declare the check that applies only to bars computed from ticks."""
    return [
        Check(
            asset_key(spec, "bars"),
            "no_return_across_a_loss",
            _no_return_across_a_loss(spec, products),
            description="No bar has a known return between a product's ticks around a ledgered gap.",
            blocking=True,
        ),
    ]


def grid_checks(spec: TimescaleSpec, products: Sequence[str]) -> list[Check]:
    """Declare the checks of a grid's bars and features."""
    bars, features = asset_key(spec, "bars"), asset_key(spec, "features")
    return [
        schema_check(bars, schemas.bars(spec)),
        schema_check(features, schemas.features(spec)),
        Check(
            bars,
            "complete_grid",
            _complete_grid(spec, products),
            description="Every product has every bar of the partition once, in order.",
            blocking=True,
        ),
        Check(
            bars,
            "gap_share",
            _gap_share,
            description=f"At most {MAX_GAP_SHARE:.0%} of a product's bars are in a gap.",
        ),
        Check(
            features,
            "finite_where_valid",
            _finite_where_valid(spec),
            description="A row that may be scored has finite numbers; only optional features may be null.",
            blocking=True,
        ),
    ]


def _ordered_ticks(stored: Stored) -> list[str]:
    start_ns, end_ns = hour_window(stored.key)
    frame = stored.frame(["product_id", "event_time_ns"])
    sentences = []
    outside = frame[(frame["event_time_ns"] < start_ns) | (frame["event_time_ns"] >= end_ns)]
    if len(outside):
        first = outside.iloc[0]
        sentences.append(
            f"expected event times inside the hour, found {len(outside)} of {len(frame)} outside, the first "
            f"{first['product_id']} at {first['event_time_ns']} ns"
        )
    for product, times in frame.groupby("product_id", observed=True)["event_time_ns"]:
        back = np.flatnonzero(np.diff(times.to_numpy()) < 0)
        if back.size:
            sentences.append(
                f"{product}: expected ascending event times, found {back.size} steps back, the first after "
                f"{times.iloc[back[0]]} ns"
            )
    return sentences


def _usable_quotes(stored: Stored) -> list[str]:
    frame = stored.frame(["product_id", "event_time_ns", "bid", "ask"])
    bad = frame[~((frame["bid"] > 0) & (frame["bid"] <= frame["ask"]) & np.isfinite(frame["ask"]))]
    if bad.empty:
        return []
    first = bad.iloc[0]
    return [
        f"expected 0 < bid <= ask, found {len(bad)} of {len(frame)} ticks without, the first "
        f"{first['product_id']} at {first['event_time_ns']} ns: bid {first['bid']:g}, ask {first['ask']:g}"
    ]


def _complete_grid(spec: TimescaleSpec, products: Sequence[str]) -> Rule:
    def rule(stored: Stored) -> list[str]:
        start_ns, end_ns = partition_window(stored.key)
        expected = np.arange(start_ns, end_ns, spec.bar_ns)
        frame = stored.frame(["bar_start", "product"])
        absent = sorted(set(products) - set(frame["product"]))
        sentences = [f"{product}: expected {expected.size} bars in order, found none" for product in absent]
        for product, starts in frame.groupby("product", observed=True)["bar_start"]:
            found = starts.to_numpy(dtype="datetime64[ns]").astype(np.int64)
            if np.array_equal(found, expected):
                continue
            missing = np.setdiff1d(expected, found)
            first = f", the first at {iso_utc(int(missing[0]))}" if missing.size else ""
            sentences.append(
                f"{product}: expected {expected.size} bars in order, found {found.size} "
                f"({missing.size} missing{first})"
            )
        return sentences

    return rule


def _no_return_across_a_loss(spec: TimescaleSpec, products: Sequence[str]) -> Rule:
    """Find a gap's bars by sequence numbers, not by the flags of the bars."""

    def rule(stored: Stored) -> list[str]:
        losses = read_sequence_gaps(stored.lake, stored.key).to_pylist()
        if not losses:
            return []
        ticks = read_ticks(stored.lake, stored.key, tuple(products))
        bars = stored.frame(["bar_start", "product", "ret_ok"])
        starts = bars["bar_start"].to_numpy(dtype="datetime64[ns]").astype(np.int64)
        sentences = []
        for loss in losses:
            for since_ns, until_ns, product in _spans_without_messages(ticks, loss, spec):
                inside = (starts + spec.bar_ns > since_ns) & (starts <= until_ns)
                wrong = np.flatnonzero(inside & bars["ret_ok"] & (bars["product"] == product))
                if wrong.size:
                    sentences.append(
                        f"{product}: expected no return from {iso_utc(since_ns)} to {iso_utc(until_ns)} "
                        f"(connection {loss['connection_id']} lost {loss['from_sequence']} to "
                        f"{loss['to_sequence']}), found {wrong.size}, the first at "
                        f"{iso_utc(int(starts[wrong[0]]))}"
                    )
        return sentences

    return rule


def _spans_without_messages(
    ticks: TickColumns, loss: dict[str, Any], spec: TimescaleSpec
) -> Iterator[tuple[int, int, str]]:
    """Yield start, end (ns) and product of each span in a gap that has ticks on both sides."""
    if loss["connection_id"] not in ticks.connections:
        return
    of_connection = ticks.connection == ticks.connections.index(loss["connection_id"])
    for code, product in enumerate(ticks.products):
        of_product = ticks.product == code
        own = np.flatnonzero(of_connection & of_product)
        after = own[ticks.sequence_num[own] > loss["to_sequence"]]
        if not after.size or not (ticks.sequence_num[own] < loss["from_sequence"]).any():
            continue
        first = after[np.argmin(ticks.sequence_num[after])]
        until_ns = int(ticks.event_time_ns[first])
        before_ns = int(ticks.event_time_ns[:first][of_product[:first]].max(initial=0))
        yield max(before_ns, until_ns - round(spec.gap_after_s * NS)), until_ns, product


def _gap_share(stored: Stored) -> list[str]:
    shares = stored.frame(["product", "in_gap"]).groupby("product", observed=True)["in_gap"].mean()
    return [
        f"{product}: expected at most {MAX_GAP_SHARE:.0%} of the bars in a gap, found {share:.0%}"
        for product, share in shares.items()
        if share > MAX_GAP_SHARE
    ]


def _finite_where_valid(spec: TimescaleSpec) -> Callable[[Stored], list[str]]:
    optional = optional_feature_names(spec)

    def find(stored: Stored) -> list[str]:
        frame = stored.frame()
        valid = frame.loc[frame["valid"]]
        sentences = []
        for name in [name for name in frame.columns if name not in KEY_COLUMNS]:
            values = np.asarray(valid[name], dtype=np.float64)
            bad = valid.loc[np.isinf(values) if name in optional else ~np.isfinite(values)]
            if len(bad):
                sentences.append(
                    f"{name}: expected a finite number in every valid row, found {len(bad)} of {len(valid)} "
                    f"without, the first {bad['product'].iloc[0]} {bad['bar_start'].iloc[0]}"
                )
        return sentences

    return find

"""The slow, obvious implementation: plain Python, one value at a time, straight from the formulas.

Nothing here is shared with the code it judges, except the meaning of the reason codes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cryptovol_dagster.core.features import Reason
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.ticks import TickColumns


class Tick(NamedTuple):
    """One row of `TickColumns`."""

    product: int
    connection: int
    event_time_ns: int
    sequence_num: int
    event_index: int
    entry_index: int
    bid: float
    ask: float
    bid_size: float
    ask_size: float
    price: float
    gap_before: bool


def rows_of(ticks: TickColumns) -> list[Tick]:
    return [Tick(*row) for row in zip(*(getattr(ticks, name).tolist() for name in Tick._fields), strict=True)]


def clean(rows: list[Tick], late_after_ns: int) -> tuple[list[Tick], dict[str, int]]:
    """`clean_ticks`, row by row."""
    counts = dict.fromkeys(
        ("duplicates", "late", "nan_quote", "non_positive_quote", "crossed_quote", "kept"), 0
    )
    seen: set[Any] = set()
    newest: dict[int, int] = {}
    last_connection: dict[int, int] = {}
    flag_owed: dict[int, bool] = {}
    kept: list[Tick] = []
    for row in rows:
        key: Any = (row.connection, row.sequence_num, row.event_index, row.entry_index)
        if row.sequence_num == -1:
            content = (row.event_time_ns, row.bid, row.ask, row.bid_size, row.ask_size, row.price)
            key = ("content", row.product, tuple(map(str, content)))
        if key in seen:
            counts["duplicates"] += 1
            continue
        seen.add(key)
        changed = last_connection.get(row.product, row.connection) != row.connection
        last_connection[row.product] = row.connection
        flagged = row.gap_before or changed or flag_owed.get(row.product, False)
        newest[row.product] = max(newest.get(row.product, row.event_time_ns), row.event_time_ns)
        fault = None
        if newest[row.product] - row.event_time_ns > late_after_ns:
            fault = "late"
        elif not (math.isfinite(row.bid) and math.isfinite(row.ask)):
            fault = "nan_quote"
        elif row.bid <= 0 or row.ask <= 0:
            fault = "non_positive_quote"
        elif row.bid > row.ask:
            fault = "crossed_quote"
        flag_owed[row.product] = flagged and fault is not None
        counts[fault or "kept"] += 1
        if fault is None:
            kept.append(row._replace(gap_before=flagged))
    return sorted(kept, key=lambda row: (row.product, row.event_time_ns)), counts


def bars(rows: list[Tick], start_ns: int, end_ns: int, spec: TimescaleSpec) -> list[dict[str, Any]]:
    """Bars of one product from its cleaned rows."""
    result = []
    for begin in range(start_ns, end_ns, spec.bar_ns):
        end = begin + spec.bar_ns
        before = [row for row in rows if row.event_time_ns < begin]
        inside = [row for row in rows if begin <= row.event_time_ns < end]
        result.append(_bar(before, inside, begin, end, _is_lossy(rows, begin, end, spec), spec))
    return result


def _is_lossy(rows: list[Tick], begin: int, end: int, spec: TimescaleSpec) -> bool:
    """Whether some row lost a predecessor since the row before it, a gap length at most, within the bar."""
    for place, row in enumerate(rows):
        since = row.event_time_ns - spec.gap_after_s * NS
        if place and rows[place - 1].event_time_ns > since:
            since = rows[place - 1].event_time_ns
        if row.gap_before and since < end and begin <= row.event_time_ns:
            return True
    return False


def _mid(row: Tick) -> float:
    return (row.bid + row.ask) * 0.5


def _log_move_nano(before: float, after: float) -> int:
    return round((math.log(after) - math.log(before)) * 1e9)


def _alive(rows: list[Tick], at_ns: int, spec: TimescaleSpec) -> Tick | None:
    """The quote as of a time, unless it is older than the gap length."""
    if rows and at_ns - rows[-1].event_time_ns <= spec.gap_after_s * NS:
        return rows[-1]
    return None


def _bar(
    before: list[Tick], inside: list[Tick], begin: int, end: int, lossy: bool, spec: TimescaleSpec
) -> dict[str, Any]:
    opening, quote = _alive(before, begin, spec), _alive(before + inside, end, spec)
    changes, last = 0, before[-1] if before else None
    for row in inside:
        if last and not row.gap_before and row.event_time_ns - last.event_time_ns <= spec.gap_after_s * NS:
            changes += abs(_mid(row) - _mid(last)) > _mid(last) * 0.5e-9
        last = row
    bar: dict[str, Any] = {
        "n_updates": len(inside),
        "n_mid_changes": changes,
        "open": math.nan,
        "high": math.nan,
        "low": math.nan,
        "close": math.nan,
        "age_s": math.nan,
        "ret_nano": 0,
        "gk_atto": 0,
        "spread_nano": 0,
        "imbalance_nano": 0,
        "ret_ok": False,
        "has_quote": quote is not None,
        "has_imbalance": False,
        "stale": False,
        "in_gap": quote is None,
        "new_segment": False,
        "out_of_bounds": False,
        "lossy": lossy,
        "n_trades": 0,
        "volume_e8": 0,
        "signed_volume_e8": 0,
        "has_trades": False,
    }
    if quote is None:
        return bar
    breaks = opening is None or any(row.gap_before for row in inside)
    mids = [_mid(row) for row in inside]
    opened = mids[0] if breaks or opening is None else _mid(opening)
    high, low, close = max([opened, *mids]), min([opened, *mids]), _mid(quote)
    bar |= {"new_segment": breaks, "open": opened, "high": high, "low": low, "close": close}
    bar["age_s"] = (end - quote.event_time_ns) / NS
    bar["stale"] = bar["age_s"] > spec.stale_after_s
    bar["spread_nano"] = round((quote.ask - quote.bid) / close * 1e9)
    sizes = quote.bid_size, quote.ask_size
    if all(math.isfinite(size) and size >= 0 for size in sizes) and sum(sizes) > 0:
        bar["has_imbalance"] = True
        bar["imbalance_nano"] = round((sizes[0] - sizes[1]) / (sizes[0] + sizes[1]) * 1e9)
    if not breaks and opening is not None:
        move, span = _log_move_nano(_mid(opening), close), _log_move_nano(low, high)
        if max(abs(move), span) > 50_000_000:
            bar["out_of_bounds"] = True
        elif not lossy:
            bar["ret_ok"], bar["ret_nano"] = True, move
            bar["gk_atto"] = round(0.5 * span**2 - (2 * math.log(2) - 1) * move**2)
    return bar


def features(series: list[dict[str, Any]], at: int, spec: TimescaleSpec) -> tuple[dict[str, float], Reason]:
    """Features of one product's bar `at`, and the row's reason; a feature that is not warm is NaN."""
    now = series[at]

    def fresh(bar: dict[str, Any]) -> bool:
        return bar["has_quote"] and not bar["stale"]

    def window(length: int, column: str, kind: str) -> tuple[list[int], bool]:
        """The valid values of the last `length` bars, and whether they are at least nine tenths."""
        valid = {
            "return": lambda bar: fresh(bar) and bar["ret_ok"],
            "quote": fresh,
            "sizes": lambda bar: fresh(bar) and bar["has_imbalance"],
        }[kind]
        chosen = [bar[column] for bar in series[max(at - length + 1, 0) : at + 1] if valid(bar)]
        return chosen, 10 * len(chosen) >= 9 * length

    def from_window(length: int, column: str, kind: str, formula: Any) -> float:
        chosen, warm = window(length, column, kind)
        return formula(chosen) if warm else math.nan

    def volatility(values: list[int]) -> float:
        return math.log(math.sqrt(sum(values) / len(values)) * 1e-9 + 1e-7)

    def squares(values: list[int]) -> list[int]:
        return [value * value for value in values]

    def ewma(half_life: int, column: str, power: int) -> float:
        total = mass = whole = 0.0
        for back in range(8 * half_life):
            weight = 0.5 ** (back / half_life)
            whole += weight
            if back <= at and fresh(series[at - back]) and series[at - back]["ret_ok"]:
                mass += weight
                total += weight * series[at - back][column] ** power
        return math.log(math.sqrt(total / mass) * 1e-9 + 1e-7) if mass >= 0.9 * whole else math.nan

    def ln_bps(nano: float) -> float:
        return math.log(nano * 1e-5 + 1e-3)

    def coarse(values: list[int]) -> list[int]:
        return [math.floor((value + 1024) / 2048) for value in values]

    def deviation(values: list[int]) -> float:
        q, n = coarse(values), len(values)
        return math.sqrt(n * sum(squares(q)) - sum(q) ** 2) / n * 2048e-9

    def rate(values: list[int]) -> float:
        return math.log(sum(values) / len(values) + 0.01)

    longest = max(spec.windows_bars)
    row: dict[str, float] = {}
    for w in (1, 5, 30, 60, 300):
        if w <= longest:
            row[f"ret_{w}"] = from_window(w, "ret_nano", "return", lambda v: sum(v) * 1e-9)
            row[f"abs_ret_{w}"] = abs(row[f"ret_{w}"])
    for w in spec.windows_bars:
        row[f"ln_rv_{w}"] = from_window(w, "ret_nano", "return", lambda v: volatility(squares(v)))
        row[f"ln_gk_{w}"] = from_window(w, "gk_atto", "return", volatility)
    for h in spec.ewma_half_lives_bars:
        row[f"ln_ewma_rv_{h}"] = ewma(h, "ret_nano", 2)
        row[f"ln_ewma_gk_{h}"] = ewma(h, "gk_atto", 1)
    for a, b in ((15, 300), (60, 900)):
        if b <= longest:
            row[f"rv_ratio_{a}_{b}"] = row[f"ln_rv_{a}"] - row[f"ln_rv_{b}"]
    row["ln_spread_last"] = ln_bps(now["spread_nano"])
    row["imbalance_last"] = now["imbalance_nano"] * 1e-9 if now["has_imbalance"] else math.nan
    for w in (15, 60, 300):
        if w <= longest:
            row[f"ln_spread_mean_{w}"] = from_window(
                w, "spread_nano", "quote", lambda v: ln_bps(sum(v) / len(v))
            )
            row[f"ln_spread_max_{w}"] = from_window(w, "spread_nano", "quote", lambda v: ln_bps(max(v)))
            row[f"abs_imbalance_mean_{w}"] = from_window(
                w, "imbalance_nano", "sizes", lambda v: abs(sum(coarse(v)) / len(v)) * 2048e-9
            )
            row[f"imbalance_std_{w}"] = from_window(w, "imbalance_nano", "sizes", deviation)
            row[f"ln_intensity_{w}"] = from_window(w, "n_updates", "quote", rate)
            row[f"ln_mid_changes_{w}"] = from_window(w, "n_mid_changes", "quote", rate)
    if longest >= 300:
        row["intensity_ratio_15_300"] = row["ln_intensity_15"] - row["ln_intensity_300"]
    row["age_s"] = now["age_s"]

    reason = Reason.OK
    if any(math.isnan(value) for value in row.values()):
        reason = Reason.WARMING_UP
    if not now["has_imbalance"]:
        reason = Reason.NO_SIZES
    if not now["ret_ok"]:
        reason = Reason.BREAK
    if now["stale"]:
        reason = Reason.STALE
    if now["in_gap"]:
        reason = Reason.IN_GAP
    if not fresh(now):
        row = dict.fromkeys(row, math.nan)
    return row, reason

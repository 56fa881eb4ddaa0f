"""The slow, obvious implementation: plain Python, one value at a time, straight from the formulas.

Nothing here is shared with the code it judges, except the meaning of the reason codes.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec


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
        "range_nano": 0,
        "spread_nano": 0,
        "imbalance_nano": 0,
        "microprice_nano": 0,
        "ret_ok": False,
        "has_quote": quote is not None,
        "has_spread": quote is not None,
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
        "has_volume": False,
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
        micro = (quote.bid * sizes[1] + quote.ask * sizes[0]) / (sizes[0] + sizes[1])
        bar["microprice_nano"] = round((micro - close) / close * 1e9)
    if not breaks and opening is not None:
        move, span = _log_move_nano(_mid(opening), close), _log_move_nano(low, high)
        if max(abs(move), span) > 50_000_000:
            bar["out_of_bounds"] = True
        elif not lossy:
            bar["ret_ok"], bar["ret_nano"] = True, move
            bar["gk_atto"] = round(0.5 * span**2 - (2 * math.log(2) - 1) * move**2)
            bar["range_nano"] = span
    return bar


def features(
    series: list[dict[str, Any]], at: int, spec: TimescaleSpec, start_ns: int
) -> tuple[dict[str, float], Reason]:
    """Own features of one product's bar `at`, and the row's reason; a feature that is not warm is NaN."""
    now = series[at]

    def fresh(bar: dict[str, Any]) -> bool:
        return bar["has_quote"] and not bar["stale"]

    def window(length: int, column: str, kind: str) -> tuple[list[int], bool]:
        """The valid values of the last `length` bars, and whether they are at least nine tenths."""
        valid = {
            "return": lambda bar: fresh(bar) and bar["ret_ok"],
            "quote": fresh,
            "sizes": lambda bar: fresh(bar) and bar["has_imbalance"],
            "trades": lambda bar: fresh(bar) and bar["has_trades"],
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

    def bipower(length: int) -> float:
        """Mean of the products of adjacent returns times π/2, in nano²; NaN where RV is not warm."""
        chosen = []
        for k in range(max(at - length + 2, 1), at + 1):
            pair = series[k - 1], series[k]
            if all(fresh(bar) and bar["ret_ok"] for bar in pair):
                chosen.append(abs(pair[0]["ret_nano"] * pair[1]["ret_nano"]))
        _, is_warm = window(length, "ret_nano", "return")
        return math.pi / 2 * sum(chosen) / len(chosen) if is_warm else math.nan

    def jump_share(length: int) -> float:
        variance = from_window(length, "ret_nano", "return", lambda v: sum(squares(v)) / len(v))
        if math.isnan(variance + bipower(length)):
            return math.nan
        return max(0.0, 1 - bipower(length) / variance) if variance else 0.0

    def downside(values: list[int]) -> float:
        return sum(squares([v for v in values if v < 0])) / sum(squares(values)) if any(values) else 0.5

    def above_tick(length: int, tick_bars: int) -> float:
        def is_above(k: int) -> bool:
            held = [bar["spread_nano"] for bar in series[max(k - tick_bars + 1, 0) : k + 1] if fresh(bar)]
            ticks = [spread for spread in held if spread > 0]
            return bool(ticks) and series[k]["spread_nano"] > 1.5 * min(ticks)

        judged = [is_above(k) for k in range(max(at - length + 1, 0), at + 1) if fresh(series[k])]
        return sum(judged) / len(judged) if 10 * len(judged) >= 9 * length else math.nan

    def per_bar(length: int, column: str) -> float:
        return from_window(length, column, "trades", lambda v: sum(v) / len(v))

    def ratio(one: float, other: float) -> float:
        return one / other if other else math.nan

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
    for a, b in ((15, 300), (60, 900), (300, 3_600)):
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
    row["microprice_last"] = now["microprice_nano"] * 1e-5 if now["has_imbalance"] else math.nan
    used = [w for w in (15, 60, 300) if w <= longest]
    for w in used:
        row[f"spread_above_tick_{w}"] = above_tick(w, used[-1])
        row[f"microprice_mean_{w}"] = from_window(
            w, "microprice_nano", "sizes", lambda v: sum(v) / len(v) * 1e-5
        )
        row[f"ln_trade_rate_{w}"] = from_window(w, "n_trades", "trades", rate)
        row[f"signed_volume_share_{w}"] = ratio(per_bar(w, "signed_volume_e8"), per_bar(w, "volume_e8"))
    for w in (60, 300, 900):
        if w <= longest:
            row[f"ln_bv_{w}"] = math.log(math.sqrt(bipower(w)) * 1e-9 + 1e-7)
            row[f"jump_share_{w}"] = jump_share(w)
            row[f"ln_max_abs_ret_{w}"] = from_window(
                w, "ret_nano", "return", lambda v: math.log(max(map(abs, v)) * 1e-9 + 1e-7)
            )
            row[f"downside_share_{w}"] = from_window(w, "ret_nano", "return", downside)
    for w in (15, 60, 300, 900):
        if w <= longest:
            row[f"ln_parkinson_{w}"] = from_window(
                w, "range_nano", "return", lambda v: volatility([x * x / (4 * math.log(2)) for x in v])
            )
    for a, b in ((15, 300), (60, 900)):
        if b <= longest:
            row[f"range_ratio_{a}_{b}"] = row[f"ln_parkinson_{a}"] - row[f"ln_parkinson_{b}"]
    if longest >= 300:
        row["intensity_ratio_15_300"] = row["ln_intensity_15"] - row["ln_intensity_300"]
        row["volume_ratio_15_300"] = math.log(
            ratio(per_bar(15, "volume_e8"), per_bar(300, "volume_e8")) + 0.01
        )
    end = datetime.fromtimestamp((start_ns + (at + 1) * spec.bar_ns) / NS, tz=UTC)
    midnight = end.replace(hour=0, minute=0, second=0, microsecond=0)
    of_day = (end - midnight).total_seconds() / 86_400
    for period, share in (("day", of_day), ("week", (end.weekday() + of_day) / 7)):
        row[f"sin_{period}"] = math.sin(2 * math.pi * share)
        row[f"cos_{period}"] = math.cos(2 * math.pi * share)
    row["age_s"] = now["age_s"]
    cap = max(w for w in spec.windows_bars if w <= 2_400)
    starts = [k for k in range(max(at - cap + 1, 0), at + 1) if series[k]["new_segment"]]
    bars_since = at - starts[-1] + 1 if starts else cap if at >= cap - 1 else math.nan
    row["ln_segment_age"] = math.log(bars_since * spec.bar_interval_s)

    optional = ("imbalance", "microprice", "trade_rate", "volume", "_3600")
    required = [value for name, value in row.items() if not any(part in name for part in optional)]
    reason = Reason.OK
    if any(math.isnan(value) for value in required):
        reason = Reason.WARMING_UP
    if not now["ret_ok"]:
        reason = Reason.BREAK
    if now["stale"]:
        reason = Reason.STALE
    if now["in_gap"]:
        reason = Reason.IN_GAP
    if not fresh(now):
        row = dict.fromkeys(row, math.nan)
    return row, reason


def cross(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Cross features of one bar, from the own features of every product."""
    result: list[dict[str, float]] = []
    for mine, own in enumerate(rows):
        added = {}
        for name in ("ln_gk_15", "ln_gk_60", "ln_gk_300", "abs_ret_5", "abs_ret_60"):
            if name not in own:
                continue
            others = [row[name] for k, row in enumerate(rows) if k != mine and not math.isnan(row[name])]
            known = others and not math.isnan(own["age_s"])
            added[f"cross_{name}"] = math.fsum(others) / len(others) if known else math.nan
        result.append(added)
    return result

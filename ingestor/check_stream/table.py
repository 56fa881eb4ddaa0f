"""Display of stream statistics: tables for a terminal, one line for a log."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ingestor.check_stream.statistics import PartitionSeen, ProductSeen, Quantiles, StreamReport
from ingestor.envelope import DEAD, EVENTS, FEATURES_TOPIC, TICKS, TRADES
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.times import NS

_UNKNOWN = "–"
#: Each unit, how many ns it has, and from how many on the next one is read more easily.
_UNITS = (
    ("µs", 1e3, 1e3),
    ("ms", 1e6, 1e3),
    ("s", 1e9, 120.0),
    ("min", 60e9, 120.0),
    ("h", 3_600e9, 48.0),
    ("d", 86_400e9, float("inf")),
)


def human_duration(ns: float | None) -> str:
    """Return a duration with a readable unit: ``-60 ms``, ``5.2 s``, ``230 d``."""
    if ns is None:
        return _UNKNOWN
    if ns == 0:
        return "0 ms"
    name, unit_ns = next((name, unit) for name, unit, limit in _UNITS if abs(ns) < unit * limit)
    amount = abs(ns) / unit_ns
    digits = 0 if amount >= 100 else 1 if amount >= 10 else 2
    text = f"{amount:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{'-' if ns < 0 else ''}{text} {name}"


def render(report: StreamReport, *, left_s: float = 0.0) -> RenderableType:
    """Return all statistics as tables.

    Args:
        report: the statistics.
        left_s: remaining seconds.
    """
    going_on = f", {left_s:.0f} s to go" if left_s >= 1 else ""
    prefix = f" (topics {report.topic_prefix}*)" if report.topic_prefix else ""
    return Group(
        Text(f"{report.bootstrap_servers}{prefix}, observed for {report.seconds:.0f} s{going_on}"),
        _products(report),
        _latencies(report),
        _partitions(report),
        *(Text(line) for line in _lines(report)),
    )


def progress_line(report: StreamReport) -> str:
    """Return the state of an observation in one line."""
    newest_ns = report.newest_event_time_ns
    newest = (
        f"newest {ns_to_rfc3339(newest_ns)[:19]} ({human_duration(report.age_ns(newest_ns))} old)"
        if newest_ns
        else "no tick yet"
    )
    recent = sum(seen.recent.per_second(report.seconds) for seen in report.products.values())
    lag = _number(report.archive_lag)
    return (
        f"{report.seconds:.0f} s: {report.messages[TICKS]:,} ticks ({recent:.1f}/s), "
        f"{report.messages[TRADES]:,} trades; {newest}; {report.events['gap']} gaps, "
        f"{report.messages[DEAD]} dead letters, {report.invalid.total()} invalid; archive behind by {lag}"
    )


def _products(report: StreamReport) -> Table:
    table = _table(
        "product", "ticks", "a second", "last 5 s", "trades", "newest event", "age", "out of order"
    )
    for name, seen in sorted(report.products.items()):
        newest_ns = seen.newest_event_time_ns
        table.add_row(
            escape(name),
            f"{seen.ticks:,}",
            f"{report.per_second(seen):.2f}",
            f"{seen.recent.per_second(report.seconds):.1f}",
            f"{seen.trades:,}",
            ns_to_rfc3339(newest_ns // NS * NS) if newest_ns else _UNKNOWN,
            human_duration(report.age_ns(newest_ns)) if newest_ns else _UNKNOWN,
            f"{seen.out_of_order:,}",
        )
    return table


def _latencies(report: StreamReport) -> Table:
    table = _table("latency", "", "p50", "p90", "p99", "max", "negative")
    for name, seen in sorted(report.products.items()):
        for way, latency in _ways(seen):
            quantiles = (latency.quantile_ns(share) for share in (0.5, 0.9, 0.99))
            table.add_row(
                escape(name),
                way,
                *(human_duration(ns) for ns in quantiles),
                human_duration(latency.greatest_ns),
                _negative(latency),
            )
    return table


def _ways(seen: ProductSeen) -> tuple[tuple[str, Quantiles], ...]:
    return ("exchange→read", seen.exchange_to_read), ("read→here", seen.read_to_here)


def _negative(latency: Quantiles) -> str:
    if not latency.count:
        return _UNKNOWN
    if not latency.negative:
        return "none"
    return f"{latency.negative / latency.count:.1%}, least {human_duration(latency.least_ns)}"


def _partitions(report: StreamReport) -> Table:
    table = _table("topic", "partition", "log end", "position", "behind", "archived", "archive lag")
    for seen in _in_use(report):
        table.add_row(
            escape(report.topic_prefix + seen.topic),
            str(seen.partition),
            *map(_number, (seen.log_end, seen.position, seen.behind, seen.stored, seen.archive_lag)),
        )
    return table


def _in_use(report: StreamReport) -> list[PartitionSeen]:
    """Return the partitions that ever had a record; most of a small feed's have not."""
    return [seen for seen in report.partitions if seen.log_end]


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _lines(report: StreamReport) -> list[str]:
    events = ", ".join(f"{count} {kind}" for kind, count in sorted(report.events.items())) or "none"
    empty = len(report.partitions) - len(_in_use(report))
    dead = f" (newest: {report.last_dead_reason})" if report.last_dead_reason else ""
    lines = [f"{empty} partitions without a record are left out"] if empty else []
    lines += [
        f"{EVENTS}: {events}",
        f"connections opened {report.events['connected']}, resumed {report.events['resumed']}, "
        f"gaps {report.events['gap']} with {report.missing_frames} frames missing",
        f"{DEAD}: {report.messages[DEAD]}{dead}; invalid messages: {report.invalid.total()}",
    ]
    if report.messages[FEATURES_TOPIC]:
        lines.append(
            f"{FEATURES_TOPIC}: {report.messages[FEATURES_TOPIC]:,} rows, "
            f"{report.revisions:,} of them revisions"
        )
    lines += [f"invalid: {error}" for error in report.first_errors]
    lines.append("counts and maxima are exact, quantiles within 1 % (a streaming histogram)")
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        words = column in ("product", "latency", "", "topic", "newest event", "negative")
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=words)
    return table

"""The page over all reports: what is newest, and every report over time; no framework, no request.

Belongs here: finding the summaries that lie beside the reports, and rendering them. Does not belong here:
what a report says. Links are relative to the page, so that it works from a folder and from a server whose
root holds both `reports/` and the lake.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.evidently import TITLES, measured_on
from ingestor.errors import CryptovolError

SUMMARY = "summary.json"
#: The page shows this many reports, and this many hours of drift; the lake keeps the others.
MAX_ENTRIES, MAX_HOURS = 500, 168
#: The span of matured labels that the page shows.
POOLED = "24 h"


@dataclass(frozen=True)
class Entry:
    """A report of an hour, as its summary tells it.

    Attributes:
        as_of: the hour.
        kind: which report.
        rows: what it was measured on, in words.
        share_over: share of the columns over the distance limit; None where nothing was compared.
        verdict: in words.
        path: of the page; None once it was removed from the lake.
    """

    as_of: str
    kind: str
    rows: str
    share_over: float | None
    verdict: str
    path: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON-able form."""
        return {**self.__dict__, "path": str(self.path) if self.path else None}


def entries(lake: Lake, spec: TimescaleSpec, limit: int = MAX_ENTRIES) -> list[Entry]:
    """List the reports made, newest hour first.

    Raises:
        LakeError: a summary cannot be read.
        ReportIndexError: a summary is no JSON.
    """
    found = sorted(
        ((key, kind) for kind in TITLES for key in lake.partitions(spec.asset(kind), SUMMARY)),
        reverse=True,
    )
    return [_entry(lake, spec, kind, key) for key, kind in found[:limit]]


class ReportIndexError(CryptovolError):
    """A summary in the lake cannot be understood; the message is one line."""


def _entry(lake: Lake, spec: TimescaleSpec, kind: str, key: str) -> Entry:
    asset = spec.asset(kind)
    try:
        summary = json.loads(lake.read_bytes(asset, key, SUMMARY))
        rows, share, verdict = measured_on(summary), summary["share_over"], summary["verdict"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReportIndexError(f"{asset} of {key}: its summary cannot be read: {error!r}") from error
    path = lake.path(asset, key, "html")
    return Entry(key, kind, rows, share, verdict, path if path.is_file() else None)


def write_index(lake: Lake, reports: Reports, spec: TimescaleSpec) -> Path:
    """Render `reports/index.html` anew.

    Raises:
        LakeError: a summary cannot be read.
        DriftError: drift numbers are no JSON.
        ReportIndexError: a summary is no JSON.
        ReportError: the folder cannot be written.
    """
    scores, outcomes = (_numbers(lake, spec.asset(name)) for name in ("drift_scores", "performance"))
    page = render(entries(lake, spec), scores, outcomes, _newest_files(reports), reports.reports_dir)
    return reports.write(reports.index, page.encode())


def _numbers(lake: Lake, asset: str) -> list[dict[str, Any]]:
    """Read the numbers to be shown, oldest first; without those of another schema version."""
    found = []
    for key in lake.partitions(asset, "json")[-MAX_HOURS:]:
        try:
            numbers = drift.read_numbers(lake, asset, key)
        except drift.OtherSchema:
            continue
        if numbers is not None:
            found.append(numbers)
    return found


def _newest_files(reports: Reports) -> list[tuple[str, Path]]:
    """List the latest copies that exist, by what people call them."""
    named = [
        ("Model card", reports.model_card),
        ("Evaluation", reports.evaluation),
        ("Decision", reports.decision),
        *((TITLES[kind], reports.evidently(kind, "html")) for kind in TITLES),
        ("Exploration", reports.reports_dir / "eda.html"),
        *((path.stem.replace("_", " "), path) for path in sorted(reports.reports_dir.glob("plots/*.png"))),
    ]
    return [(name, path) for name, path in named if path.is_file()]


def render(
    found: Sequence[Entry],
    scores: Sequence[dict[str, Any]],
    outcomes: Sequence[dict[str, Any]],
    newest: Iterable[tuple[str, Path]],
    folder: Path,
) -> str:
    """Render the page.

    Args:
        found: reports, newest first.
        scores: stored drift numbers, oldest first.
        outcomes: stored performance, oldest first.
        newest: names and files of the latest copies.
        folder: where the page will lie; links are relative to it.
    """
    cards = "".join(
        f'<a class="card" href="{_link(path, folder)}"><b>{html.escape(name)}</b>'
        f"<span>{html.escape(path.name)}</span></a>"
        for name, path in newest
    )
    rows = "".join(_row(entry, folder) for entry in found)
    table = (
        "<table><thead><tr><th>Hour (UTC)</th><th>Report</th><th>Measured on</th><th>Drifted columns</th>"
        f"<th>Verdict</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
        if found
        else "<p>No report yet: <code>cryptovol report</code> makes one.</p>"
    )
    return _PAGE.substitute(
        cards=cards or "<p>Nothing yet: <code>cryptovol evaluate</code> makes the first.</p>",
        drift=_chart(scores),
        performance=_performance(outcomes),
        table=table,
    )


def _row(entry: Entry, folder: Path) -> str:
    share = "–"
    if entry.share_over is not None:
        percent = f"{entry.share_over:.0%}"
        share = f'<span class="bar"><i style="width:{entry.share_over * 100:.1f}%"></i></span> {percent}'
    link = f'<a href="{_link(entry.path, folder)}">open</a>' if entry.path else "removed"
    texts = (entry.as_of, TITLES[entry.kind], entry.rows)
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
    return (
        f"<tr>{cells}<td class=nowrap>{share}</td><td>{html.escape(entry.verdict)}</td><td>{link}</td></tr>"
    )


def _chart(scores: Sequence[dict[str, Any]]) -> str:
    """Draw the share of drifted features of each hour, and the limit that was in force for it as a line."""
    if not scores:
        return "<p>No drift numbers yet: every closed hour gets them.</p>"
    newest = scores[-1]
    tallest = [1.5 * hour["limit"] for hour in scores]
    tallest += [hour["share_over"] for hour in scores if hour["share_over"] is not None]
    step, height = _step(scores), 90
    width, per_share = step * len(scores), height / max(*tallest, 0.01)
    bars = "".join(
        f'<rect class="{"over" if hour["over_limit"] else "under"}" x="{step * at}" width="{step - 1}" '
        f'y="{height - (tall := max(1.0, per_share * hour["share_over"])):.1f}" height="{tall:.1f}">'
        f"<title>{hour['as_of']}: {hour['share_over']:.0%}, limit {hour['limit']:.0%}, "
        f"{html.escape(hour['calibration']['told'])}</title></rect>"
        for at, hour in enumerate(scores)
        if hour["share_over"] is not None
    )
    lines = "".join(
        f'<line class="{"calibrated" if hour["calibrated"] else "fixed"}" x1="{step * at}" '
        f'x2="{step * (at + 1)}" y1="{(y := height - per_share * hour["limit"]):.1f}" y2="{y:.1f}"/>'
        for at, hour in enumerate(scores)
    )
    over = sum(bool(hour["over_limit"]) for hour in scores)
    calibrated = sum(bool(hour["calibrated"]) for hour in scores)
    share = "no reference" if newest["share_over"] is None else f"{newest['share_over']:.0%}"
    return (
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="share of drifted features by hour">{bars}{lines}</svg></div>'
        f"<p>{scores[0]['as_of']} … {newest['as_of']}: {over} of {len(scores)} hours over their limit, the "
        f"line: calibrated on past pairs for {calibrated} of them (solid), that of the settings for the "
        f"others (dashed). The newest: {share} of the features over theirs, limit {newest['limit']:.0%}, "
        f"{html.escape(newest['calibration']['told'])}.</p>"
    )


def _performance(outcomes: Sequence[dict[str, Any]]) -> str:
    """Draw the champion's average precision over a day of matured labels, hour by hour."""
    found = [(one, pooled) for one in outcomes if (pooled := one["pooled"][POOLED]) is not None]
    if not found:
        return "<p>No matured labels were scored yet: the retrain of an hour scores them.</p>"
    step, height = _step(found), 90
    width = step * len(found)
    drawn = "".join(
        _day(one["as_of"], pooled, step * at, step, height) for at, (one, pooled) in enumerate(found)
    )
    newest, pooled = found[-1]
    told = [
        f"Newest, {newest['as_of']}: {_ap(pooled)}, on {pooled['measured_on']}",
        f" ({'; '.join([pooled['verdict'], *pooled['reasons']])}). Drift: ",
        "; ".join(_moved(newest, name) for name in newest["columns"]),
        f" ({newest['calibration']['told']}).",
    ]
    return (
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="average precision over a day of matured labels">{drawn}</svg></div>'
        f"<p>Average precision over {POOLED} of matured labels, each row scored by the champion in force "
        "before it, 0 to 1; bars: 95 % interval; grey: data insufficient; lines: base rate. "
        f"{html.escape(''.join(told))}</p>"
    )


def _moved(outcome: dict[str, Any], name: str) -> str:
    distance = outcome["columns"][name]
    if distance is None:
        return f"{name} has no distance"
    return f"{name} {distance:.2f}, {'over' if name in outcome['over'] else 'not over'} its limit"


def _day(as_of: str, pooled: dict[str, Any], x: int, step: int, height: int) -> str:
    """Draw a pooled span: base rate, and where it could be ranked the precision with its interval."""
    base = height * (1 - (pooled["base_rate"] or 0.0))
    marks = [f'<line x1="{x}" x2="{x + step}" y1="{base:.1f}" y2="{base:.1f}"/>']
    estimate, interval = pooled["average_precision"]["estimate"], pooled["average_precision"]["interval"]
    if interval is not None:
        top, tall = height * (1 - interval["high"]), height * (interval["high"] - interval["low"])
        marks.append(f'<rect class="interval" x="{x}" width="{step - 1}" y="{top:.1f}" height="{tall:.1f}"/>')
    if estimate is not None:
        title = html.escape(f"{as_of}: {_ap(pooled)}, on {pooled['measured_on']}")
        marks.append(
            f'<circle class="{"thin" if interval is None else "sure"}" cx="{x + step / 2:g}" '
            f'cy="{height * (1 - estimate):.1f}" r="3"><title>{title}</title></circle>'
        )
    return "".join(marks)


def _ap(pooled: dict[str, Any]) -> str:
    """Say the average precision of a span, beside its base rate."""
    estimate, interval = pooled["average_precision"]["estimate"], pooled["average_precision"]["interval"]
    if estimate is None:
        return "nothing to rank"
    between = "" if interval is None else f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"AP {estimate:.2f}{between}, base rate {pooled['base_rate']:.2f}"


def _step(hours: Sequence[Any]) -> int:
    """Give the width of an hour's bar, in pixels."""
    return max(6, min(24, 1_100 // len(hours)))


def _link(path: Path, folder: Path) -> str:
    return html.escape(quote(Path(os.path.relpath(path, folder)).as_posix()))


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>cryptovol reports</title><style>
:root { color-scheme: light dark; --ink:#1b1f24; --soft:#5b6570; --paper:#fff; --card:#f3f5f7;
 --line:#d9dee3; --under:#0072b2; --over:#d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink:#e8ebee; --soft:#a0a9b2; --paper:#14171a;
 --card:#1f2429; --line:#343b42; --under:#56b4e9; --over:#e69f00; } }
body { font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:var(--paper); margin:0 auto;
 max-width:1200px; padding:24px; }
h1 { font-size:24px; margin:0 0 4px; } h2 { font-size:17px; margin:32px 0 10px; }
p { color:var(--soft); margin:6px 0; } a { color:var(--under); }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(190px,1fr)); gap:10px; }
.card { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:10px 14px;
 text-decoration:none; display:flex; flex-direction:column; }
.card b { color:var(--ink); font-weight:600; }
.card span { color:var(--soft); font-size:13px; overflow-wrap:anywhere; }
.wide { overflow-x:auto; } rect.under { fill:var(--under); } rect.over { fill:var(--over); }
rect.interval { fill:var(--under); opacity:.25; } circle { fill:var(--under); }
circle.thin { fill:var(--soft); }
line { stroke:var(--soft); } line.fixed { stroke-dasharray:4 3; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:600; }
th,td { padding:6px 12px 6px 0; border-bottom:1px solid var(--line); vertical-align:top; }
td:first-child,.nowrap { white-space:nowrap; }
.bar { display:inline-block; width:70px; height:9px; background:var(--card); border-radius:2px; }
.bar i { display:block; height:100%; background:var(--under); border-radius:2px; }
</style></head><body>
<h1>cryptovol reports</h1><p>The newest of everything, and every report over time.</p>
<h2>Newest</h2><div class="cards">$cards</div>
<h2>Drift, hour by hour</h2>$drift
<h2>Performance on matured labels</h2>$performance
<h2>Reports</h2><div class="wide">$table</div>
</body></html>
""")

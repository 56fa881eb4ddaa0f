"""The page of all reports: the newest ones, and every report over time; one file that requests nothing.

Belongs here: finding the summaries beside the reports, and the geometry of charts. Does not belong here: the
content of a report, and HTML (`templates/index.html`). Links are relative to the page, so that it works
from a folder and from a server whose root holds both `reports/` and the lake.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.evidently import TITLES, measured_on
from cryptovol_dagster.monitoring.pages import render_page
from ingestor.errors import CryptovolError

SUMMARY = "summary.json"
#: The page shows this many reports, and this many hours of drift; the lake keeps the others.
MAX_ENTRIES, MAX_HOURS = 500, 168
#: The span of matured labels that the page shows.
POOLED = "24 h"
#: Height of a chart, in pixels.
_HEIGHT = 90


@dataclass(frozen=True)
class Entry:
    """A report of an hour, as described by its summary.

    Attributes:
        as_of: the hour.
        kind: which report.
        rows: description of the measured rows.
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
        """Return the JSON-able form."""
        return {**self.__dict__, "path": str(self.path) if self.path else None}


def entries(lake: Lake, spec: TimescaleSpec, limit: int = MAX_ENTRIES) -> list[Entry]:
    """List the stored reports, newest hour first.

    Raises:
        LakeError: a summary cannot be read.
        ReportIndexError: a summary is not JSON.
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
    """Render `reports/index.html` and replace it.

    Raises:
        LakeError: a summary cannot be read.
        DriftError: drift numbers are not JSON.
        ReportIndexError: a summary is not JSON.
        ReportError: the folder cannot be written.
    """
    scores, outcomes = (_numbers(lake, spec.asset(name)) for name in ("drift_scores", "performance"))
    page = render(entries(lake, spec), scores, outcomes, _newest_files(reports), reports.reports_dir)
    return reports.write(reports.index, page.encode())


def _numbers(lake: Lake, asset: str) -> list[dict[str, Any]]:
    """Read the numbers of the newest hours, oldest first; without those of another schema version."""
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
    """Return the existing latest copies, each with its title."""
    named = [
        ("Evaluation", reports.evaluation_page),
        ("Model card", reports.model_card),
        ("Exploration", reports.reports_dir / "eda.html"),
        ("Decision", reports.decision),
        *((TITLES[kind], reports.evidently(kind, "html")) for kind in TITLES),
        ("Evaluation as data", reports.evaluation),
        *((path.stem.replace("_", " "), path) for path in sorted(reports.reports_dir.glob("plots/*.png"))),
    ]
    return [(name, path) for name, path in named if path.is_file()]


def render(
    found: Sequence[Entry],
    scores: Sequence[dict[str, Any]],
    outcomes: Sequence[dict[str, Any]],
    newest: Sequence[tuple[str, Path]],
    folder: Path,
) -> str:
    """Render the page.

    Args:
        found: reports, newest first.
        scores: stored drift numbers, oldest first.
        outcomes: stored performance, oldest first.
        newest: names and files of the latest copies.
        folder: folder of the page; links are relative to it.
    """
    return render_page(
        "index.html",
        newest=newest,
        drift=_drift_chart(scores),
        performance=_performance_chart(outcomes),
        pooled_over=POOLED,
        entries=found,
        titles=TITLES,
        link=lambda path: quote(Path(os.path.relpath(path, folder)).as_posix()),
    )


@dataclass(frozen=True)
class _Bar:
    """Top and height of a bar, in pixels from the chart's upper edge."""

    y: float
    height: float


def _drift_chart(scores: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Place the share of drifted features of each hour, and its limit, in a chart.

    Returns:
        Sizes and positions in pixels, hours oldest first; None without numbers.
    """
    if not scores:
        return None
    tallest = [1.5 * hour["limit"] for hour in scores]
    tallest += [hour["share_over"] for hour in scores if hour["share_over"] is not None]
    step, per_share = _step(scores), _HEIGHT / max(*tallest, 0.01)

    def bar(share: float | None) -> _Bar | None:
        if share is None:
            return None
        height = max(1.0, per_share * share)
        return _Bar(_HEIGHT - height, height)

    hours = [
        {
            **{name: hour[name] for name in ("as_of", "share_over", "limit", "over_limit", "calibrated")},
            "told": hour["calibration"]["told"],
            "x": step * at,
            "bar": bar(hour["share_over"]),
            "limit_y": _HEIGHT - per_share * hour["limit"],
        }
        for at, hour in enumerate(scores)
    ]
    return {"width": step * len(hours), "height": _HEIGHT, "step": step, "hours": hours}


def _performance_chart(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Place the champion's average precision over a day of matured labels, hour by hour, in a chart.

    Returns:
        Sizes and positions in pixels, spans oldest first, and a sentence on the newest; None without numbers.
    """
    found = [(one, pooled) for one in outcomes if (pooled := one["pooled"][POOLED]) is not None]
    if not found:
        return None
    step = _step(found)
    newest, pooled = found[-1]
    sentence = [
        f"Newest, {newest['as_of']}: {_ap(pooled)}, on {pooled['measured_on']}",
        f" ({'; '.join([pooled['verdict'], *pooled['reasons']])}). Drift: ",
        "; ".join(_distance(newest, name) for name in newest["columns"]),
        f" ({newest['calibration']['told']}).",
    ]
    return {
        "width": step * len(found),
        "height": _HEIGHT,
        "step": step,
        "spans": [_span(one["as_of"], pooled, step * at) for at, (one, pooled) in enumerate(found)],
        "newest": "".join(sentence),
    }


def _span(as_of: str, pooled: dict[str, Any], x: int) -> dict[str, Any]:
    """Place a pooled span: its base rate, and where it could be ranked the precision with its interval."""
    estimate, interval = pooled["average_precision"]["estimate"], pooled["average_precision"]["interval"]
    return {
        "x": x,
        "base_rate_y": _HEIGHT * (1 - (pooled["base_rate"] or 0.0)),
        "interval": interval
        and _Bar(_HEIGHT * (1 - interval["high"]), _HEIGHT * (interval["high"] - interval["low"])),
        "estimate_y": None if estimate is None else _HEIGHT * (1 - estimate),
        "title": f"{as_of}: {_ap(pooled)}, on {pooled['measured_on']}",
    }


def _distance(outcome: dict[str, Any], name: str) -> str:
    """Describe how far a column has moved, and whether that is over its limit."""
    distance = outcome["columns"][name]
    if distance is None:
        return f"{name} has no distance"
    return f"{name} {distance:.2f}, {'over' if name in outcome['over'] else 'not over'} its limit"


def _ap(pooled: dict[str, Any]) -> str:
    """Describe the average precision of a span, beside its base rate."""
    estimate, interval = pooled["average_precision"]["estimate"], pooled["average_precision"]["interval"]
    if estimate is None:
        return "nothing to rank"
    between = "" if interval is None else f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"AP {estimate:.2f}{between}, base rate {pooled['base_rate']:.2f}"


def _step(hours: Sequence[Any]) -> int:
    """Return the width of an hour's bar, in pixels."""
    return max(6, min(24, 1_100 // len(hours)))

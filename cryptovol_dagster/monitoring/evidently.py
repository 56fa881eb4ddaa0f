"""The one way to Evidently: its input is checked and bounded, its verdict qualified.

Evidently ignores a missing column silently and raises an internal error on an all-null column or an
empty frame, so frames are compared with the declared schema here first. It is imported inside, because the
import alone takes 10–20 s.

Its verdicts take rows as independent, which seconds of a market are not: by its default tests most hours
of a market have drifted. So it gets the distances of `core.drift` and the limits of each column, and page
and summary state the data of their calibration, or that they are uncalibrated.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cryptovol_dagster.core.drift.distance import distance, judge
from cryptovol_dagster.core.drift.limits import LimitsInForce
from cryptovol_dagster.monitoring.pages import render_page
from ingestor.errors import CryptovolError

if TYPE_CHECKING:
    import pandas as pd

TRAIN_TEST, DRIFT, DATA_QUALITY = "train_test_report", "drift_report", "data_quality_report"
TITLES = {
    TRAIN_TEST: "Training against test",
    DRIFT: "Reference against recent",
    DATA_QUALITY: "Data quality",
}
SUMMARY_SCHEMA_VERSION = 1
_DISTANCE = "The distance is Wasserstein's over the mixture's standard deviation, 0 to 2."
UNCALIBRATED = (
    "Rows of a market depend on their neighbours, so “drift detected” below is uncalibrated: a description "
    f"of a difference, not an alarm. {_DISTANCE}"
)
CALIBRATED = (
    "A column's limit is the 95th percentile of its own distance over past pairs of windows: where nothing "
    f"changes, about one column in 20 and one hour in 20 are over theirs. {_DISTANCE}"
)
#: Columns a summary names: those that moved most.
STRONGEST = 15
_METHOD = "wasserstein_mixture"
#: No distance is greater: a column that is not judged.
_NO_LIMIT = 2.0


class EvidentlyError(CryptovolError):
    """The frames cannot be reported on; the message is one line."""


@dataclass(frozen=True)
class Side:
    """Rows of a report, with their description.

    Attributes:
        name: role of the rows in the report, e.g. ``training``.
        hours: their span, as text.
        frame: the rows.
    """

    name: str
    hours: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class EvidentlyReport:
    """A finished report.

    Attributes:
        html: the page people open.
        json: the same as data; under ``cryptovol`` the summary.
        summary: summary of the report: kind, measured rows, columns, verdict.
    """

    html: bytes
    json: bytes
    summary: dict[str, Any]

    @property
    def rows(self) -> dict[str, int]:
        """Rows that Evidently saw, by side."""
        return {side["name"]: side["rows"] for side in self.summary["measured_on"]}


@dataclass(frozen=True)
class Criteria:
    """Criteria for the columns of a comparison.

    Attributes:
        limits: above which distance a column has moved, and above which share of columns the whole has.
        measured: distances of the limits; None: they are measured on the sampled rows.
        beside: limits of further columns of the schema, which are shown and not counted in the share.
        without: columns of the schema that are not compared, and why.
    """

    limits: LimitsInForce
    measured: Mapping[str, float | None] | None = None
    beside: LimitsInForce | None = None
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def beside_columns(self) -> Mapping[str, float | None]:
        """Limits of the columns that are not counted, by column."""
        return {} if self.beside is None else self.beside.columns

    def judged(self, distances: Mapping[str, float]) -> dict[str, float]:
        """Return the columns that are counted, each with its limit: those with a distance and a limit."""
        return {
            name: limit
            for name in distances
            if name not in self.beside_columns and (limit := self.limits.columns[name]) is not None
        }


@dataclass(frozen=True)
class Sampling:
    """Sampling of the rows for Evidently.

    Attributes:
        max_rows: a longer side is sampled to this many rows, in their order.
        seed: of the sampling.
    """

    max_rows: int
    seed: int

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a frame with a new index if it is short enough, else a sample of its rows."""
        frame = frame.reset_index(drop=True)
        if len(frame) <= self.max_rows:
            return frame
        return frame.sample(n=self.max_rows, random_state=self.seed).sort_index()


def comparison_report(
    kind: str,
    as_of: str,
    reference: Side,
    current: Side,
    schema: pa.Schema,
    criteria: Criteria,
    sampling: Sampling,
) -> EvidentlyReport:
    """Compare the distribution of numeric columns on two sides; the summary's `columns` are those counted.

    Args:
        kind: `TRAIN_TEST` or `DRIFT`.
        as_of: the report's hour.
        reference: rows to compare with.
        current: the rows in question.
        schema: the columns both sides must have.
        criteria: criteria of the columns.
        sampling: of each side.

    Raises:
        EvidentlyError: a side has no rows, its columns are not those of the schema, a column is not numeric,
            or no column has a value on both sides.
    """
    sides = (reference, current)
    for side in sides:
        validate(kind, side, schema, numbers_only=True)
    compared = pa.schema([column for column in schema if column.name not in criteria.without])
    columns, left_out = _with_values(kind, sides, compared)
    left_out |= {name: why for name, why in criteria.without.items() if name in schema.names}
    before, now = (_numbers(sampling.of(side.frame.loc[:, columns]), columns) for side in sides)
    measured = criteria.measured
    if measured is None:
        measured = {name: distance(before[name].to_numpy(), now[name].to_numpy()) for name in columns}
    left_out |= {name: "no distance" for name in columns if measured.get(name) is None}
    distances = {name: d for name in columns if (d := measured.get(name)) is not None}
    if not distances:
        raise EvidentlyError(f"{kind}: no column has a distance between {reference.name} and {current.name}")
    judged = _judged(distances, criteria)
    snapshot = _compared(before, now, distances, criteria, judged)
    counted = list(criteria.judged(distances))
    summary = {
        **_summary(kind, as_of, [(reference, len(before)), (current, len(now))], counted, left_out),
        **judged,
    }
    note = CALIBRATED if criteria.limits.calibrated else UNCALIBRATED
    return _finished(snapshot, snapshot.dict(), summary, f"{summary['verdict']}. {note}")


def _with_values(kind: str, sides: Sequence[Side], schema: pa.Schema) -> tuple[list[str], dict[str, str]]:
    """Return the columns with a value on every side, and the reason why each of the others has none.

    Raises:
        EvidentlyError: no column is left.
    """
    left_out = {
        name: f"no value in {' and '.join(empty)}"
        for name in schema.names
        if (empty := [side.name for side in sides if not _has_value(side.frame, name)])
    }
    columns = [name for name in schema.names if name not in left_out]
    if not columns:
        both = "both " if len(sides) > 1 else ""
        names = " and ".join(side.name for side in sides)
        raise EvidentlyError(f"{kind}: no column has a value in {both}{names}")
    return columns, left_out


def _compared(
    before: pd.DataFrame,
    now: pd.DataFrame,
    distances: Mapping[str, float],
    criteria: Criteria,
    judged: Mapping[str, Any],
) -> Any:
    """Return Evidently's snapshot: a table of the columns counted, and the others one by one."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    columns, counted = list(distances), criteria.judged(distances)
    _register_distance(distances)
    definition = DataDefinition(numerical_columns=columns)
    preset = DataDriftPreset(
        columns=list(counted),
        num_method=_METHOD,
        per_column_threshold=counted,
        drift_share=_shown_limit(criteria.limits.share, judged["share_over"], judged["over_limit"]),
    )
    others = [
        ValueDrift(column=name, method=_METHOD, threshold=_NO_LIMIT if limit is None else limit)
        for name in judged["not_counted"]
        for limit in [criteria.beside_columns.get(name)]
    ]
    return Report([*([preset] if counted else []), *others]).run(
        Dataset.from_pandas(now.loc[:, columns], data_definition=definition),
        Dataset.from_pandas(before.loc[:, columns], data_definition=definition),
    )


def _shown_limit(limit: float, share: float | None, is_over: bool) -> float:
    """Return the share from which Evidently reports drift: the limit, rounded so that both verdicts agree.

    Here drift is above the limit, in Evidently at it. The page shows the number, so it has few digits: where
    the share is the limit itself, the next one.
    """
    for digits in range(3, 15):
        for near in (round(limit, digits), round(limit + 10**-digits, digits)):
            if share is None or (share >= near) == is_over:
                return near
    return limit


def _judged(distances: Mapping[str, float], criteria: Criteria) -> dict[str, Any]:
    """Return the part of a summary that compares distances with their limits."""
    limits, in_force = criteria.limits, {**criteria.limits.columns, **criteria.beside_columns}
    judged = criteria.judged(distances)
    drift = judge({name: distances[name] for name in judged}, limits)
    strongest = dict(sorted(distances.items(), key=lambda item: -item[1])[:STRONGEST])
    over = [name for name, limit in judged.items() if distances[name] > limit]
    verdict = f"{len(over)} of {len(judged)} columns over their limits"
    verdict += f", {'over' if drift.over_limit else 'within'} the limit of {limits.share:.0%}"
    return {
        "share_over": drift.share_over,
        "over_limit": drift.over_limit,
        **limits.to_dict(),
        "limits": {name: in_force[name] for name in strongest},
        "strongest": strongest,
        "over": over,
        "not_counted": [name for name in distances if name not in judged],
        "beside": {} if criteria.beside is None else _beside(distances, criteria.beside),
        "verdict": f"{verdict} ({limits.basis})",
    }


def _beside(distances: Mapping[str, float], limits: LimitsInForce) -> dict[str, Any]:
    """Return distance and limit of the columns that are not counted."""
    return {
        name: {
            "distance": distances[name],
            "limit": limit,
            "over": limit is not None and distances[name] > limit,
            "told": limits.basis,
        }
        for name, limit in limits.columns.items()
        if name in distances
    }


def data_quality_report(
    as_of: str, side: Side, schema: pa.Schema, key: Sequence[str], sampling: Sampling
) -> EvidentlyReport:
    """Describe every column of an hour: missing values, constants, ranges, categories.

    Args:
        as_of: the hour.
        side: its rows.
        schema: the columns they must have.
        key: columns that identify a row.
        sampling: of the rows for Evidently; the counts here cover all rows.

    Raises:
        EvidentlyError: there are no rows, or their columns are not those of the schema.
    """
    validate(DATA_QUALITY, side, schema, numbers_only=False)
    kinds = {field.name: _kind_of_type(field.type) for field in schema}
    columns, left_out = _with_values(DATA_QUALITY, [side], schema)
    of_kind = {kind: [name for name in columns if kinds[name] == kind] for kind in set(kinds.values())}
    numeric = of_kind.get("number", [])
    sampled = _numbers(sampling.of(side.frame.loc[:, columns]), numeric)
    categorical = [*of_kind.get("text", []), *of_kind.get("flag", [])]
    sampled[categorical] = sampled[categorical].astype(str)

    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataSummaryPreset

    definition = DataDefinition(
        numerical_columns=numeric,
        categorical_columns=categorical,
        datetime_columns=of_kind.get("time", []),
    )
    snapshot = Report([DataSummaryPreset()]).run(Dataset.from_pandas(sampled, data_definition=definition))
    duplicates = int(side.frame.duplicated(list(key)).sum())
    # Flags and counts of a quiet hour are constant; a measured number that does not move is not right.
    measured = [field.name for field in schema if pa.types.is_floating(field.type)]
    constant = [name for name in measured if name in columns and side.frame[name].nunique(dropna=False) == 1]
    missing = {name: share for name in columns if (share := float(side.frame[name].isna().mean())) > 0}
    found = {
        "duplicate rows": duplicates,
        "columns without values": len(left_out),
        "constant columns": len(constant),
        "columns with infinite values": len(infinite := _infinite(side.frame, numeric)),
    }
    faults = [f"{count} {name}" for name, count in found.items() if count]
    summary = {
        **_summary(DATA_QUALITY, as_of, [(side, len(sampled))], columns, left_out),
        "share_over": None,
        "duplicate_rows": duplicates,
        "constant": constant,
        "infinite": infinite,
        "missing_share": missing,
        "verdict": ", ".join(faults) or "nothing missing, constant or twice",
    }
    return _finished(snapshot, snapshot.dict(), summary, summary["verdict"])


def validate(kind: str, side: Side, schema: pa.Schema, *, numbers_only: bool) -> None:
    """Compare a frame with its schema.

    Args:
        kind: of the report, for the message.
        side: the rows.
        schema: the columns they must have.
        numbers_only: whether a declared column must be a number.

    Raises:
        EvidentlyError: a column is wrong; the message contains expected and found.
    """
    where = f"{kind}: {side.name} ({side.hours})"
    if side.frame.empty:
        raise EvidentlyError(f"{where} has no rows")
    found, expected = list(map(str, side.frame.columns)), schema.names
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"lacks {', '.join(missing)}")
    if extra := [name for name in found if name not in expected]:
        faults.append(f"has {', '.join(extra)} besides")
    if len(set(found)) < len(found):
        faults.append("has a column twice")
    if faults:
        raise EvidentlyError(f"{where} {' and '.join(faults)}: expected {len(expected)} declared columns")
    for field in schema:
        wanted, is_now = _kind_of_type(field.type), _kind_of_dtype(side.frame.dtypes[field.name])
        if numbers_only and wanted != "number":
            raise EvidentlyError(f"{where}: {field.name} is declared as {field.type}, expected a number")
        # A column without values may have any type: it is left out, and reported.
        if is_now != wanted and _has_value(side.frame, field.name):
            raise EvidentlyError(
                f"{where}: {field.name}: expected {wanted} ({field.type}), found {is_now} "
                f"({side.frame[field.name].dtype})"
            )


def _kind_of_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "flag"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "time" if pa.types.is_timestamp(kind) else "text"


def _kind_of_dtype(dtype: Any) -> str:
    kinds = {"b": "flag", "i": "number", "u": "number", "f": "number", "M": "time"}
    return kinds.get(dtype.kind, "text")


def _has_value(frame: pd.DataFrame, name: str) -> bool:
    return bool(frame[name].notna().to_numpy().any())


def _infinite(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    values = frame.loc[:, list(columns)].to_numpy(np.float64, na_value=np.nan)
    return [name for name, found in zip(columns, np.isinf(values).any(axis=0), strict=True) if found]


def _numbers(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Convert numbers to floats, nullable ones too, and infinite ones to NaN: Evidently's bins need that."""
    values = frame.loc[:, list(columns)].to_numpy(np.float64, na_value=np.nan)
    frame = frame.copy()
    frame[list(columns)] = np.where(np.isinf(values), np.nan, values)
    return frame


def _register_distance(distances: Mapping[str, float]) -> None:
    """Register the distances of `core.drift` with Evidently: page, summary and drift numbers then agree."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def drift(
        reference_data: pd.Series, _current_data: pd.Series, _kind: ColumnType, threshold: float
    ) -> tuple[float, bool]:
        found = distances[str(reference_data.name)]
        return found, found > threshold

    name = "Wasserstein / standard deviation of the mixture"
    register_stattest(StatTest(_METHOD, name, [ColumnType.Numerical], _NO_LIMIT), drift)


def _summary(
    kind: str,
    as_of: str,
    sides: Sequence[tuple[Side, int]],
    columns: Sequence[str],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "schema_version": SUMMARY_SCHEMA_VERSION,
        "kind": kind,
        "as_of": as_of,
        "measured_on": [
            {"name": side.name, "hours": side.hours, "rows": sampled, "sampled_from": len(side.frame)}
            for side, sampled in sides
        ],
        "columns": len(columns),
        "left_out": dict(left_out),
    }


def measured_on(summary: Mapping[str, Any]) -> str:
    """Describe the measured rows of a report in one line."""
    return "; ".join(
        f"{side['name']}: {side['rows']:,} rows"
        + (f" sampled from {side['sampled_from']:,}" if side["sampled_from"] > side["rows"] else "")
        + f", {side['hours']}"
        for side in summary["measured_on"]
    )


def _finished(snapshot: Any, body: dict[str, Any], summary: dict[str, Any], note: str) -> EvidentlyReport:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        snapshot.save_html(str(path))
        page = path.read_text(encoding="utf-8")
    head, body_tag, rest = page.partition("<body>")
    if not body_tag:
        raise EvidentlyError("Evidently's page has no <body> for the measured rows")
    content = json.dumps({"cryptovol": summary, **body}, default=str).encode()
    return EvidentlyReport(f"{head}{body_tag}{_banner(summary, note)}{rest}".encode(), content, summary)


def _banner(summary: Mapping[str, Any], note: str) -> str:
    """Render the head above Evidently's own page: title, rows, verdict and columns left out."""
    left_out: dict[str, list[str]] = {}
    for name, why in summary["left_out"].items():
        left_out.setdefault(why, []).append(name)
    return render_page(
        "banner.html",
        title=TITLES[summary["kind"]],
        as_of=summary["as_of"],
        measured_on=measured_on(summary),
        note=note,
        not_counted=summary.get("not_counted", []),
        left_out=[f"{', '.join(names)} ({why})" for why, names in left_out.items()],
    )

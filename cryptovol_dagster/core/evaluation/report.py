"""What ``model_eval.json`` holds: its fields, its JSON Schema, and how older files are read.

``docs/model_eval.schema.json`` is rendered from here: ``python -m cryptovol_dagster.core.evaluation.report``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from ingestor.errors import CryptovolError

#: Raised with every change of the fields. 2: sufficiency, onset intervals, calibration line, periods, notes.
SCHEMA_VERSION = 2


class EvaluationError(CryptovolError, ValueError):
    """A report cannot be read; the message is one line that says why and what to do."""


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Every field is there, and no other."""


class Bounds(_Strict):
    """A percentile interval over resamples (level: `Bootstrap.level`)."""

    low: float
    high: float


class Span(_Strict):
    """A half-open range of decision times."""

    start_ns: int
    end_ns: int
    start: str
    end: str


class Split(_Strict):
    """Where training, validation and test lie."""

    train: Span
    validation: Span
    test: Span
    horizon_ns: int
    embargo_ns: int


class Data(_Strict):
    """The rows that everything was taken from; hashes identify data and feature set."""

    hash: str
    feature_hash: str
    first: str
    last: str
    products: list[str]
    rows: int
    dropped: dict[str, int]


class Features(_Strict):
    """The columns models were given; constant ones teach nothing, those left out were hardly ever known."""

    count: int
    constant_in_training: list[str]
    left_out: list[str]


class Count(_Strict):
    """Rows and spikes; `base_rate` is null without rows."""

    rows: int
    positives: int
    base_rate: float | None


class PartCounts(Count):
    """The same of a part of the split."""

    by_product: dict[str, Count]


class TestCounts(PartCounts):
    """The same of the test: blocks of `Bootstrap.block_s` with a spike, episodes, hours scored."""

    __test__ = False  # for pytest: no tests in here
    positive_blocks: int
    events: int
    hours: float


class Counts(_Strict):
    """What each part of the split holds."""

    train: PartCounts
    validation: PartCounts
    test: TestCounts


class Sufficiency(_Strict):
    """What the training span can teach (`core/sufficiency.py`)."""

    supports: str
    rows: int
    products: list[str]
    positives: int
    days: float
    events: int
    features: int
    spikes_apart: int
    spikes_per_feature: float
    least_block_s: float
    memory_s: float
    block_s: float
    blocks: int
    positive_blocks: int
    effective_positives: float
    effective_rows: float
    missing: list[str]
    next_class: str | None
    more_days: float | None
    summary: str


class Bootstrap(_Strict):
    """How intervals were made."""

    method: str
    block_s: float
    resamples: int
    seed: int
    level: float


class Ranking(_Strict):
    """A ranking of some rows; null with a single class."""

    rows: int
    positives: int
    base_rate: float | None
    average_precision: float | None
    lift: float | None


class OnsetRanking(Ranking):
    """The same of rows whose own trailing window is not yet a spike."""

    average_precision_interval: Bounds | None


class PeriodRanking(Ranking):
    """The same of a calendar day (``2024-12-31``) or month (``2024-12``) in UTC."""

    period: str


class MeasuredOn(_Strict):
    """The rows a model's numbers are of."""

    start: str
    end: str
    products: list[str]
    rows: int


class ChosenOn(_Strict):
    """The rows a threshold was chosen on."""

    start: str
    end: str
    rows: int


class TimeShift(_Strict):
    """What the same scores reach on labels shifted in time."""

    shifts: int
    mean: float
    quantile_95: float
    share_at_or_above: float


class ReliabilityBin(_Strict):
    """One bin of predicted probability."""

    low: float
    high: float
    rows: int
    predicted: float
    observed: float


class CalibrationLine(_Strict):
    """``logit P(y) = intercept + slope · logit p``; 1 and 0 are perfect."""

    slope: float
    intercept: float


class ConfusionMatrix(_Strict):
    """Rows by truth and flag."""

    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int


class ClassReport(_Strict):
    """Precision, recall, F1 and rows of one class."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class OperatingPoint(_Strict):
    """A threshold chosen on validation rows, measured on test rows; times in seconds, alarms rest 5 min."""

    threshold: float
    chosen_on: ChosenOn
    precision: float | None
    recall: float | None
    f1: float | None
    confusion_matrix: ConfusionMatrix
    classification_report: dict[str, ClassReport]
    flagged_share: float
    events: int
    events_found: int
    event_recall: float | None
    alarms: int
    false_alarms: int
    false_alarms_per_hour: float
    median_delay_s: float | None
    median_lead_s: float | None


class OperatingPoints(_Strict):
    """Null where validation allowed no choice."""

    max_f1: OperatingPoint | None
    alert_budget: OperatingPoint | None


class ModelResult(Ranking):
    """Everything measured of one model."""

    measured_on: MeasuredOn
    average_precision_interval: Bounds | None
    time_shift: TimeShift | None
    roc_auc: float | None
    log_loss: float
    brier: float
    expected_calibration_error: float
    reliability: list[ReliabilityBin]
    calibration: CalibrationLine | None
    onset: OnsetRanking
    by_product: dict[str, Ranking]
    by_period: list[PeriodRanking]
    operating_points: OperatingPoints
    importances: dict[str, float]


class Comparison(_Strict):
    """AP of `model` minus AP of `baseline` on the same rows and resamples, of all rows and at onset."""

    model: str
    baseline: str
    ap_difference: float | None
    interval: Bounds | None
    onset_difference: float | None
    onset_interval: Bounds | None


class ModelEvaluation(_Strict):
    """The whole file; numbers that are none are null. `as_of` is absent where no partition is evaluated."""

    schema_version: int
    verdict: str
    reasons: list[str]
    notes: list[str]
    timescale: str
    horizon_s: int
    bar_interval_s: int
    quantile: float
    thresholds: dict[str, float]
    data: Data
    features: Features
    split: Split
    counts: Counts
    sufficiency: Sufficiency
    bootstrap: Bootstrap
    period_unit: str
    models: dict[str, ModelResult]
    comparisons: list[Comparison]
    as_of: str | msgspec.UnsetType = msgspec.UNSET


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"cryptovol model_eval.json, schema version {SCHEMA_VERSION}",
        **msgspec.json.schema(ModelEvaluation),
    }


def check_report(report: Mapping[str, Any]) -> None:
    """Make sure that a report holds every field of this version, of its type, and no other.

    Raises:
        EvaluationError: it does not; the message names the first field that differs.
    """
    _require_version(report)
    try:
        msgspec.convert(report, ModelEvaluation)
    except msgspec.ValidationError as error:
        raise EvaluationError(f"evaluation of another form: {error}") from error


def read_report(content: bytes) -> dict[str, Any]:
    """Read the bytes of a ``model_eval.json`` of this version.

    Raises:
        EvaluationError: it is no JSON object, or of another version.
    """
    try:
        report = json.loads(content)
    except ValueError as error:
        raise EvaluationError(f"evaluation that is no JSON: {error}") from error
    if not isinstance(report, dict):
        raise EvaluationError("evaluation that is no JSON object")
    _require_version(report)
    return report


def _require_version(report: Mapping[str, Any]) -> None:
    found = report.get("schema_version")
    if found != SCHEMA_VERSION:
        raise EvaluationError(
            f"evaluation of schema version {found}; this version reads {SCHEMA_VERSION}: evaluate again"
        )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")

"""Content of ``model_eval.json``: its record, its JSON Schema, writing and reading.

`evaluate` builds the record, and later steps pass the record; JSON is written only for the file.
``python -m cryptovol_dagster.core.evaluation.report`` renders ``docs/reference/model_eval.schema.json``. The
schema contains the docstrings below.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from cryptovol_dagster.core.metrics.episodes import EpisodeCounts, EpisodeRule
from ingestor.errors import CryptovolError

#: Increased with every change of the fields.
#: 2: sufficiency, onset intervals, calibration line, periods, notes.
#: 3: episode rules. A report of version 2 is read as one without them.
SCHEMA_VERSION = 3
_WITHOUT_EPISODES = 2


class EvaluationError(CryptovolError, ValueError):
    """A report cannot be read; the message is one line with the reason and what to do."""


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Base of the records: every field is required, and no other is allowed."""


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
    """Time ranges of training, validation and test."""

    train: Span
    validation: Span
    test: Span
    horizon_ns: int
    embargo_ns: int


class Data(_Strict):
    """The rows of the evaluation; hashes identify data and feature set."""

    hash: str
    feature_hash: str
    first: str
    last: str
    products: list[str]
    rows: int
    dropped: dict[str, int]


class Features(_Strict):
    """The input columns of the models; constant ones are useless, left-out ones were almost never known."""

    count: int
    constant_in_training: list[str]
    left_out: list[str]


class Count(_Strict):
    """Number of rows and spikes; `base_rate` is null without rows."""

    rows: int
    positives: int
    base_rate: float | None


class PartCounts(Count):
    """The same for a part of the split."""

    by_product: dict[str, Count]


class TestCounts(PartCounts):
    """The same for the test, with blocks of `Bootstrap.block_s` with a spike, episodes, and hours scored."""

    __test__ = False  # for pytest: no tests in here
    positive_blocks: int
    events: int
    hours: float


class Counts(_Strict):
    """Counts of each part of the split."""

    train: PartCounts
    validation: PartCounts
    test: TestCounts


class Sufficiency(_Strict):
    """Sufficiency of the training span (`core/evaluation/sufficiency.py`)."""

    #: Most complex supported class of models; ``none`` where not even a single volatility can be fitted.
    supports: str
    rows: int
    products: tuple[str, ...]
    positives: int
    #: Time observed (bars of which at least one product has a row), in days.
    days: float
    #: Episodes: runs of spikes of a product, gaps of at most H bridged.
    events: int
    #: Number of features a model may read.
    features: int
    #: The most spikes, of whatever product, of which any two lie `least_block_s` apart.
    spikes_apart: int
    spikes_per_feature: float
    #: max(5 H, 30 min).
    least_block_s: float
    #: Integrated autocorrelation time of y.
    memory_s: float
    #: max(`least_block_s`, 2 × `memory_s`): rows that far apart are independent.
    block_s: float
    #: The most rows of which any two lie `block_s` apart.
    blocks: int
    #: The same for spikes.
    positive_blocks: int
    #: Times with a spike, by the memory of y.
    effective_positives: float
    #: Times, by the memory of ln σ.
    effective_rows: float
    #: What the next class lacks, one sentence each; empty where there is no next class.
    missing: tuple[str, ...]
    next_class: str | None
    #: Days until the next class at this rate; None where there is no next class or no rate yet.
    more_days: float | None
    #: Summary in one line.
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return jsonable(self)


class Bootstrap(_Strict):
    """Method of the intervals."""

    method: str
    block_s: float
    resamples: int
    seed: int
    level: float


class Ranking(_Strict):
    """Ranking of some rows; null with a single class."""

    rows: int
    positives: int
    base_rate: float | None
    average_precision: float | None
    lift: float | None


class OnsetRanking(Ranking):
    """The same for rows whose own trailing window is not yet a spike."""

    average_precision_interval: Bounds | None


class PeriodRanking(Ranking):
    """The same for a calendar day (``2024-12-31``) or month (``2024-12``) in UTC."""

    period: str


class MeasuredOn(_Strict):
    """The rows that a model was measured on."""

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
    """Average precision of the same scores on labels shifted in time."""

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
    """A threshold chosen on validation rows, measured on test rows; alarms are at least 5 min apart."""

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
    """Operating points by purpose; null where validation rows allow no choice."""

    max_f1: OperatingPoint | None
    alert_budget: OperatingPoint | None


class ChosenEpisodeRule(_Strict):
    """Rule of episodes, chosen on validation rows, with its episodes on them and on test rows.

    `tried` is the number of rules compared. Where none that finds an event kept the alert budget,
    `within_budget` is false.
    """

    rule: EpisodeRule
    chosen_on: ChosenOn
    tried: int
    alert_budget_per_hour: float
    within_budget: bool
    validation: EpisodeCounts
    test: EpisodeCounts


class ModelResult(Ranking):
    """All metrics of one model; `episode_rule` is null where validation rows allow no choice."""

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
    episode_rule: ChosenEpisodeRule | None
    importances: dict[str, float]


class Comparison(_Strict):
    """AP of `model` minus AP of `baseline` on the same rows and resamples, for all rows and at onset."""

    model: str
    baseline: str
    ap_difference: float | None
    interval: Bounds | None
    onset_difference: float | None
    onset_interval: Bounds | None


class ModelEvaluation(_Strict):
    """The whole file; undefined numbers are null. `as_of` is absent where no partition is evaluated."""

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

    @property
    def partition(self) -> str:
        """The as-of partition.

        Raises:
            EvaluationError: the report is not of a partition.
        """
        if self.as_of is msgspec.UNSET:
            raise EvaluationError("the evaluation is not of a partition: it has no as_of")
        return self.as_of


#: Keys that come first in files; the schema lists inherited fields before a record's own.
_WRITTEN_FIRST: dict[type[msgspec.Struct], tuple[str, ...]] = {
    PeriodRanking: ("period",),
    OperatingPoint: tuple(name for name in OperatingPoint.__struct_fields__ if name != "chosen_on"),
    ModelResult: (
        "measured_on",
        *Ranking.__struct_fields__,
        "time_shift",
        "roc_auc",
        "log_loss",
        "brier",
        "expected_calibration_error",
        "reliability",
        "calibration",
        "by_product",
    ),
}


def jsonable(value: Any) -> Any:
    """Convert records, tuples and numpy numbers to JSON types; NaN and infinity become null.

    Examples:
        >>> import numpy as np
        >>> jsonable({"low": np.float64(0.25), "high": float("nan"), "names": ("ewma",)})
        {'low': 0.25, 'high': None, 'names': ['ewma']}
    """
    if isinstance(value, msgspec.Struct):
        names = (*_WRITTEN_FIRST.get(type(value), ()), *value.__struct_fields__)
        fields = {name: getattr(value, name) for name in names}
        return {name: jsonable(item) for name, item in fields.items() if item is not msgspec.UNSET}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def encode(report: ModelEvaluation) -> bytes:
    """Return the content of ``model_eval.json``.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> read_report(encode(evaluation().report)).models.keys()
        dict_keys(['ewma', 'har_logit'])
    """
    return json.dumps(jsonable(report), indent=2, allow_nan=False).encode()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"cryptovol model_eval.json, schema version {SCHEMA_VERSION}",
        **msgspec.json.schema(ModelEvaluation),
    }


def check_report(report: Mapping[str, Any]) -> ModelEvaluation:
    """Convert the JSON of a report to its record; every field is required, and no other is allowed.

    A report of version 2 becomes one of this version whose models have no episode rule.

    Raises:
        EvaluationError: a field is wrong; the message names the first such field.
    """
    found = report.get("schema_version")
    if found == _WITHOUT_EPISODES:
        report = _without_episodes(report)
    elif found != SCHEMA_VERSION:
        raise EvaluationError(
            f"evaluation of schema version {found}; this version reads {_WITHOUT_EPISODES} and "
            f"{SCHEMA_VERSION}: evaluate again"
        )
    try:
        return msgspec.convert(report, ModelEvaluation)
    except msgspec.ValidationError as error:
        raise EvaluationError(f"evaluation of another form: {error}") from error


def _without_episodes(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of version 2 as one of this version."""
    models = report.get("models")
    if isinstance(models, dict):
        models = {name: _with_null(result) for name, result in models.items()}
    return {**report, "models": models, "schema_version": SCHEMA_VERSION}


def _with_null(result: Any) -> Any:
    return {**result, "episode_rule": None} if isinstance(result, dict) else result


def read_episode_rule(report: Mapping[str, Any], model: str) -> EpisodeRule | None:
    """Read the episode rule of a model in the JSON of an evaluation of any version; other fields are ignored.

    None where the evaluation has none: it is older than the rules, lacks the model, or validation rows
    allowed no choice.

    Raises:
        EvaluationError: the rule is impossible, or of another form.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> report = evaluation().to_dict()
        >>> read_episode_rule(report, "ewma") == evaluation().report.models["ewma"].episode_rule.rule
        True
        >>> read_episode_rule(report, "xgboost") is None
        True
    """
    chosen = report.get("models", {}).get(model, {}).get("episode_rule")
    if chosen is None:
        return None
    try:
        return msgspec.convert(chosen["rule"], EpisodeRule)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise EvaluationError(f"episode rule of model {model} of another form: {error}") from error


def read_report(content: bytes) -> ModelEvaluation:
    """Read the bytes of a ``model_eval.json``.

    Raises:
        EvaluationError: it is not a JSON object, has another version, or lacks a field.
    """
    try:
        report = json.loads(content)
    except ValueError as error:
        raise EvaluationError(f"evaluation is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise EvaluationError("evaluation is not a JSON object")
    return check_report(report)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")

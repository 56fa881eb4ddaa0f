"""The part of an evaluation that a decision about the champion needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptovol_dagster.core.evaluation.evaluate import OK
from cryptovol_dagster.core.evaluation.report import ModelEvaluation
from cryptovol_dagster.core.learning.splits import TimeRange
from cryptovol_dagster.core.models.kinds import LEARNED
from cryptovol_dagster.core.promotion.decision import Champion


@dataclass(frozen=True)
class Numbers:
    """Test metrics of a kind of model; None where nothing could be ranked."""

    average_precision: float | None
    brier: float | None


@dataclass(frozen=True)
class Compared:
    """Average precision of a kind minus that of another one, with the evaluation's two-sided interval."""

    estimate: float
    low: float
    high: float

    def __neg__(self) -> Compared:
        return Compared(-self.estimate, -self.high, -self.low)


@dataclass(frozen=True)
class Measured:
    """The part of an evaluation that a decision needs.

    Attributes:
        as_of: the partition.
        end_ns: end of its test rows, in market time.
        sufficient: whether its data suffice for intervals.
        reasons: why they do not suffice.
        numbers: by kind of model.
        differences: by (model, other model); one direction is enough.
        trained: every measured model as a possible champion.
        data_hash: of the rows.
        feature_hash: of the feature set.
        evaluation_hash: of the stored evaluation.
    """

    as_of: str
    end_ns: int
    sufficient: bool
    reasons: tuple[str, ...]
    numbers: Mapping[str, Numbers]
    differences: Mapping[tuple[str, str], Compared]
    trained: Mapping[str, Champion]
    data_hash: str
    feature_hash: str
    evaluation_hash: str

    @classmethod
    def from_report(
        cls,
        report: ModelEvaluation,
        *,
        test: TimeRange,
        mlflow_run_ids: Mapping[str, str],
        problem_hash: str,
        evaluation_hash: str,
    ) -> Measured:
        """Build it from an evaluation's report.

        Args:
            report: of a partition.
            test: time range of the test rows.
            mlflow_run_ids: training run of each measured model.
            problem_hash: of the plan that models and evaluation share.
            evaluation_hash: of the stored evaluation.

        Raises:
            EvaluationError: the report is not of a partition.
            KeyError: a run is missing.

        Examples:
            >>> import msgspec
            >>> from cryptovol_dagster.core.samples import evaluation, problem
            >>> report = msgspec.structs.replace(evaluation().report, as_of="2026-04-02-04:00")
            >>> ids = {name: f"run of {name}" for name in report.models}
            >>> hashes = {"problem_hash": "p1", "evaluation_hash": "e1"}
            >>> test = problem().split.test
            >>> found = Measured.from_report(report, test=test, mlflow_run_ids=ids, **hashes)
            >>> str(found.trained["ewma"]), found.sufficient
            ('ewma of 2026-04-02-04:00', False)
            >>> found.candidates
            ('har_logit',)
        """
        feature_hash, as_of = report.data.feature_hash, report.partition
        return cls(
            as_of=as_of,
            end_ns=test.end_ns,
            sufficient=report.verdict == OK,
            reasons=tuple(report.reasons),
            numbers={
                name: Numbers(result.average_precision, result.brier)
                for name, result in report.models.items()
            },
            differences={
                (entry.model, entry.baseline): Compared(
                    entry.ap_difference, entry.interval.low, entry.interval.high
                )
                for entry in report.comparisons
                if entry.ap_difference is not None and entry.interval is not None
            },
            trained={
                name: Champion(
                    model=name,
                    as_of=as_of,
                    problem_hash=problem_hash,
                    feature_hash=feature_hash,
                    mlflow_run_id=mlflow_run_ids[name],
                    unproven=False,
                    unseen_from_ns=test.start_ns,
                )
                for name in report.models
            },
            data_hash=report.data.hash,
            feature_hash=feature_hash,
            evaluation_hash=evaluation_hash,
        )

    def difference(self, model: str, other: str) -> Compared | None:
        """Return average precision of `model` minus that of `other`; None where there is no interval."""
        if (model, other) in self.differences:
            return self.differences[model, other]
        reverse = self.differences.get((other, model))
        return None if reverse is None else -reverse

    @property
    def candidates(self) -> tuple[str, ...]:
        """Measured kinds that may challenge."""
        return tuple(name for name in self.trained if name in LEARNED)

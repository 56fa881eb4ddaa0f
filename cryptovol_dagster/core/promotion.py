"""Which model is the champion: the one in force, the challenger measured beside it, and what came of it.

Pure: an evaluation and the champion in force go in, a `Decision` comes out. Where decisions are stored, and
what a registry makes of them, is decided elsewhere. `judge` is the rule for one challenger; a stricter one
takes its place without anything else changing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from cryptovol_dagster.core.evaluation import OK

SCHEMA_VERSION = 1
PROMOTE, HOLD, REJECT, INSUFFICIENT_DATA = "PROMOTE", "HOLD", "REJECT", "INSUFFICIENT_DATA"
VERDICTS = (PROMOTE, HOLD, REJECT, INSUFFICIENT_DATA)
#: Kinds that may be the first champion: they follow one or four volatilities, and little can go wrong.
FIRST_CHAMPIONS = ("ewma", "har_logit")
#: How much worse a promoted model's Brier score may be than the champion's.
BRIER_TOLERANCE = 0.02


class DecisionError(Exception):
    """A stored decision cannot be read; the message is one line."""


@dataclass(frozen=True)
class Champion:
    """The model in force.

    Attributes:
        model: its kind.
        as_of: the partition as of which it was trained.
        problem_hash: names the rows, cut and thresholds it was trained by. With kind and as-of it tells one
            champion from another; a model trained again on the same rows is the same champion.
        feature_hash: of the feature set it was trained on.
        mlflow_run_id: its training run.
        unproven: it was put in place because there had to be one, not because it won.
        registry_version: its version in the model registry; None as long as it is in none.
    """

    model: str
    as_of: str
    problem_hash: str
    feature_hash: str
    mlflow_run_id: str
    unproven: bool
    registry_version: str | None = None

    def is_same_model(self, other: Champion | None) -> bool:
        """Tell whether two speak of the same trained model."""
        return other is not None and self.identity == other.identity

    @property
    def identity(self) -> tuple[str, str, str]:
        """What tells one trained model from another."""
        return self.model, self.as_of, self.problem_hash


@dataclass(frozen=True)
class Numbers:
    """What the test says of a kind of model; null where nothing could be ranked."""

    average_precision: float | None
    brier: float | None


@dataclass(frozen=True)
class Difference:
    """Average precision of a model minus that of another one, on the same rows and resamples."""

    estimate: float
    low: float
    high: float

    def __neg__(self) -> Difference:
        return Difference(-self.estimate, -self.high, -self.low)


@dataclass(frozen=True)
class Measured:
    """What an evaluation says, as far as a decision needs it.

    Attributes:
        as_of: the partition.
        sufficient: whether its data suffice for intervals.
        reasons: why not.
        numbers: by kind of model.
        differences: by (model, other model); one direction is enough.
        trained: every measured model, as the champion it would be.
        data_hash: of the rows.
        feature_hash: of the feature set.
        evaluation_hash: of the stored evaluation.
    """

    as_of: str
    sufficient: bool
    reasons: tuple[str, ...]
    numbers: Mapping[str, Numbers]
    differences: Mapping[tuple[str, str], Difference]
    trained: Mapping[str, Champion]
    data_hash: str
    feature_hash: str
    evaluation_hash: str

    @classmethod
    def from_report(
        cls,
        report: Mapping[str, Any],
        *,
        mlflow_run_ids: Mapping[str, str],
        problem_hash: str,
        evaluation_hash: str,
    ) -> Measured:
        """Take what `evaluate` reported.

        Args:
            report: content of ``model_eval.json``, with its ``as_of``.
            mlflow_run_ids: training run of each measured model.
            problem_hash: of the plan that models and evaluation share.
            evaluation_hash: of the stored evaluation.

        Raises:
            KeyError: the report, or a run, is incomplete.
        """
        feature_hash = report["data"]["feature_hash"]
        return cls(
            as_of=report["as_of"],
            sufficient=report["verdict"] == OK,
            reasons=tuple(report["reasons"]),
            numbers={
                name: Numbers(result["average_precision"], result["brier"])
                for name, result in report["models"].items()
            },
            differences={
                (entry["model"], entry["baseline"]): Difference(
                    entry["ap_difference"], entry["interval"]["low"], entry["interval"]["high"]
                )
                for entry in report["comparisons"]
                if entry["interval"] is not None
            },
            trained={
                name: Champion(
                    model=name,
                    as_of=report["as_of"],
                    problem_hash=problem_hash,
                    feature_hash=feature_hash,
                    mlflow_run_id=mlflow_run_ids[name],
                    unproven=False,
                )
                for name in report["models"]
            },
            data_hash=report["data"]["hash"],
            feature_hash=feature_hash,
            evaluation_hash=evaluation_hash,
        )

    def difference(self, model: str, other: str) -> Difference | None:
        """Give average precision of `model` minus that of `other`; None where there is no interval."""
        if (model, other) in self.differences:
            return self.differences[model, other]
        reverse = self.differences.get((other, model))
        return None if reverse is None else -reverse

    def best_but(self, model: str) -> str | None:
        """Name the kind with the best average precision that is not `model`; None where none is ranked."""
        ranked = {
            name: found.average_precision
            for name, found in self.numbers.items()
            if name != model and found.average_precision is not None
        }
        return max(ranked, key=lambda name: (ranked[name], name)) if ranked else None


@dataclass(frozen=True)
class Challenge:
    """The challenger looked at, beside the champion's kind, both trained and tested on the same rows."""

    model: str
    champion_model: str
    average_precision: float | None
    brier: float | None
    champion_average_precision: float | None
    champion_brier: float | None
    difference: Difference | None


@dataclass(frozen=True)
class Decision:
    """What was decided as of a partition.

    Attributes:
        as_of: the partition.
        verdict: one of `VERDICTS`.
        reasons: sentences: what was expected, what was found.
        champion: the one in force afterwards; None as long as nothing could be trained.
        challenge: the challenger looked at; None where there was none.
        changed: whether another champion than before is in force.
        data_hash: of the rows looked at; empty where nothing was evaluated.
        feature_hash: of their feature set.
        evaluation_hash: of the evaluation.
    """

    as_of: str
    verdict: str
    reasons: tuple[str, ...]
    champion: Champion | None
    challenge: Challenge | None = None
    changed: bool = False
    data_hash: str = ""
    feature_hash: str = ""
    evaluation_hash: str = ""

    def registered_as(self, version: str) -> Decision:
        """Return the same decision with the champion's version in the registry."""
        if self.champion is None:
            raise DecisionError(f"decision as of {self.as_of} has no champion to register")
        return replace(self, champion=replace(self.champion, registry_version=version))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, with the schema version."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Decision:
        """Read what `to_dict` gave.

        Raises:
            DecisionError: it is no decision of this schema version.
        """
        try:
            version = body["schema_version"]
            if version != SCHEMA_VERSION:
                raise DecisionError(
                    f"decision of schema version {version}; this version reads {SCHEMA_VERSION}"
                )
            return msgspec.convert(dict(body), cls)
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise DecisionError(f"decision cannot be read: {error!r}") from error


def hold(as_of: str, champion: Champion | None, reason: str) -> Decision:
    """Leave everything as it is, as of a partition on which nothing was evaluated."""
    return Decision(as_of, HOLD, (reason,), champion)


def decide(measured: Measured, champion: Champion | None) -> Decision:
    """Decide who is champion after an evaluation.

    The champion stays the model it is until a challenger takes its place: it is not trained anew every hour.
    Its kind, trained on the same rows as the challenger, stands for it in the comparison.

    * Without a champion the first is of a kind in `FIRST_CHAMPIONS`, unproven, whatever the data say.
    * A champion of another feature set cannot be compared, nor fed. The model of its kind takes its place,
      unproven again.
    * Otherwise the best of the other kinds is the challenger, and `judge` says what comes of it.

    Args:
        measured: the evaluation.
        champion: the one in force before; None for the first.

    Returns:
        The decision; never `PROMOTE` on data that do not suffice.
    """
    if champion is None:
        return _first(measured, "there was no champion yet")
    if champion.feature_hash != measured.feature_hash:
        reason = (
            f"expected a champion of feature set {measured.feature_hash}, found {champion.model} of "
            f"{champion.as_of} trained on {champion.feature_hash}: not comparable"
        )
        if champion.model in measured.trained:
            return _appoint(measured, champion.model, reason)
        return _first(measured, reason, champion)
    if champion.model not in measured.numbers:
        return _undecided(
            measured,
            champion,
            f"expected the champion's kind {champion.model} among the models measured, found "
            f"{', '.join(measured.numbers)}",
        )
    name = measured.best_but(champion.model)
    if name is None:
        return _undecided(measured, champion, "expected a ranked challenger, found none")
    own, other = measured.numbers[champion.model], measured.numbers[name]
    challenge = Challenge(
        model=name,
        champion_model=champion.model,
        average_precision=other.average_precision,
        brier=other.brier,
        champion_average_precision=own.average_precision,
        champion_brier=own.brier,
        difference=measured.difference(name, champion.model),
    )
    if not measured.sufficient:
        return replace(_undecided(measured, champion), challenge=challenge)
    verdict, reason = judge(challenge)
    return _decision(
        measured,
        verdict,
        (reason,),
        measured.trained[name] if verdict == PROMOTE else champion,
        challenge=challenge,
        changed=verdict == PROMOTE,
    )


def judge(challenge: Challenge) -> tuple[str, str]:
    """Compare a challenger with the champion's kind, on data that suffice.

    The best of several challengers looks better than it is; the statistical gate to come accounts for that.

    Args:
        challenge: the numbers of both.

    Returns:
        Verdict and reason.
    """
    name, champion, difference = challenge.model, challenge.champion_model, challenge.difference
    what = f"average precision of {name} minus that of {champion}"
    if difference is None:
        return HOLD, f"expected an interval of the {what}, found none"
    found = f"{difference.estimate:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    if difference.high < 0:
        return REJECT, f"expected {what} not to be below 0, found {found}"
    if difference.low <= 0:
        return HOLD, f"expected {what} to be above 0 with its lower bound, found {found}"
    if challenge.brier is None or challenge.champion_brier is None:
        return HOLD, f"expected Brier scores of {name} and {champion}, found none"
    limit = challenge.champion_brier * (1 + BRIER_TOLERANCE)
    if challenge.brier > limit:
        return HOLD, (
            f"expected Brier of {name} to be at most {limit:.5f} ({BRIER_TOLERANCE:.0%} above {champion}'s "
            f"{challenge.champion_brier:.5f}), found {challenge.brier:.5f}; {what}: {found}"
        )
    return PROMOTE, (
        f"{what} is above 0 with its lower bound: {found}; Brier {challenge.brier:.5f}, at most {limit:.5f}"
    )


def _first(measured: Measured, reason: str, champion: Champion | None = None) -> Decision:
    """Put the first plain model in place; without one everything stays as it is."""
    for name in FIRST_CHAMPIONS:
        if name in measured.trained:
            return _appoint(measured, name, reason)
    return _undecided(
        measured,
        champion,
        f"{reason}; expected {' or '.join(FIRST_CHAMPIONS)} among the models measured, found "
        f"{', '.join(measured.numbers)}",
    )


def _appoint(measured: Measured, name: str, reason: str) -> Decision:
    """Put a model in place that has beaten nobody."""
    reasons = (f"{reason}; {name} takes the place, unproven", *measured.reasons)
    verdict = PROMOTE if measured.sufficient else INSUFFICIENT_DATA
    champion = replace(measured.trained[name], unproven=True)
    return _decision(measured, verdict, reasons, champion, changed=True)


def _undecided(measured: Measured, champion: Champion | None, *reasons: str) -> Decision:
    verdict = HOLD if measured.sufficient else INSUFFICIENT_DATA
    return _decision(measured, verdict, (*reasons, *measured.reasons), champion)


def _decision(
    measured: Measured,
    verdict: str,
    reasons: tuple[str, ...],
    champion: Champion | None,
    *,
    challenge: Challenge | None = None,
    changed: bool = False,
) -> Decision:
    return Decision(
        as_of=measured.as_of,
        verdict=verdict,
        reasons=reasons,
        champion=champion,
        challenge=challenge,
        changed=changed,
        data_hash=measured.data_hash,
        feature_hash=measured.feature_hash,
        evaluation_hash=measured.evaluation_hash,
    )

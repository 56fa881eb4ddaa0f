"""Which model is the champion: the one in force, the challenger measured against it, and what came of it.

Pure: evaluation, earlier decision and hold-out scores go in, a `Decision` comes out. Where decisions are
stored, and what a registry makes of them, is decided elsewhere. Champion and challenger are trained models,
not kinds: the stored champion is scored, and the challenger stays the model it was when it was nominated, on
rows that neither learned from (`gate.py` says when to look and how sure one must be).

A partition is decided in three steps, so that rows are read only where something hangs on them: `agenda` says
what is to be done, whoever holds the rows scores what it asks for (`Evidence`), `decide` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cryptovol_dagster.core.evaluation.evaluate import OK
from cryptovol_dagster.core.learning.splits import TimeRange
from cryptovol_dagster.core.metrics import ranking as metrics
from cryptovol_dagster.core.promotion import gate as statistics
from cryptovol_dagster.core.promotion.gate import Difference, HoldOut, Look
from cryptovol_dagster.core.specs import NS, GateSpec

SCHEMA_VERSION = 2
PROMOTE, HOLD, REJECT, INSUFFICIENT_DATA = "PROMOTE", "HOLD", "REJECT", "INSUFFICIENT_DATA"
#: A person's verdict, which no rule gives.
ROLLBACK = "ROLLBACK"
VERDICTS = (PROMOTE, HOLD, REJECT, INSUFFICIENT_DATA, ROLLBACK)
#: What a decision was about: there was no champion; the champion could not be scored any more; a challenger
#: was looked at; the champion had grown old; a person; nothing was due.
FIRST, SUCCESSION, GATE, EXPIRY, BY_HAND, NOTHING_DUE = (
    "first",
    "succession",
    "gate",
    "expiry",
    "rollback",
    "nothing_due",
)
#: Kinds that may be the first champion: they follow one or four volatilities, and little can go wrong.
FIRST_CHAMPIONS = ("ewma", "har_logit")
#: Kinds that may challenge: they learn more than a scale.
LEARNED = ("har_logit", "logreg", "xgboost")
#: What an expired champion falls back to.
FALLBACK = "har_logit"
#: Plain models scored beside a challenger: it is not promoted below one of them.
REFERENCES = ("ewma", "har_logit")


class DecisionError(Exception):
    """A stored decision cannot be read; the message is one line."""


@dataclass(frozen=True)
class Champion:
    """A trained model that is in force, or may come to be.

    Attributes:
        model: its kind.
        as_of: the partition as of which it was trained.
        problem_hash: names the rows, cut and thresholds it was trained by. With kind and as-of it tells one
            champion from another; a model trained again on the same rows is the same champion.
        feature_hash: of the feature set it was trained on.
        mlflow_run_id: its training run.
        unproven: it was put in place because there had to be one, not because it won.
        registry_version: its version in the model registry; None as long as it is in none.
        unseen_from_ns: decision time from which on it has learned from no row, validation included.
    """

    model: str
    as_of: str
    problem_hash: str
    feature_hash: str
    mlflow_run_id: str
    unproven: bool
    registry_version: str | None = None
    unseen_from_ns: int = 0

    def is_same_model(self, other: Champion | None) -> bool:
        """Tell whether two speak of the same trained model."""
        return other is not None and self.identity == other.identity

    @property
    def identity(self) -> tuple[str, str, str]:
        """What tells one trained model from another."""
        return self.model, self.as_of, self.problem_hash

    def __str__(self) -> str:
        return f"{self.model} of {self.as_of}"


@dataclass(frozen=True)
class Numbers:
    """What the test says of a kind of model; null where nothing could be ranked."""

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
    """What an evaluation says, as far as a decision needs it.

    Attributes:
        as_of: the partition.
        end_ns: end of its test rows: the time on the market's clock.
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
        report: Mapping[str, Any],
        *,
        test: TimeRange,
        mlflow_run_ids: Mapping[str, str],
        problem_hash: str,
        evaluation_hash: str,
    ) -> Measured:
        """Take what `evaluate` reported.

        Args:
            report: content of ``model_eval.json``, with its ``as_of``.
            test: where the test rows lie.
            mlflow_run_ids: training run of each measured model.
            problem_hash: of the plan that models and evaluation share.
            evaluation_hash: of the stored evaluation.

        Raises:
            KeyError: the report, or a run, is incomplete.
        """
        feature_hash = report["data"]["feature_hash"]
        return cls(
            as_of=report["as_of"],
            end_ns=test.end_ns,
            sufficient=report["verdict"] == OK,
            reasons=tuple(report["reasons"]),
            numbers={
                name: Numbers(result["average_precision"], result["brier"])
                for name, result in report["models"].items()
            },
            differences={
                (entry["model"], entry["baseline"]): Compared(
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
                    unseen_from_ns=test.start_ns,
                )
                for name in report["models"]
            },
            data_hash=report["data"]["hash"],
            feature_hash=feature_hash,
            evaluation_hash=evaluation_hash,
        )

    def difference(self, model: str, other: str) -> Compared | None:
        """Give average precision of `model` minus that of `other`; None where there is no interval."""
        if (model, other) in self.differences:
            return self.differences[model, other]
        reverse = self.differences.get((other, model))
        return None if reverse is None else -reverse

    @property
    def candidates(self) -> tuple[str, ...]:
        """The measured kinds that may challenge."""
        return tuple(name for name in self.trained if name in LEARNED)


@dataclass(frozen=True)
class Contest:
    """A challenger and the rows on which it is measured against the champion.

    Attributes:
        challenger: the trained model.
        start_ns: the hold-out's first decision time: neither model learned from it, no earlier decision used
            it.
        looked_until_ns: the hold-out's end at the last look; None before the first.
    """

    challenger: Champion
    start_ns: int
    looked_until_ns: int | None = None

    def length_days(self, end_ns: int) -> float:
        """Length of the hold-out up to a time."""
        return max(end_ns - self.start_ns, 0) / NS / statistics.DAY_S


@dataclass(frozen=True)
class Challenge:
    """What a look at a challenger found, both scored on the same rows.

    Attributes:
        challenger: the model looked at.
        champion: the one in force until then.
        start_ns: the hold-out's first decision time.
        end_ns: its end.
        rows: in it.
        positives: among them.
        block_s: length of a block taken as independent.
        average_precision: of the challenger.
        brier: of the challenger.
        champion_average_precision: of the champion.
        champion_brier: of the champion.
        references: average precision of plain models on the same rows.
        difference: challenger minus champion; None where the data do not suffice.
    """

    challenger: Champion
    champion: Champion
    start_ns: int
    end_ns: int
    rows: int
    positives: int
    block_s: float
    average_precision: float | None
    brier: float | None
    champion_average_precision: float | None
    champion_brier: float | None
    references: dict[str, float | None] = field(default_factory=dict)
    difference: Difference | None = None


@dataclass(frozen=True)
class Decision:
    """What was decided as of a partition, and what later decisions must know of it.

    Attributes:
        as_of: the partition.
        verdict: one of `VERDICTS`.
        reasons: sentences: what was expected, what was found.
        champion: the one in force afterwards; None as long as nothing could be trained.
        kind: what it was about.
        contest: the challenger that is measured from here on; None where there is none.
        challenge: what was found where a challenger was looked at.
        changed: whether another champion than before is in force.
        decided_as_of: the newest partition, this one included, at which something was decided.
        used_until_ns: end of the rows that any decision has used.
        looks: those that still count against the budget of errors.
        barred: identities of models that a person took out of force; none of them comes back by itself.
        data_hash: of the rows looked at; empty where nothing was evaluated.
        feature_hash: of their feature set.
        evaluation_hash: of the evaluation.
    """

    as_of: str
    verdict: str
    reasons: tuple[str, ...]
    champion: Champion | None
    kind: str = NOTHING_DUE
    contest: Contest | None = None
    challenge: Challenge | None = None
    changed: bool = False
    decided_as_of: str = ""
    used_until_ns: int = 0
    looks: tuple[Look, ...] = ()
    barred: tuple[tuple[str, str, str], ...] = ()
    data_hash: str = ""
    feature_hash: str = ""
    evaluation_hash: str = ""

    def registered_as(self, version: str) -> Decision:
        """Return the same decision with the champion's version in the registry."""
        if self.champion is None:
            raise DecisionError(f"decision as of {self.as_of} has no champion to register")
        return replace(self, champion=replace(self.champion, registry_version=version))

    def challenger_registered_as(self, version: str) -> Decision:
        """Return the same decision with the challenger's version in the registry."""
        if self.contest is None:
            raise DecisionError(f"decision as of {self.as_of} has no challenger to register")
        challenger = replace(self.contest.challenger, registry_version=version)
        return replace(self, contest=replace(self.contest, challenger=challenger))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, with the schema version."""
        body = {**asdict(self), "reasons": list(self.reasons), "looks": [asdict(one) for one in self.looks]}
        return {"schema_version": SCHEMA_VERSION, **body, "barred": [list(one) for one in self.barred]}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Decision:
        """Read what `to_dict` gave, in this schema version or an earlier one.

        Raises:
            DecisionError: it is no decision of a schema version known here.
        """
        try:
            version = body["schema_version"]
            if version == 1:
                return _from_version_1(body)
            if version != SCHEMA_VERSION:
                raise DecisionError(
                    f"decision of schema version {version}; this version reads 1 to {SCHEMA_VERSION}"
                )
            return msgspec.convert(dict(body), cls)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise DecisionError(f"decision cannot be read: {error!r}") from error


def _from_version_1(body: Mapping[str, Any]) -> Decision:
    """Read a decision of the rule before the gate, which compared kinds trained on the same rows.

    Its partitions were hours. What its models had not seen is not in it: the end of the hour is on the safe
    side, and so are all rows before it taken for used. The challenge compared something else and is left out.
    """
    kept = {name: value for name, value in body.items() if name not in ("schema_version", "challenge")}
    if kept["champion"] is not None:
        end_ns = _hour_end_ns(kept["champion"]["as_of"])
        kept["champion"] = kept["champion"] | {"unseen_from_ns": end_ns}
    return msgspec.convert(
        kept | {"decided_as_of": kept["as_of"], "used_until_ns": _hour_end_ns(kept["as_of"])}, Decision
    )


def _hour_end_ns(key: str) -> int:
    end = datetime.strptime(f"{key}+0000", "%Y-%m-%d-%H:%M%z") + timedelta(hours=1)
    return int(end.timestamp()) * NS


def hold(as_of: str, before: Decision | None, reason: str) -> Decision:
    """Leave everything as it is, as of a partition on which nothing was evaluated."""
    if before is None:
        return Decision(as_of, HOLD, (reason,), None)
    return _carried(before, as_of, HOLD, (reason,))


@dataclass(frozen=True)
class Agenda:
    """What is to be done as of a partition, and which scores it takes.

    Attributes:
        appoint: why a model must be put in place without having won; empty where there is a champion.
        nominate: whether a challenger is to be chosen among `Measured.candidates`, by validation.
        contest: the challenger to be looked at; None where none is, or none yet.
        is_decided: whether something was decided on the same day.
        has_expired: whether the champion is older than its limit.
    """

    appoint: str = ""
    nominate: bool = False
    contest: Contest | None = None
    is_decided: bool = False
    has_expired: bool = False


def agenda(
    measured: Measured, before: Decision | None, *, gate: GateSpec, why_unscorable: str = ""
) -> Agenda:
    """Say what is to be done as of a partition.

    Args:
        measured: its evaluation.
        before: the decision in force until then; None for the first.
        gate: age at which a champion expires.
        why_unscorable: why the champion's file cannot score the rows at hand; empty where it can.
    """
    champion = None if before is None else before.champion
    if before is None or champion is None:
        return Agenda(appoint="there was no champion yet")
    if champion.feature_hash != measured.feature_hash:
        return Agenda(
            appoint=f"expected a champion of feature set {measured.feature_hash}, found {champion} trained "
            f"on {champion.feature_hash}: not comparable"
        )
    if why_unscorable:
        return Agenda(appoint=f"expected the champion {champion} to score the rows, found: {why_unscorable}")
    contest = before.contest
    if contest is not None and contest.challenger.feature_hash != measured.feature_hash:
        contest = None
    return Agenda(
        nominate=contest is None,
        contest=contest,
        is_decided=before.decided_as_of[:10] == measured.as_of[:10],
        has_expired=measured.end_ns - champion.unseen_from_ns > gate.champion_max_age_s * NS,
    )


def nominate(measured: Measured, validation: Mapping[str, float | None], before: Decision) -> Contest | None:
    """Choose the challenger: the learned kind that ranks best on validation rows; the test is not asked.

    Its hold-out begins where neither it nor the champion has learned, and behind every row that an earlier
    decision used.

    Args:
        measured: the evaluation as of which the candidates were trained.
        validation: average precision of candidates on their validation rows; None where unknown.
        before: the decision in force until then, with its champion.

    Returns:
        None where no candidate is ranked, or all are the champion itself or barred.
    """
    out = set(before.barred) | ({before.champion.identity} if before.champion else set())
    ranked = {
        name: precision
        for name, precision in validation.items()
        if precision is not None and measured.trained[name].identity not in out
    }
    if not ranked:
        return None
    challenger = measured.trained[max(ranked, key=lambda name: (ranked[name], name))]
    known_to_champion_ns = before.champion.unseen_from_ns if before.champion else 0
    return Contest(challenger, max(challenger.unseen_from_ns, known_to_champion_ns, before.used_until_ns))


def is_look_due(contest: Contest, end_ns: int, gate: GateSpec) -> bool:
    """Tell whether the hold-out has grown enough for a look."""
    return statistics.is_look_due(contest.start_ns, contest.looked_until_ns, end_ns, gate)


#: Names of the models in the scores of a hold-out, besides `REFERENCES`.
THE_CHAMPION, THE_CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Evidence:
    """What was scored for a decision.

    Attributes:
        contest: the challenger, where there is one.
        hold_out: rows scored by `THE_CHAMPION`, `THE_CHALLENGER` and `REFERENCES`; None where no look was
            due.
        matured: test rows scored by `THE_CHAMPION` and `FALLBACK`, trained as of now; None where the champion
            has not expired.
    """

    contest: Contest | None = None
    hold_out: HoldOut | None = None
    matured: HoldOut | None = None


def decide(
    measured: Measured,
    before: Decision | None,
    todo: Agenda,
    evidence: Evidence,
    *,
    horizon_s: float,
    gate: GateSpec,
) -> Decision:
    """Decide who is champion as of a partition.

    * Without a champion the first is of a kind in `FIRST_CHAMPIONS`, unproven, whatever the data say.
    * A champion that cannot score the rows cannot serve either. The model of its kind takes its place,
      unproven again.
    * On each day (market time) one decision at most is taken; later partitions of the day carry it.
    * A challenger whose hold-out has grown enough is looked at (`judge`).
    * A champion that has expired, and ranks below `FALLBACK` on rows it did not learn from, falls back to it.

    Args:
        measured: the evaluation.
        before: the decision in force until then; None for the first.
        todo: what `agenda` said.
        evidence: what was scored.
        horizon_s: H.
        gate: how a challenger is measured.

    Returns:
        The decision; it never promotes a challenger on data that do not suffice.
    """
    if todo.appoint or before is None or before.champion is None:
        return _appointed(measured, before, todo.appoint)
    contest = evidence.contest
    if todo.is_decided:
        reason = f"decided already as of {before.decided_as_of}: one decision a day"
        return _settled(measured, before, HOLD, (reason,), contest=contest)
    if contest is not None and evidence.hold_out is not None:
        found = _looked_at(measured, before, contest, evidence.hold_out, horizon_s, gate)
    else:
        found = _not_looked_at(measured, before, contest, gate)
    if found.changed or evidence.matured is None:
        return found
    return _expired(measured, before.champion, found, evidence.matured, horizon_s, gate)


def _appointed(measured: Measured, before: Decision | None, why: str) -> Decision:
    """Put a model in place that has beaten nobody; without a fitting one everything stays as it is."""
    champion = None if before is None else before.champion
    kinds = (*((champion.model,) if champion else ()), *FIRST_CHAMPIONS)
    name = next((kind for kind in kinds if kind in measured.trained), None)
    verdict = HOLD if measured.sufficient else INSUFFICIENT_DATA
    kind = FIRST if champion is None else SUCCESSION
    if name is None:
        lacking = (
            f"{why}; expected {' or '.join(FIRST_CHAMPIONS)} among the models measured, found "
            f"{', '.join(measured.numbers)}"
        )
        return _settled(measured, before, verdict, (lacking, *measured.reasons), kind=kind)
    return _settled(
        measured,
        before,
        PROMOTE if measured.sufficient else INSUFFICIENT_DATA,
        (f"{why}; {name} takes the place, unproven", *measured.reasons),
        kind=kind,
        champion=replace(measured.trained[name], unproven=True),
    )


def _not_looked_at(measured: Measured, before: Decision, contest: Contest | None, gate: GateSpec) -> Decision:
    """Say why no challenger was looked at."""
    if contest is None:
        found = ", ".join(measured.trained)
        reason = f"expected a learned kind ({', '.join(LEARNED)}) to challenge the champion, found {found}"
        return _settled(measured, before, HOLD, (reason,), contest=None)
    fresh = contest.length_days(measured.end_ns)
    if contest.looked_until_ns is None:
        needed = gate.first_look_s / statistics.DAY_S
        what = f"a first look at {contest.challenger}"
        reason = f"expected {needed:g} days of hold-out for {what}, found {fresh:.2f}"
        return _settled(measured, before, INSUFFICIENT_DATA, (reason,), contest=contest)
    looked = contest.length_days(contest.looked_until_ns)
    needed = min(gate.growth * looked, gate.measured_for_s / statistics.DAY_S)
    what = f"the next look at {contest.challenger}"
    reason = f"expected {needed:.2f} days of hold-out for {what}, found {fresh:.2f}"
    return _settled(measured, before, HOLD, (reason,), contest=contest)


def _looked_at(
    measured: Measured,
    before: Decision,
    contest: Contest,
    rows: HoldOut,
    horizon_s: float,
    gate: GateSpec,
) -> Decision:
    """Look at a challenger on a hold-out that has grown enough."""
    end_ns, champion, challenger = measured.end_ns, before.champion, contest.challenger
    if champion is None:
        raise DecisionError(f"{challenger} has no champion to be measured against")
    block_s = rows.block_s(horizon_s, gate)
    challenge = Challenge(
        challenger=challenger,
        champion=champion,
        start_ns=contest.start_ns,
        end_ns=end_ns,
        rows=rows.y.size,
        positives=int(rows.y.sum()),
        block_s=block_s,
        average_precision=rows.average_precision(THE_CHALLENGER),
        brier=rows.brier(THE_CHALLENGER),
        champion_average_precision=rows.average_precision(THE_CHAMPION),
        champion_brier=rows.brier(THE_CHAMPION),
        references={name: rows.average_precision(name) for name in REFERENCES if name in rows.scores},
    )
    is_last = statistics.is_last_look(contest.start_ns, end_ns, gate)
    until = f"; {challenger} is let go after {contest.length_days(end_ns):.1f} days" if is_last else ""
    if lacking := rows.why_insufficient(block_s, gate):
        return _settled(
            measured,
            before,
            INSUFFICIENT_DATA,
            (*lacking[:-1], lacking[-1] + until),
            kind=GATE,
            challenge=challenge,
            contest=None if is_last else contest,
        )
    level = statistics.level_of_look(contest.start_ns, contest.looked_until_ns, end_ns, before.looks, gate)
    if level <= 0:
        reason = (
            f"expected something left of the {gate.error_rate:.1%} of errors allowed in "
            f"{gate.error_window_s / statistics.DAY_S:g} days, found it spent by {len(before.looks)} looks"
        )
        return _settled(measured, before, HOLD, (reason,), contest=contest)
    challenge = replace(
        challenge,
        difference=statistics.paired_difference(
            rows, THE_CHALLENGER, THE_CHAMPION, level=level, block_s=block_s, gate=gate
        ),
    )
    verdict, reason = judge(challenge, gate)
    is_over = is_last or verdict == REJECT
    return _settled(
        measured,
        before,
        verdict,
        (reason + (until if verdict == HOLD else ""),),
        kind=GATE,
        champion=challenger if verdict == PROMOTE else None,
        challenge=challenge,
        contest=None if is_over or verdict == PROMOTE else replace(contest, looked_until_ns=end_ns),
        looks=(*statistics.remembered(before.looks, end_ns, gate), Look(end_ns, level)),
    )


def judge(challenge: Challenge, gate: GateSpec) -> tuple[str, str]:
    """Compare a challenger with the champion, on data that suffice.

    Args:
        challenge: the numbers of both.
        gate: what a gain must be, and the tolerance of Brier scores.

    Returns:
        Verdict and reason.
    """
    name, champion, difference = challenge.challenger, challenge.champion, challenge.difference
    what = f"average precision of {name} minus that of {champion}"
    if difference is None or challenge.average_precision is None:
        return HOLD, f"expected an interval of the {what}, found none"
    found = (
        f"{difference.estimate:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] at level "
        f"{difference.level:.2%}"
    )
    if difference.high < 0:
        return REJECT, f"expected {what} not to be below 0, found {found}"
    # Written so that a bound that is no number promotes nothing.
    if not difference.low > 0:
        return HOLD, f"expected {what} to be above 0 with its lower bound, found {found}"
    if difference.estimate < gate.min_gain:
        return HOLD, f"expected {what} to be worth a change, {gate.min_gain:+.4f} or more, found {found}"
    for plain, precision in challenge.references.items():
        if plain != name.model and precision is not None and precision > challenge.average_precision:
            return HOLD, (
                f"expected {name} to rank no lower than {plain}, found average precision "
                f"{challenge.average_precision:.4f} and {precision:.4f}; {what}: {found}"
            )
    if challenge.brier is None or challenge.champion_brier is None:
        return HOLD, f"expected Brier scores of {name} and {champion}, found none"
    limit = challenge.champion_brier * (1 + gate.brier_tolerance)
    if challenge.brier > limit:
        return HOLD, (
            f"expected Brier of {name} to be at most {limit:.5f} ({gate.brier_tolerance:.0%} above "
            f"{champion}'s {challenge.champion_brier:.5f}), found {challenge.brier:.5f}; {what}: {found}"
        )
    return PROMOTE, (
        f"{what} is above 0 with its lower bound: {found}; Brier {challenge.brier:.5f}, at most {limit:.5f}"
    )


def _expired(
    measured: Measured,
    champion: Champion,
    found: Decision,
    rows: HoldOut,
    horizon_s: float,
    gate: GateSpec,
) -> Decision:
    """Let a champion that has grown old stay, or fall back, by how it ranks on rows that came after it."""
    unlearned_days = (measured.end_ns - champion.unseen_from_ns) / NS / statistics.DAY_S
    age = f"{champion} has learned nothing for {unlearned_days:.1f} days"
    is_under, numbers = _is_under_fallback(rows, horizon_s, gate)
    if not is_under:
        reason = f"{age}; it stays: {numbers}"
        return replace(found, reasons=(*found.reasons, reason), decided_as_of=measured.as_of)
    return replace(
        found,
        verdict=PROMOTE,
        kind=EXPIRY,
        reasons=(f"{age} and ranks below {FALLBACK}, which takes the place: {numbers}", *found.reasons),
        champion=replace(measured.trained[FALLBACK], unproven=True),
        contest=None,
        changed=True,
        decided_as_of=measured.as_of,
        used_until_ns=max(found.used_until_ns, measured.end_ns),
    )


def _is_under_fallback(rows: HoldOut, horizon_s: float, gate: GateSpec) -> tuple[bool, str]:
    """Compare a champion with the plain fallback; only data that suffice speak against it."""
    if FALLBACK not in rows.scores:
        return False, f"expected {FALLBACK} among the models measured, found none"
    if lacking := rows.why_insufficient(rows.block_s(horizon_s, gate), gate):
        return False, "; ".join(lacking)
    own, plain = (metrics.average_precision(rows.y, rows.scores[name]) for name in (THE_CHAMPION, FALLBACK))
    return own < plain, f"average precision {own:.4f} against {plain:.4f} of a new {FALLBACK}"


def roll_back(before: Decision, to: Champion, *, as_of: str, now_ns: int, reason: str) -> Decision:
    """Put an earlier model in force by hand.

    The one taken out is barred, its challenger let go, and all rows up to now count as used: whatever is
    promoted next has won on rows that came after.

    Args:
        before: the decision in force until then.
        to: the model to put in force.
        as_of: the newest partition decided.
        now_ns: end of the newest rows.
        reason: a person's words.

    Raises:
        DecisionError: there is no champion, or it is the same model.
    """
    champion = before.champion
    if champion is None:
        raise DecisionError("there is no champion to roll back")
    if to.is_same_model(champion):
        raise DecisionError(f"{to} is champion already")
    barred = [one for one in (*before.barred, champion.identity) if one != to.identity]
    return replace(
        before,
        as_of=as_of,
        verdict=ROLLBACK,
        kind=BY_HAND,
        reasons=(f"{champion} was taken out of force and {to} put in its place: {reason}",),
        champion=to,
        contest=None,
        challenge=None,
        changed=True,
        decided_as_of=as_of,
        used_until_ns=max(before.used_until_ns, now_ns),
        barred=tuple(dict.fromkeys(barred)),
    )


def _settled(
    measured: Measured,
    before: Decision | None,
    verdict: str,
    reasons: Sequence[str],
    *,
    kind: str = NOTHING_DUE,
    champion: Champion | None = None,
    contest: Contest | None = None,
    challenge: Challenge | None = None,
    looks: tuple[Look, ...] | None = None,
) -> Decision:
    """Write down what was decided; without a new `champion` the one before stays."""
    carried = hold(measured.as_of, before, "")
    is_decision = kind != NOTHING_DUE
    # A look that found too few spikes has used nothing: it only counted them.
    uses = kind == GATE and verdict != INSUFFICIENT_DATA
    return replace(
        carried,
        verdict=verdict,
        reasons=tuple(reasons),
        champion=champion or carried.champion,
        kind=kind,
        contest=contest,
        challenge=challenge,
        changed=champion is not None,
        decided_as_of=measured.as_of if is_decision else carried.decided_as_of,
        used_until_ns=max(carried.used_until_ns, measured.end_ns) if uses else carried.used_until_ns,
        looks=carried.looks if looks is None else looks,
        data_hash=measured.data_hash,
        feature_hash=measured.feature_hash,
        evaluation_hash=measured.evaluation_hash,
    )


def _carried(before: Decision, as_of: str, verdict: str, reasons: tuple[str, ...]) -> Decision:
    """Take over what later decisions must know."""
    return Decision(
        as_of,
        verdict,
        reasons,
        before.champion,
        contest=before.contest,
        decided_as_of=before.decided_as_of,
        used_until_ns=before.used_until_ns,
        looks=before.looks,
        barred=before.barred,
    )

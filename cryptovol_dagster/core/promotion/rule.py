"""The rule that decides which model is champion: nomination, comparison, promotion, fallback, rollback.

Pure: an evaluation, the earlier decision and scored rows are the input, a `Decision` is the output. Storage
and model registry are handled elsewhere. Champion and challenger are trained models, not kinds.
The stored champion is scored, and the challenger stays the model it was at its nomination. Both are compared
on rows that neither has learned from; `gate.py` defines when, and at which level.

`decide` reads rows through `ContestRows`, only where the decision depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.models.kinds import FALLBACK, FIRST_CHAMPIONS, LEARNED, REFERENCES
from cryptovol_dagster.core.promotion.decision import (
    BY_HAND,
    EXPIRY,
    FIRST,
    GATE,
    HOLD,
    INSUFFICIENT_DATA,
    NOTHING_DUE,
    PROMOTE,
    REJECT,
    ROLLBACK,
    SUCCESSION,
    Challenge,
    Champion,
    Contest,
    Decision,
    DecisionError,
)
from cryptovol_dagster.core.promotion.gate import (
    InterimAnalysis,
    analysis_level,
    independent_block_s,
    is_analysis_due,
    is_final_analysis,
    paired_difference,
    still_counted,
    why_insufficient,
)
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.core.specs import DAY_S, NS, GateSpec

#: Names of the models in the scores of a hold-out, besides `REFERENCES`.
THE_CHAMPION, THE_CHALLENGER = "champion", "challenger"


class ContestRows(Protocol):
    """Scored rows of champion and challenger, read when a decision needs them.

    `decide` calls each method at most once, and none without a champion.
    """

    def why_unscorable(self, champion: Champion) -> str:
        """Return why the champion's file cannot score the rows at hand; empty where it can."""
        ...

    def why_challenger_unscorable(self, contest: Contest) -> str:
        """Return why the challenger's file cannot score the rows at hand; empty where it can."""
        ...

    def validation(self) -> Mapping[str, float | None]:
        """Return each candidate's average precision on its validation rows; None where unknown."""
        ...

    def hold_out(self, champion: Champion, contest: Contest) -> ScoredRows:
        """Return the hold-out, scored by `THE_CHAMPION`, `THE_CHALLENGER` and `REFERENCES`."""
        ...

    def matured(self, champion: Champion) -> ScoredRows:
        """Return the test rows, scored by `THE_CHAMPION` and by a newly trained `FALLBACK`."""
        ...


def hold(as_of: str, before: Decision | None, reason: str) -> Decision:
    """Return a decision without any change, as of a partition on which nothing was evaluated.

    Examples:
        >>> hold("2026-04-04-03:00", None, "no labelled rows").verdict
        'HOLD'
    """
    if before is None:
        return Decision(as_of, HOLD, (reason,), None)
    return _carried(before, as_of, HOLD, (reason,))


def decide(
    measured: Measured,
    before: Decision | None,
    rows: ContestRows,
    *,
    horizon_s: float,
    gate: GateSpec,
) -> Decision:
    """Decide which model is champion as of a partition.

    * Without a champion the first is of a kind in `FIRST_CHAMPIONS`, unproven, whatever the data show.
    * A champion that cannot score the rows cannot serve either. The model of its kind takes its place,
      unproven again.
    * There is at most one decision per day (market time); later partitions of the day carry it over.
    * A challenger whose hold-out has grown enough is compared with the champion (`judge`).
    * A champion that has expired, and ranks below `FALLBACK` on rows it did not learn from, falls back to it.

    Args:
        measured: the evaluation.
        before: the previous decision; None for the first.
        rows: scored rows, read on demand.
        horizon_s: H, in seconds.
        gate: spec of the comparison.

    Returns:
        The decision; it never promotes a challenger on insufficient data.
    """
    if before is None or before.champion is None:
        return _appointed(measured, before, "there was no champion yet")
    champion = before.champion
    if why := _why_out_of_service(measured, champion, rows):
        return _appointed(measured, before, why)
    contest = _contest(measured, before, rows)
    if before.decided_as_of[:10] == measured.as_of[:10]:
        reason = f"decided already as of {before.decided_as_of}: one decision a day"
        return _settled(measured, before, HOLD, (reason,), contest=contest)
    if contest is not None and _is_due(contest, measured.end_ns, gate):
        hold_out = rows.hold_out(champion, contest)
        challenge = _challenge(champion, contest, measured.end_ns, hold_out, horizon_s, gate)
        found = _analyzed(measured, before, contest, challenge, hold_out, gate)
    else:
        found = _not_analyzed(measured, before, contest, gate)
    has_expired = measured.end_ns - champion.unseen_from_ns > gate.champion_max_age_s * NS
    if found.changed or not has_expired:
        return found
    return _expired(measured, champion, found, rows.matured(champion), horizon_s, gate)


def _why_out_of_service(measured: Measured, champion: Champion, rows: ContestRows) -> str:
    """Return why a champion can neither be compared nor serve; empty where it can."""
    # First, because it reads the champion's file: a lost file is an error, whatever its features.
    unscorable = rows.why_unscorable(champion)
    if champion.feature_hash != measured.feature_hash:
        return (
            f"expected a champion of feature set {measured.feature_hash}, found {champion} trained "
            f"on {champion.feature_hash}: not comparable"
        )
    if unscorable:
        return f"expected the champion {champion} to score the rows, found: {unscorable}"
    return ""


def _contest(measured: Measured, before: Decision, rows: ContestRows) -> Contest | None:
    """Return the contest under way, if its challenger can score the rows, or else a new one.

    None where no model may challenge.
    """
    contest = before.contest
    is_alike = contest is not None and contest.challenger.feature_hash == measured.feature_hash
    if contest is not None and is_alike and not rows.why_challenger_unscorable(contest):
        return contest
    return nominate(measured, rows.validation(), before) if measured.candidates else None


def _is_due(contest: Contest, end_ns: int, gate: GateSpec) -> bool:
    return is_analysis_due(contest.start_ns, contest.looked_until_ns, end_ns, gate)


def nominate(measured: Measured, validation: Mapping[str, float | None], before: Decision) -> Contest | None:
    """Choose the challenger: the learned kind that ranks best on validation rows, never on test rows.

    Its hold-out begins after every row that it or the champion has learned from, and after every row that an
    earlier decision used.

    Args:
        measured: the evaluation as of which the candidates were trained.
        validation: average precision of candidates on their validation rows; None where unknown.
        before: the previous decision, with its champion.

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


def _appointed(measured: Measured, before: Decision | None, why: str) -> Decision:
    """Return a decision with an unproven champion; without a suitable model nothing changes."""
    champion = None if before is None else before.champion
    kinds = (*((champion.model,) if champion else ()), *FIRST_CHAMPIONS)
    name = next((kind for kind in kinds if kind in measured.trained), None)
    verdict = HOLD if measured.sufficient else INSUFFICIENT_DATA
    kind = FIRST if champion is None else SUCCESSION
    if name is None:
        lacking = (
            f"{why}; expected {' or '.join(FIRST_CHAMPIONS)} among the measured models, found "
            f"{', '.join(measured.numbers)}"
        )
        return _settled(measured, before, verdict, (lacking, *measured.reasons), kind=kind)
    return _settled(
        measured,
        before,
        PROMOTE if measured.sufficient else INSUFFICIENT_DATA,
        (f"{why}; {name} becomes champion, unproven", *measured.reasons),
        kind=kind,
        champion=replace(measured.trained[name], unproven=True),
    )


def _not_analyzed(measured: Measured, before: Decision, contest: Contest | None, gate: GateSpec) -> Decision:
    """Return the decision, with the reason, where no challenger was analyzed."""
    if contest is None:
        found = ", ".join(measured.trained)
        reason = f"expected a learned kind ({', '.join(LEARNED)}) to challenge the champion, found {found}"
        return _settled(measured, before, HOLD, (reason,), contest=None)
    fresh = contest.length_days(measured.end_ns)
    if contest.looked_until_ns is None:
        needed = gate.first_look_s / DAY_S
        what = f"a first analysis of {contest.challenger}"
        reason = f"expected {needed:g} days of hold-out for {what}, found {fresh:.2f}"
        return _settled(measured, before, INSUFFICIENT_DATA, (reason,), contest=contest)
    analyzed = contest.length_days(contest.looked_until_ns)
    needed = min(gate.growth * analyzed, gate.measured_for_s / DAY_S)
    what = f"the next analysis of {contest.challenger}"
    reason = f"expected {needed:.2f} days of hold-out for {what}, found {fresh:.2f}"
    return _settled(measured, before, HOLD, (reason,), contest=contest)


def _challenge(
    champion: Champion, contest: Contest, end_ns: int, rows: ScoredRows, horizon_s: float, gate: GateSpec
) -> Challenge:
    """Return the metrics of both models on a hold-out, without the difference, which spends error budget."""
    return Challenge(
        challenger=contest.challenger,
        champion=champion,
        start_ns=contest.start_ns,
        end_ns=end_ns,
        rows=rows.y.size,
        positives=int(rows.y.sum()),
        block_s=independent_block_s(rows, horizon_s, gate),
        average_precision=rows.average_precision(THE_CHALLENGER),
        brier=rows.brier(THE_CHALLENGER),
        champion_average_precision=rows.average_precision(THE_CHAMPION),
        champion_brier=rows.brier(THE_CHAMPION),
        references={name: rows.average_precision(name) for name in REFERENCES if name in rows.scores},
    )


def _analyzed(
    measured: Measured,
    before: Decision,
    contest: Contest,
    challenge: Challenge,
    rows: ScoredRows,
    gate: GateSpec,
) -> Decision:
    """Analyze a challenger on a hold-out that has grown enough."""
    end_ns, challenger = measured.end_ns, contest.challenger
    is_final = is_final_analysis(contest.start_ns, end_ns, gate)
    until = f"; {challenger} is dropped after {contest.length_days(end_ns):.1f} days" if is_final else ""
    if lacking := why_insufficient(rows, challenge.block_s, gate):
        return _settled(
            measured,
            before,
            INSUFFICIENT_DATA,
            (*lacking[:-1], lacking[-1] + until),
            kind=GATE,
            challenge=challenge,
            contest=None if is_final else contest,
        )
    level = analysis_level(contest.start_ns, contest.looked_until_ns, end_ns, before.looks, gate)
    if level <= 0:
        reason = (
            f"expected a rest of the error budget of {gate.error_rate:.1%} in "
            f"{gate.error_window_s / DAY_S:g} days, found it spent by {len(before.looks)} analyses"
        )
        return _settled(measured, before, HOLD, (reason,), contest=contest)
    difference = paired_difference(
        rows, THE_CHALLENGER, THE_CHAMPION, level=level, block_s=challenge.block_s, gate=gate
    )
    challenge = replace(challenge, difference=difference)
    verdict, reason = judge(challenge, gate)
    is_over = is_final or verdict in (PROMOTE, REJECT)
    return _settled(
        measured,
        before,
        verdict,
        (reason + (until if verdict == HOLD else ""),),
        kind=GATE,
        champion=challenger if verdict == PROMOTE else None,
        challenge=challenge,
        contest=None if is_over else replace(contest, looked_until_ns=end_ns),
        looks=(*still_counted(before.looks, end_ns, gate), InterimAnalysis(end_ns, level)),
    )


def judge(challenge: Challenge, gate: GateSpec) -> tuple[str, str]:
    """Compare a challenger with the champion, on sufficient data.

    Args:
        challenge: the metrics of both.
        gate: the least gain, and the tolerance of Brier scores.

    Returns:
        Verdict and reason.

    Examples:
        >>> from cryptovol_dagster.core.promotion.gate import Difference
        >>> one = Champion("har_logit", "2026-04-04-03:00", "p1", "f1", "run1", unproven=True)
        >>> two = Champion("xgboost", "2026-04-05-03:00", "p2", "f1", "run2", unproven=False)
        >>> better = Difference(estimate=0.03, low=0.01, high=0.05, standard_error=0.008, level=0.01)
        >>> metrics = {"average_precision": 0.33, "champion_average_precision": 0.30}
        >>> same = {"brier": 0.05, "champion_brier": 0.05}
        >>> challenge = Challenge(two, one, 0, 1, 9_000, 300, 7_200.0, **metrics, **same, difference=better)
        >>> judge(challenge, GateSpec())[0]
        'PROMOTE'
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
    # Written so that a NaN bound promotes nothing.
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
    rows: ScoredRows,
    horizon_s: float,
    gate: GateSpec,
) -> Decision:
    """Keep an expired champion, or fall back, depending on its ranking of rows after its training."""
    unlearned_days = (measured.end_ns - champion.unseen_from_ns) / NS / DAY_S
    age = f"{champion} has had no training data for {unlearned_days:.1f} days"
    is_under, numbers = _is_under_fallback(rows, horizon_s, gate)
    if not is_under:
        reason = f"{age}; it stays: {numbers}"
        return replace(found, reasons=(*found.reasons, reason), decided_as_of=measured.as_of)
    return replace(
        found,
        verdict=PROMOTE,
        kind=EXPIRY,
        reasons=(f"{age} and ranks below {FALLBACK}, which becomes champion: {numbers}", *found.reasons),
        champion=replace(measured.trained[FALLBACK], unproven=True),
        contest=None,
        changed=True,
        decided_as_of=measured.as_of,
        used_until_ns=max(found.used_until_ns, measured.end_ns),
    )


def _is_under_fallback(rows: ScoredRows, horizon_s: float, gate: GateSpec) -> tuple[bool, str]:
    """Compare a champion with the fallback; insufficient data never count against it."""
    if FALLBACK not in rows.scores:
        return False, f"expected {FALLBACK} among the measured models, found none"
    block_s = independent_block_s(rows, horizon_s, gate)
    if lacking := why_insufficient(rows, block_s, gate):
        return False, "; ".join(lacking)
    own, plain = (average_precision(rows.y, rows.scores[name]) for name in (THE_CHAMPION, FALLBACK))
    return own < plain, f"average precision {own:.4f} against {plain:.4f} of a new {FALLBACK}"


def roll_back(before: Decision, to: Champion, *, as_of: str, now_ns: int, reason: str) -> Decision:
    """Return the decision that makes an earlier model champion by hand.

    The removed model is barred, its challenger is dropped, and all rows up to now count as used: the next
    promotion depends on later rows only.

    Args:
        before: the previous decision.
        to: the model that becomes champion.
        as_of: the newest partition decided.
        now_ns: end of the newest rows.
        reason: the person's reason.

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
        reasons=(f"{champion} was replaced by {to}: {reason}",),
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
    looks: tuple[InterimAnalysis, ...] | None = None,
) -> Decision:
    """Return the record of what was decided; without a new `champion` the one before stays."""
    carried = hold(measured.as_of, before, "")
    is_decision = kind != NOTHING_DUE
    # An analysis with too few spikes has used no rows: it only counted spikes.
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
    """Return a decision with the state that later decisions need."""
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

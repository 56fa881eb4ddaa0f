"""Who becomes champion: the rule by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.models import MODELS
from cryptovol_dagster.core.models.kinds import LEARNED
from cryptovol_dagster.core.promotion.decision import (
    EXPIRY,
    FIRST,
    GATE,
    HOLD,
    INSUFFICIENT_DATA,
    NOTHING_DUE,
    PROMOTE,
    REJECT,
    ROLLBACK,
    SCHEMA_VERSION,
    SUCCESSION,
    Challenge,
    Champion,
    Contest,
    Decision,
    DecisionError,
)
from cryptovol_dagster.core.promotion.gate import Difference, InterimAnalysis
from cryptovol_dagster.core.promotion.measured import Measured, Numbers
from cryptovol_dagster.core.promotion.rule import (
    THE_CHALLENGER,
    THE_CHAMPION,
    decide,
    hold,
    judge,
    nominate,
    roll_back,
)
from cryptovol_dagster.core.specs import NS, GateSpec
from cryptovol_dagster_tests.core.promotion.given_rows import GivenRows

DAY_NS, MINUTE_NS = 86_400 * NS, 60 * NS
#: Midnight before the day of `NOW`.
ORIGIN_NS = 1_775_260_800 * NS
BEFORE, NOW = "2026-04-01-05:00", "2026-04-04-06:00"
END_NS = ORIGIN_NS + 6 * 3_600 * NS
GATE_SPEC = GateSpec(resamples=100)
REIGNING = Champion(
    "ewma", BEFORE, "before", "f00d", "run-before", True, "3", unseen_from_ns=END_NS - 3 * DAY_NS
)
CHALLENGER = Champion(
    "xgboost", BEFORE, "before", "f00d", "run-xgboost", False, "4", unseen_from_ns=END_NS - 3 * DAY_NS
)
CONTEST = Contest(CHALLENGER, END_NS - 2 * DAY_NS)
STANDING = Decision(BEFORE, HOLD, ("so far",), REIGNING, contest=CONTEST, decided_as_of=BEFORE)


def measured(
    kinds: tuple[str, ...] = ("ewma", "har_logit", "xgboost"),
    *,
    sufficient: bool = True,
    feature_hash: str = "f00d",
    as_of: str = NOW,
) -> Measured:
    return Measured(
        as_of=as_of,
        end_ns=END_NS,
        sufficient=sufficient,
        reasons=() if sufficient else ("2 positives in the test, 30 are needed",),
        numbers={name: Numbers(0.3, 0.05) for name in kinds},
        differences={},
        trained={
            name: Champion(
                name, as_of, "problem", feature_hash, f"run-{name}", False, unseen_from_ns=END_NS - DAY_NS
            )
            for name in kinds
        },
        data_hash="da7a",
        feature_hash=feature_hash,
        evaluation_hash="e7a1",
    )


def rows(*, days: float = 2, share: float = 0.1, seed: int = 1, **skill: float) -> ScoredRows:
    """Minutes up to now, and models that know the more of them the greater their skill."""
    random = np.random.default_rng(seed)
    size = int(days * 1_440)
    t_ns = END_NS - np.arange(size, 0, -1, dtype=np.int64) * MINUTE_NS
    y = random.random(size) < share
    scores = {name: 1 / (1 + np.exp(2 - how * y - random.normal(size=size))) for name, how in skill.items()}
    return ScoredRows(t_ns, MINUTE_NS, y, scores)


def settle(given: GivenRows, before: Decision | None = STANDING, found: Measured | None = None) -> Decision:
    return decide(found or measured(), before, given, horizon_s=300, gate=GATE_SPEC)


# --- the first champion, and one that cannot serve any more
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "first"),
    [(("xgboost", "ewma", "har_logit"), "ewma"), (("xgboost", "har_logit"), "har_logit")],
)
@pytest.mark.parametrize("sufficient", [True, False])
def test_the_first_champion_is_plain_and_unproven_whatever_the_data(
    models: tuple[str, ...], first: str, sufficient: bool
) -> None:
    found = measured(models, sufficient=sufficient)
    given = GivenRows()
    decision = settle(given, None, found)
    assert decision.champion == replace(found.trained[first], unproven=True)
    assert (decision.changed, decision.kind, decision.decided_as_of) == (True, FIRST, NOW)
    assert decision.verdict == (PROMOTE if sufficient else INSUFFICIENT_DATA)
    assert decision.reasons[0] == f"there was no champion yet; {first} becomes champion, unproven"
    # It has won on no row: they are all there for the first challenger.
    assert decision.used_until_ns == 0
    assert given.asked == []


def test_without_a_plain_model_there_is_no_champion() -> None:
    decision = settle(GivenRows(), None, measured(("xgboost", "logreg")))
    assert (decision.champion, decision.verdict, decision.changed) == (None, HOLD, False)
    assert decision.reasons == (
        "there was no champion yet; expected ewma or har_logit among the measured models, found xgboost, "
        "logreg",
    )


@pytest.mark.parametrize(
    ("kinds", "successor"), [(("ewma", "xgboost"), "ewma"), (("har_logit", "xgboost"), "har_logit")]
)
def test_a_champion_of_other_features_is_followed_by_its_own_kind(
    kinds: tuple[str, ...], successor: str
) -> None:
    found = measured(kinds, feature_hash="beef")
    given = GivenRows()
    decision = settle(given, STANDING, found)
    assert given.asked == ["why_unscorable"]
    assert decision.champion == replace(found.trained[successor], unproven=True)
    assert (decision.kind, decision.verdict, decision.contest) == (SUCCESSION, PROMOTE, None)
    assert decision.reasons == (
        f"expected a champion of feature set beef, found ewma of {BEFORE} trained on f00d: not comparable; "
        f"{successor} becomes champion, unproven",
    )


def test_a_champion_that_cannot_read_the_rows_is_followed_too() -> None:
    found = measured()
    given = GivenRows(unscorable="the features lack spread_60")
    decision = settle(given, STANDING, found)
    assert given.asked == ["why_unscorable"]
    assert (decision.kind, decision.changed) == (SUCCESSION, True)
    assert decision.reasons[0].startswith(
        f"expected the champion ewma of {BEFORE} to score the rows, found: the features lack spread_60"
    )


def test_where_no_successor_is_measured_the_champion_stays() -> None:
    found = measured(("xgboost",), feature_hash="beef")
    decision = settle(GivenRows(), STANDING, found)
    assert (decision.champion, decision.changed, decision.verdict) == (REIGNING, False, HOLD)


# --- nomination
# ------------------------------------------------------------------------------------------------------


def test_the_challenger_ranks_best_on_validation_and_begins_on_rows_nobody_used() -> None:
    found = measured()
    contest = nominate(found, {"har_logit": 0.4, "xgboost": 0.5}, STANDING)
    assert contest == Contest(found.trained["xgboost"], END_NS - DAY_NS)
    used = replace(STANDING, used_until_ns=END_NS - 3_600 * NS)
    assert nominate(found, {"har_logit": 0.6, "xgboost": 0.5}, used) == Contest(
        found.trained["har_logit"], END_NS - 3_600 * NS
    )
    newer = replace(STANDING, champion=replace(REIGNING, unseen_from_ns=END_NS - 60 * NS))
    assert nominate(found, {"xgboost": 0.5}, newer) == Contest(found.trained["xgboost"], END_NS - 60 * NS)


def test_neither_the_champion_itself_nor_a_barred_model_challenges() -> None:
    found = measured()
    barred = replace(STANDING, barred=(found.trained["xgboost"].identity,))
    assert nominate(found, {"xgboost": 0.9}, barred) is None
    itself = replace(STANDING, champion=found.trained["xgboost"])
    assert nominate(found, {"xgboost": 0.9, "har_logit": None}, itself) is None


def test_a_challenger_is_nominated_where_there_is_none_or_one_of_other_features() -> None:
    strange = replace(CONTEST, challenger=replace(CHALLENGER, feature_hash="beef"))
    for contest in (None, strange):
        given = GivenRows(rows(champion=1.5, challenger=1.5), ranks={"har_logit": 0.4, "xgboost": 0.5})
        before = replace(STANDING, contest=contest)
        nominated = nominate(measured(), given.ranks, before)
        decision = settle(given, before)
        assert given.asked == ["why_unscorable", "validation", "hold_out"]
        assert given.contest == nominated
        assert decision.challenge is not None
        assert decision.challenge.challenger == measured().trained["xgboost"]


def test_a_challenger_that_cannot_read_the_rows_is_followed_by_another() -> None:
    """Its cross features may be means over another reference set: scores of it would mean nothing."""
    before = replace(STANDING, contest=CONTEST)
    ranks = {"har_logit": 0.4, "xgboost": 0.5}
    held = rows(champion=1.5, challenger=1.5)
    stays, goes = (
        GivenRows(held, ranks=ranks),
        GivenRows(held, ranks=ranks, challenger_unscorable="other means"),
    )
    settle(stays, before)
    settle(goes, before)
    assert (stays.contest, stays.asked) == (CONTEST, ["why_unscorable", "hold_out"])
    assert goes.contest == nominate(measured(), ranks, before) != CONTEST
    assert goes.asked == ["why_unscorable", "validation", "hold_out"]


def test_plain_kinds_alone_bring_no_challenger() -> None:
    assert measured(("baseline_zscore", "ewma")).candidates == ()
    given = GivenRows()
    decision = settle(given, replace(STANDING, contest=None), measured(("baseline_zscore", "ewma")))
    assert given.asked == ["why_unscorable"]
    assert (decision.verdict, decision.champion, decision.contest) == (HOLD, REIGNING, None)
    assert decision.reasons == (
        "expected a learned kind (har_logit, logreg, xgboost) to challenge the champion, found "
        "baseline_zscore, ewma",
    )


# --- an interim analysis of the challenger
# ------------------------------------------------------------------------------------------------------


def test_a_challenger_that_is_surely_better_is_promoted_and_the_same_model_serves() -> None:
    decision = settle(GivenRows(rows(champion=0.5, challenger=2.5, ewma=0.4)))
    assert (decision.verdict, decision.kind, decision.changed) == (PROMOTE, GATE, True)
    assert decision.champion == CHALLENGER
    assert decision.contest is None
    challenge = decision.challenge
    assert challenge is not None
    assert challenge.difference is not None
    assert challenge.difference.low > 0
    assert (challenge.challenger, challenge.champion, challenge.rows) == (CHALLENGER, REIGNING, 2_880)
    assert set(challenge.references) == {"ewma"}
    # Two days of hold-out have earned two thirtieths of the errors allowed in a month.
    assert challenge.difference.level == pytest.approx(0.025 * 2 / 30)
    assert decision.looks == (InterimAnalysis(END_NS, challenge.difference.level),)
    assert decision.used_until_ns == END_NS
    assert "is above 0 with its lower bound" in decision.reasons[0]


def test_a_challenger_that_is_no_better_is_measured_on() -> None:
    decision = settle(GivenRows(rows(champion=1.5, challenger=1.5)))
    assert (decision.verdict, decision.champion, decision.changed) == (HOLD, REIGNING, False)
    assert decision.contest == replace(CONTEST, looked_until_ns=END_NS)
    assert (decision.decided_as_of, decision.used_until_ns) == (NOW, END_NS)
    assert "to be above 0 with its lower bound, found" in decision.reasons[0]


def test_a_challenger_that_is_surely_worse_is_rejected_and_let_go() -> None:
    decision = settle(GivenRows(rows(champion=2.5, challenger=0.5)))
    assert (decision.verdict, decision.contest, decision.champion) == (REJECT, None, REIGNING)
    assert "not to be below 0" in decision.reasons[0]


def test_an_undecided_challenger_is_let_go_after_the_longest_hold_out() -> None:
    contest = replace(CONTEST, start_ns=END_NS - 28 * DAY_NS, looked_until_ns=END_NS - 12 * DAY_NS)
    seen = rows(days=28, champion=1.5)
    alike = replace(seen, scores=dict.fromkeys((THE_CHAMPION, THE_CHALLENGER), seen.scores[THE_CHAMPION]))
    decision = settle(GivenRows(alike), replace(STANDING, contest=contest))
    assert (decision.verdict, decision.contest) == (HOLD, None)
    assert decision.reasons[0].endswith(f"; xgboost of {BEFORE} is dropped after 28.0 days")


@pytest.mark.parametrize(
    ("share", "says"),
    [(0.0, "0 positives in the hold-out, 30 are needed"), (1.0, "rows of the hold-out are all positives")],
)
def test_too_few_spikes_decide_nothing_and_spend_nothing(share: float, says: str) -> None:
    decision = settle(GivenRows(rows(share=share, champion=0.5, challenger=2.5)))
    assert (decision.verdict, decision.champion) == (INSUFFICIENT_DATA, REIGNING)
    assert says in decision.reasons[0]
    assert decision.challenge is not None
    assert decision.challenge.difference is None
    assert (decision.looks, decision.used_until_ns, decision.contest) == ((), 0, CONTEST)
    # One decision a day all the same.
    assert decision.decided_as_of == NOW


def test_before_the_hold_out_is_long_enough_it_is_not_read() -> None:
    given = GivenRows()
    short = replace(CONTEST, start_ns=END_NS - DAY_NS // 4)
    decision = settle(given, replace(STANDING, contest=short))
    assert (decision.verdict, decision.kind) == (INSUFFICIENT_DATA, NOTHING_DUE)
    assert decision.reasons == (
        f"expected 1 days of hold-out for a first analysis of xgboost of {BEFORE}, found 0.25",
    )
    looked = replace(CONTEST, looked_until_ns=END_NS - DAY_NS // 2)
    decision = settle(given, replace(STANDING, contest=looked))
    assert given.asked == ["why_unscorable"] * 2
    assert (decision.verdict, decision.contest) == (HOLD, looked)
    assert decision.reasons == (
        f"expected 3.00 days of hold-out for the next analysis of xgboost of {BEFORE}, found 2.00",
    )


def test_a_day_has_one_decision() -> None:
    before = replace(STANDING, decided_as_of=f"{NOW[:10]}-01:00")
    given = GivenRows(rows(champion=0.5, challenger=2.5))
    decision = settle(given, before)
    assert given.asked == ["why_unscorable"]
    assert (decision.verdict, decision.champion, decision.contest) == (HOLD, REIGNING, CONTEST)
    assert decision.reasons == (f"decided already as of {NOW[:10]}-01:00: one decision a day",)
    assert settle(given, before, measured(as_of="2026-04-05-00:00")).verdict == PROMOTE


def test_when_the_errors_allowed_are_spent_nobody_is_promoted() -> None:
    spent = replace(STANDING, looks=(InterimAnalysis(END_NS - DAY_NS, 0.025),))
    decision = settle(GivenRows(rows(champion=0.5, challenger=2.5)), spent)
    assert (decision.verdict, decision.champion, decision.looks) == (HOLD, REIGNING, spent.looks)
    assert decision.reasons == (
        "expected a rest of the error budget of 2.5% in 30 days, found it spent by 1 analyses",
    )


def challenge(difference: Difference | None, *, brier: float = 0.05, har: float = 0.3) -> Challenge:
    return Challenge(
        challenger=CHALLENGER,
        champion=REIGNING,
        start_ns=0,
        end_ns=END_NS,
        rows=1_000,
        positives=100,
        block_s=7_200.0,
        average_precision=0.4,
        brier=brier,
        champion_average_precision=0.3,
        champion_brier=0.05,
        references={"har_logit": har},
        difference=difference,
    )


@pytest.mark.parametrize(
    ("found", "verdict", "says"),
    [
        (challenge(Difference(0.1, 0.01, 0.2, 0.03, 0.001)), PROMOTE, "Brier 0.05000, at most 0.05100"),
        (challenge(Difference(0.1, 0.01, 0.2, 0.03, 0.001), brier=0.051), PROMOTE, "at most 0.05100"),
        (
            challenge(Difference(0.1, 0.0, 0.2, 0.03, 0.001)),
            HOLD,
            "to be above 0 with its lower bound, found +0.1000 [+0.0000, +0.2000] at level 0.10%",
        ),
        (challenge(Difference(0.1, float("nan"), 0.2, 0.0, 0.001)), HOLD, "with its lower bound"),
        (challenge(Difference(0.003, 0.001, 0.2, 0.0, 0.001)), HOLD, "to be worth a change, +0.0050 or more"),
        (challenge(Difference(-0.2, -0.3, -0.01, 0.1, 0.001)), REJECT, "not to be below 0, found -0.2000"),
        (
            challenge(Difference(0.1, 0.01, 0.2, 0.03, 0.001), har=0.45),
            HOLD,
            "to rank no lower than har_logit, found average precision 0.4000 and 0.4500",
        ),
        (
            challenge(Difference(0.1, 0.05, 0.2, 0.03, 0.001), brier=0.052),
            HOLD,
            f"expected Brier of xgboost of {BEFORE} to be at most 0.05100 (2% above ewma of {BEFORE}'s",
        ),
        (challenge(None), HOLD, "expected an interval of the average precision"),
    ],
)
def test_each_way_a_challenge_ends(found: Challenge, verdict: str, says: str) -> None:
    given_verdict, reason = judge(found, GATE_SPEC)
    assert given_verdict == verdict
    assert says in reason


# --- expiry
# ------------------------------------------------------------------------------------------------------


#: A challenger without a row yet.
FRESH = replace(STANDING, contest=replace(CONTEST, start_ns=END_NS))
OLD = replace(FRESH, champion=replace(REIGNING, unseen_from_ns=END_NS - 8 * DAY_NS))


@pytest.mark.parametrize(("days", "has_expired"), [(8, True), (7, False), (3, False)])
def test_only_an_expired_champion_is_compared_with_har(days: int, has_expired: bool) -> None:
    champion = replace(REIGNING, unseen_from_ns=END_NS - days * DAY_NS)
    given = GivenRows(tested=rows(champion=0.5, har_logit=1.5))
    decision = settle(given, replace(FRESH, champion=champion))
    assert given.asked == ["why_unscorable", *(["matured"] if has_expired else [])]
    assert (decision.kind == EXPIRY) == has_expired


def test_an_expired_champion_under_har_falls_back_to_it() -> None:
    matured = rows(champion=0.5, har_logit=1.5)
    decision = settle(GivenRows(tested=matured), OLD)
    found = measured().trained["har_logit"]
    assert decision.champion == replace(found, unproven=True)
    assert (decision.kind, decision.verdict, decision.contest) == (EXPIRY, PROMOTE, None)
    assert decision.reasons[0].startswith(
        f"ewma of {BEFORE} has had no training data for 8.0 days and ranks below har_logit, "
        "which becomes champion"
    )
    assert (decision.used_until_ns, decision.decided_as_of) == (END_NS, NOW)


@pytest.mark.parametrize(
    ("matured", "says"),
    [
        (rows(champion=1.5, har_logit=0.5), "it stays: average precision"),
        (rows(share=0.005, champion=0.5, har_logit=1.5), "positives in the hold-out, 30 are needed"),
        (rows(champion=0.5), "expected har_logit among the measured models, found none"),
    ],
)
def test_an_expired_champion_not_under_har_stays_with_a_reason(matured: ScoredRows, says: str) -> None:
    decision = settle(GivenRows(tested=matured), OLD)
    assert (decision.champion, decision.changed) == (OLD.champion, False)
    assert says in decision.reasons[-1]
    assert decision.decided_as_of == NOW


def test_a_challenger_that_wins_goes_before_the_fallback() -> None:
    given = GivenRows(rows(champion=0.5, challenger=2.5))
    decision = settle(given, replace(OLD, contest=CONTEST))
    assert (decision.champion, decision.kind) == (CHALLENGER, GATE)
    # Nothing depends on the fallback any more.
    assert given.asked == ["why_unscorable", "hold_out"]


def test_a_challenger_that_does_not_win_leaves_the_expired_champion_to_the_fallback() -> None:
    given = GivenRows(rows(champion=1.5, challenger=1.5), rows(champion=0.5, har_logit=1.5))
    decision = settle(given, replace(OLD, contest=CONTEST))
    assert given.asked == ["why_unscorable", "hold_out", "matured"]
    assert (decision.kind, decision.contest) == (EXPIRY, None)
    assert decision.challenge is not None
    assert len(decision.looks) == 1


# --- rollback
# ------------------------------------------------------------------------------------------------------


def test_a_rollback_bars_the_model_and_asks_for_fresh_rows() -> None:
    before = replace(STANDING, champion=CHALLENGER, looks=(InterimAnalysis(END_NS, 0.001),), used_until_ns=5)
    decision = roll_back(before, REIGNING, as_of=NOW, now_ns=END_NS, reason="alarms all night")
    assert (decision.verdict, decision.champion, decision.contest) == (ROLLBACK, REIGNING, None)
    assert decision.barred == (CHALLENGER.identity,)
    assert (decision.used_until_ns, decision.decided_as_of, decision.looks) == (END_NS, NOW, before.looks)
    assert decision.reasons == (f"xgboost of {BEFORE} was replaced by ewma of {BEFORE}: alarms all night",)
    # What comes after carries it on.
    carried = hold("2026-04-04-07:00", decision, "nothing was trained")
    assert (carried.barred, carried.used_until_ns) == (decision.barred, END_NS)
    back = roll_back(decision, CHALLENGER, as_of=NOW, now_ns=END_NS, reason="it was the feed")
    assert (back.champion, back.barred) == (CHALLENGER, (REIGNING.identity,))


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (Decision(BEFORE, HOLD, ("",), None), "there is no champion to roll back"),
        (STANDING, f"ewma of {BEFORE} is champion already"),
    ],
)
def test_what_cannot_be_rolled_back_is_said(before: Decision, says: str) -> None:
    with pytest.raises(DecisionError, match=says):
        roll_back(before, REIGNING, as_of=NOW, now_ns=END_NS, reason="")


# --- whatever the numbers
# ------------------------------------------------------------------------------------------------------


@st.composite
def standings(draw: st.DrawFn) -> Decision | None:
    champion = draw(
        st.none()
        | st.builds(
            Champion,
            model=st.sampled_from(sorted(MODELS)),
            as_of=st.just(BEFORE),
            problem_hash=st.just("before"),
            feature_hash=st.sampled_from(["f00d", "beef"]),
            mlflow_run_id=st.just("run-before"),
            unproven=st.booleans(),
            registry_version=st.none() | st.just("3"),
            unseen_from_ns=st.sampled_from([END_NS - 20 * DAY_NS, END_NS - DAY_NS]),
        )
    )
    if champion is None:
        return draw(st.none() | st.just(Decision(BEFORE, HOLD, ("nothing yet",), None)))
    looked = draw(st.none() | st.integers(CONTEST.start_ns + DAY_NS, END_NS - 1))
    contest = draw(st.none() | st.just(replace(CONTEST, looked_until_ns=looked)))
    looks = tuple(
        InterimAnalysis(END_NS - DAY_NS * age, level)
        for age, level in draw(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.01)), max_size=3))
    )
    decided = draw(st.sampled_from([BEFORE, NOW]))
    return Decision(BEFORE, HOLD, ("so far",), champion, contest=contest, looks=looks, decided_as_of=decided)


HOLD_OUTS = [
    rows(days=1, champion=a, challenger=b, har_logit=c)
    for a, b, c in [(0.5, 2.5, 0.5), (1.5, 1.5, 1.5), (2.5, 0.5, 2.0), (0.5, 2.5, 3.0)]
]


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(MODELS)), min_size=1, unique=True),
    sufficient=st.booleans(),
    feature_hash=st.sampled_from(["f00d", "beef"]),
    before=standings(),
    seen=st.sampled_from(HOLD_OUTS),
    matured=st.sampled_from(HOLD_OUTS),
)
def test_whatever_the_numbers(
    kinds: list[str],
    sufficient: bool,
    feature_hash: str,
    before: Decision | None,
    seen: ScoredRows,
    matured: ScoredRows,
) -> None:
    if "har_logit" not in kinds:
        matured = replace(matured, scores={THE_CHAMPION: matured.scores[THE_CHAMPION]})
    found = measured(tuple(kinds), sufficient=sufficient, feature_hash=feature_hash)
    given = GivenRows(seen, matured, dict.fromkeys(found.candidates, 0.5))
    decision = decide(found, before, given, horizon_s=300, gate=GATE_SPEC)
    reigning = None if before is None else before.champion
    is_decided = before is not None and before.decided_as_of == NOW
    is_appointed = reigning is None or reigning.feature_hash != feature_hash
    # Rows are read once at most, and none on which nothing depends.
    assert len(given.asked) == len(set(given.asked))
    if is_appointed:
        assert set(given.asked) <= {"why_unscorable"}
    if is_decided:
        assert not {"hold_out", "matured"} & set(given.asked)
    if reigning is not None and reigning.unseen_from_ns > END_NS - 7 * DAY_NS:
        assert "matured" not in given.asked
    if decision.kind == GATE:
        assert given.contest is not None
        assert decision.challenge is not None
        assert decision.challenge.challenger == given.contest.challenger
    assert decision.reasons
    assert all(decision.reasons)
    assert decision.changed == (decision.champion != reigning)
    # A champion is never lost, and what takes its place fits the features it will be given.
    assert decision.champion is not None or reigning is None
    if decision.changed:
        assert decision.champion is not None
        assert decision.champion.feature_hash == feature_hash
    if decision.kind == GATE and decision.changed:
        assert decision.challenge is not None
        difference = decision.challenge.difference
        assert difference is not None
        assert difference.low > 0
        assert not is_decided
        assert decision.champion == decision.challenge.challenger
    if is_decided and not is_appointed:
        assert (decision.verdict, decision.changed) == (HOLD, False)
    assert sum(look.level for look in decision.looks if look.at_ns > END_NS - 30 * DAY_NS) <= max(
        GATE_SPEC.error_rate,
        sum(look.level for look in (before.looks if before else ()) if look.at_ns > END_NS - 30 * DAY_NS),
    ) * (1 + 1e-9)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


# --- stored decisions
# ------------------------------------------------------------------------------------------------------


def test_a_decision_of_before_the_gate_is_read_and_its_champion_stays() -> None:
    body = {
        "schema_version": 1,
        "as_of": "2026-04-04-05:00",
        "verdict": "PROMOTE",
        "reasons": ["because"],
        "champion": {
            "model": "xgboost",
            "as_of": "2026-04-04-04:00",
            "problem_hash": "p",
            "feature_hash": "f00d",
            "mlflow_run_id": "run",
            "unproven": False,
            "registry_version": "7",
        },
        "challenge": {"model": "xgboost", "champion_model": "ewma"},
        "changed": True,
        "data_hash": "d",
        "feature_hash": "f00d",
        "evaluation_hash": "e",
    }
    decision = Decision.from_dict(body)
    champion = decision.champion
    assert champion is not None
    assert (champion.identity, champion.registry_version) == (("xgboost", "2026-04-04-04:00", "p"), "7")
    assert champion.unseen_from_ns == ORIGIN_NS + 5 * 3_600 * NS
    assert (decision.used_until_ns, decision.decided_as_of) == (END_NS, "2026-04-04-05:00")
    assert (decision.contest, decision.challenge) == (None, None)
    # It goes on from there, and is written in this version.
    again = Decision.from_dict(json.loads(json.dumps(decision.to_dict())))
    assert again == decision
    given = GivenRows(ranks={"xgboost": 0.5})
    assert settle(given, again).contest == nominate(measured(), given.ranks, again)
    assert given.asked == ["why_unscorable", "validation"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            {"schema_version": SCHEMA_VERSION + 1},
            f"schema version {SCHEMA_VERSION + 1}; this version reads 1 to",
        ),
        ({"schema_version": SCHEMA_VERSION}, "decision cannot be read: .*missing required field"),
        ({"schema_version": 1}, "decision cannot be read: KeyError"),
        (
            {"schema_version": 1, "as_of": "yesterday", "champion": None},
            "decision cannot be read: PartitionKeyError",
        ),
        ([], "decision cannot be read"),
    ],
)
def test_what_is_no_decision_is_refused(body: object, says: str) -> None:
    with pytest.raises(DecisionError, match=says):
        Decision.from_dict(body)  # type: ignore[arg-type] - that is the point


def test_nothing_evaluated_holds() -> None:
    held = hold(NOW, STANDING, "a market that stands still")
    assert (held.verdict, held.reasons, held.champion) == (HOLD, ("a market that stands still",), REIGNING)
    assert held.contest == CONTEST
    assert hold(NOW, None, "no data") == Decision(NOW, HOLD, ("no data",), None)


def test_a_version_is_given_to_whom_there_is() -> None:
    assert STANDING.registered_as("9").champion == replace(REIGNING, registry_version="9")
    with pytest.raises(DecisionError, match="has no champion to register"):
        hold(NOW, None, "no data").registered_as("9")
    with pytest.raises(DecisionError, match="has no challenger to register"):
        hold(NOW, None, "no data").challenger_registered_as("9")


def test_names_of_scores_are_no_kinds() -> None:
    assert not {THE_CHALLENGER, THE_CHAMPION} & set(MODELS)
    assert set(LEARNED) <= set(MODELS)

"""Who becomes champion: the rule by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster.core.models import MODELS
from cryptovol_dagster.core.promotion import (
    BRIER_TOLERANCE,
    HOLD,
    INSUFFICIENT_DATA,
    PROMOTE,
    REJECT,
    SCHEMA_VERSION,
    Champion,
    Decision,
    DecisionError,
    Difference,
    Measured,
    Numbers,
    decide,
    hold,
)

BEFORE, NOW = "2026-04-04-05:00", "2026-04-04-06:00"
REIGNING = Champion("ewma", BEFORE, "before", "f00d", "run-before", unproven=True, registry_version="3")


def measured(
    precision: dict[str, float | None],
    differences: dict[tuple[str, str], Difference] | None = None,
    *,
    brier: dict[str, float] | None = None,
    sufficient: bool = True,
    feature_hash: str = "f00d",
) -> Measured:
    return Measured(
        as_of=NOW,
        sufficient=sufficient,
        reasons=() if sufficient else ("2 positives in the test, 30 are needed",),
        numbers={name: Numbers(ap, (brier or {}).get(name, 0.05)) for name, ap in precision.items()},
        differences=differences or {},
        trained={
            name: Champion(name, NOW, "problem", feature_hash, f"run-{name}", unproven=False)
            for name in precision
        },
        data_hash="da7a",
        feature_hash=feature_hash,
        evaluation_hash="e7a1",
    )


@pytest.mark.parametrize(
    ("models", "first"),
    [(("xgboost", "ewma", "har_logit"), "ewma"), (("xgboost", "har_logit"), "har_logit")],
)
@pytest.mark.parametrize("sufficient", [True, False])
def test_the_first_champion_is_plain_and_unproven_whatever_the_data(
    models: tuple[str, ...], first: str, sufficient: bool
) -> None:
    decision = decide(measured(dict.fromkeys(models, 0.9), sufficient=sufficient), None)
    assert decision.champion is not None
    assert (decision.champion.model, decision.champion.as_of, decision.champion.unproven) == (
        first,
        NOW,
        True,
    )
    assert decision.changed
    assert decision.verdict == (PROMOTE if sufficient else INSUFFICIENT_DATA)
    assert decision.reasons[0] == f"there was no champion yet; {first} takes the place, unproven"


def test_without_a_plain_model_there_is_no_champion() -> None:
    decision = decide(measured({"xgboost": 0.9, "logreg": 0.8}), None)
    assert (decision.champion, decision.verdict, decision.changed) == (None, HOLD, False)
    assert decision.reasons == (
        "there was no champion yet; expected ewma or har_logit among the models measured, found xgboost, "
        "logreg",
    )


def test_a_challenger_that_is_surely_better_is_promoted_and_proven() -> None:
    better = {("xgboost", "ewma"): Difference(0.1, 0.01, 0.2)}
    decision = decide(measured({"ewma": 0.3, "logreg": 0.35, "xgboost": 0.4}, better), REIGNING)
    assert decision.verdict == PROMOTE
    assert decision.champion == Champion("xgboost", NOW, "problem", "f00d", "run-xgboost", unproven=False)
    assert decision.challenge is not None
    assert (decision.challenge.average_precision, decision.challenge.champion_average_precision) == (0.4, 0.3)
    assert decision.reasons == (
        "average precision of xgboost minus that of ewma is above 0 with its lower bound: +0.1000 [+0.0100, "
        "+0.2000]; Brier 0.05000, at most 0.05100",
    )


@pytest.mark.parametrize(
    ("difference", "brier", "verdict", "says"),
    [
        (
            Difference(0.1, 0.0, 0.2),
            0.05,
            HOLD,
            "to be above 0 with its lower bound, found +0.1000 [+0.0000, +0.2000]",
        ),
        (Difference(0.1, -0.1, 0.2), 0.05, HOLD, "found +0.1000 [-0.1000, +0.2000]"),
        (Difference(-0.2, -0.3, -0.01), 0.05, REJECT, "not to be below 0, found -0.2000 [-0.3000, -0.0100]"),
        (Difference(0.1, 0.05, 0.2), 0.052, HOLD, "expected Brier of xgboost to be at most 0.05100"),
        (Difference(0.1, 0.05, 0.2), 0.051, PROMOTE, "Brier 0.05100, at most 0.05100"),
    ],
)
def test_each_way_a_challenge_ends(difference: Difference, brier: float, verdict: str, says: str) -> None:
    found = measured(
        {"ewma": 0.3, "xgboost": 0.4}, {("xgboost", "ewma"): difference}, brier={"xgboost": brier}
    )
    decision = decide(found, REIGNING)
    assert decision.verdict == verdict
    assert says in decision.reasons[0]
    assert (decision.champion == REIGNING) == (verdict != PROMOTE)


def test_a_learned_champion_is_compared_with_a_baseline_the_other_way_round() -> None:
    reigning = replace(REIGNING, model="xgboost", unproven=False)
    worse = {("xgboost", "ewma"): Difference(-0.1, -0.2, -0.05)}
    decision = decide(measured({"ewma": 0.4, "xgboost": 0.3}, worse), reigning)
    assert decision.verdict == PROMOTE
    assert decision.challenge is not None
    assert decision.challenge.difference == Difference(0.1, 0.05, 0.2)


def test_too_little_data_changes_nothing_and_shows_the_challenger() -> None:
    better = {("xgboost", "ewma"): Difference(0.5, 0.4, 0.6)}
    decision = decide(measured({"ewma": 0.1, "xgboost": 0.6}, better, sufficient=False), REIGNING)
    assert (decision.verdict, decision.champion, decision.changed) == (INSUFFICIENT_DATA, REIGNING, False)
    assert decision.reasons == ("2 positives in the test, 30 are needed",)
    assert decision.challenge is not None


def test_a_champion_of_other_features_is_followed_by_its_own_kind() -> None:
    decision = decide(measured({"ewma": 0.3, "xgboost": 0.9}, feature_hash="beef"), REIGNING)
    assert decision.champion is not None
    assert (decision.champion.model, decision.champion.as_of) == ("ewma", NOW)
    assert decision.champion.unproven
    assert decision.changed
    assert decision.reasons == (
        f"expected a champion of feature set beef, found ewma of {BEFORE} trained on f00d: not comparable; "
        "ewma takes the place, unproven",
    )
    gone = decide(measured({"har_logit": 0.3}, feature_hash="beef"), REIGNING)
    assert gone.champion is not None
    assert gone.champion.model == "har_logit"


def test_a_kind_that_is_no_longer_measured_stays_champion() -> None:
    decision = decide(measured({"xgboost": 0.9}), REIGNING)
    assert (decision.verdict, decision.champion) == (HOLD, REIGNING)
    assert decision.reasons[0] == (
        "expected the champion's kind ewma among the models measured, found xgboost"
    )


def test_nothing_ranked_is_no_challenger() -> None:
    decision = decide(measured({"ewma": None, "xgboost": None}, sufficient=False), REIGNING)
    assert (decision.verdict, decision.challenge) == (INSUFFICIENT_DATA, None)
    assert decision.reasons[0] == "expected a ranked challenger, found none"


def test_nothing_evaluated_holds() -> None:
    assert hold(NOW, REIGNING, "a market that stands still") == Decision(
        NOW, HOLD, ("a market that stands still",), REIGNING
    )


finite = st.floats(-1, 1)


@st.composite
def evaluations(draw: st.DrawFn) -> Measured:
    names = draw(st.lists(st.sampled_from(sorted(MODELS)), min_size=1, unique=True))
    precision = {name: draw(st.none() | st.floats(0, 1)) for name in names}
    bounds = st.tuples(finite, finite, finite).map(sorted)
    differences = {}
    for pair in combinations(names, 2):
        if draw(st.booleans()):
            low, estimate, high = draw(bounds)
            differences[pair] = Difference(estimate, low, high)
    return measured(
        precision,
        differences,
        brier={name: draw(st.floats(0, 1)) for name in names},
        sufficient=draw(st.booleans()),
        feature_hash=draw(st.sampled_from(["f00d", "beef"])),
    )


champions = st.none() | st.builds(
    Champion,
    model=st.sampled_from(sorted(MODELS)),
    as_of=st.just(BEFORE),
    problem_hash=st.just("before"),
    feature_hash=st.sampled_from(["f00d", "beef"]),
    mlflow_run_id=st.just("run-before"),
    unproven=st.booleans(),
    registry_version=st.none() | st.just("3"),
)


@settings(max_examples=200, deadline=None)
@given(evaluations(), champions)
def test_whatever_the_numbers(found: Measured, before: Champion | None) -> None:
    decision = decide(found, before)
    assert decision.reasons
    assert all(decision.reasons)
    assert decision.changed == (decision.champion != before)
    assert (decision.verdict == INSUFFICIENT_DATA) == (not found.sufficient)
    assert decision.changed or decision.verdict != PROMOTE
    # A champion is never lost, and fits the features it will be given or is the one before.
    assert decision.champion is not None or before is None
    if decision.changed and decision.champion is not None:
        assert decision.champion.as_of == NOW
        assert decision.champion.feature_hash == found.feature_hash
        if not decision.champion.unproven:
            assert before is not None
            difference = found.difference(decision.champion.model, before.model)
            assert difference is not None
            assert difference.low > 0
            ours, theirs = (found.numbers[name].brier for name in (decision.champion.model, before.model))
            assert ours is not None
            assert theirs is not None
            assert ours <= theirs * (1 + BRIER_TOLERANCE)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema version {SCHEMA_VERSION + 1}; this version reads"),
        ({"schema_version": SCHEMA_VERSION}, "decision cannot be read: .*missing required field"),
        ([], "decision cannot be read"),
    ],
)
def test_what_is_no_decision_is_refused(body: object, says: str) -> None:
    with pytest.raises(DecisionError, match=says):
        Decision.from_dict(body)  # type: ignore[arg-type] - that is the point

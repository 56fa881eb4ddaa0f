"""Rows scored by stored models: which rows, by which models, and only when asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryptovol_dagster.champion import scoring
from cryptovol_dagster.core.learning.dataset import Problem
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.models import Model, load_model, train_model
from cryptovol_dagster.core.promotion.decision import Champion, Contest
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.core.promotion.rule import THE_CHALLENGER, THE_CHAMPION
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.lake import datasets, decisions, plans
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.plans import SplitPlan
from cryptovol_dagster_tests.champion.world import HOURS, SPEC, World
from cryptovol_dagster_tests.core.clustered_market import MODEL_SPEC, make_problem
from cryptovol_dagster_tests.core.clustered_market import SPEC as MARKET


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(6_000)


@pytest.fixture(scope="module")
def plan(problem: Problem) -> SplitPlan:
    return SplitPlan(HOURS[1], "", problem.split, problem.thresholds, {}, "da7a", "f00d")


@pytest.fixture(scope="module")
def models(problem: Problem, plan: SplitPlan) -> dict[str, Model]:
    """Plain models of a small synthetic market."""
    return {
        name: train_model(
            name, problem, MARKET, MODEL_SPEC, feature_hash="f00d", problem_hash=plan.problem_hash
        )
        for name in ("ewma", "har_logit")
    }


def as_champion(name: str, plan: SplitPlan, as_of: str) -> Champion:
    return Champion(name, as_of, plan.problem_hash, "f00d", f"run-{name}", unproven=False)


def test_a_model_needs_its_features_but_for_the_optional_ones(models: dict[str, Model]) -> None:
    model = models["har_logit"]
    features, chosen = model.meta.features, MARKET.reference_set
    assert scoring.why_unscorable(model, (*features, "another"), chosen) == ""
    assert scoring.why_unscorable(model, features[1:], chosen) == f"the features lack {features[0]}"
    model = models["har_logit"].from_bytes(model.to_bytes())
    model.meta = replace(model.meta, optional=features[:1])
    assert scoring.why_unscorable(model, features[1:], chosen) == ""


def test_a_model_of_cross_features_needs_those_it_learned_from(models: dict[str, Model]) -> None:
    own, other = models["har_logit"], ("BTC-USD", "SOL-USD")
    columns = (*own.meta.features, "cross_ln_gk_60")
    assert own.meta.cross_set == ()
    assert scoring.why_unscorable(own, columns, other) == ""
    reads_cross = own.from_bytes(own.to_bytes())
    reads_cross.meta = replace(own.meta, features=columns, reference_set=("BTC-USD", "ETH-USD"))
    assert scoring.why_unscorable(reads_cross, columns, ("BTC-USD", "ETH-USD")) == ""
    assert scoring.why_unscorable(reads_cross, columns, other) == (
        "it reads cross features over BTC-USD, ETH-USD; those of the rows are over BTC-USD, SOL-USD"
    )


def test_rows_are_scored_whatever_the_order_of_their_columns(
    problem: Problem, models: dict[str, Model]
) -> None:
    features = problem.dataset.features
    reversed_and_more = features[features.columns[::-1]].assign(another=0.0)
    for model in models.values():
        np.testing.assert_array_equal(
            scoring.score(model, reversed_and_more), model.predict_proba(features[list(model.meta.inputs)])
        )


def test_validation_and_test_rows_are_those_of_the_problem(
    problem: Problem, models: dict[str, Model]
) -> None:
    rows, y = problem.part(problem.split.validation)
    assert scoring.validation_precisions(problem, models) == {
        name: average_precision(y, model.predict_proba(rows.features)) for name, model in models.items()
    }
    one_class = replace(problem, y=np.zeros_like(problem.y))
    assert scoring.validation_precisions(one_class, models) == dict.fromkeys(models)
    found = scoring.score_test(problem, models)
    rows, y = problem.part(problem.split.test)
    np.testing.assert_array_equal(found.t_ns, rows.t_ns)
    np.testing.assert_array_equal(found.y, y)
    assert set(found.scores) == set(models)


def test_each_question_reads_its_own_models_and_rows_and_no_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: Problem,
    plan: SplitPlan,
    models: dict[str, Model],
) -> None:
    lake = Lake(tmp_path)
    champion, challenger = as_champion("ewma", plan, HOURS[0]), as_champion("har_logit", plan, HOURS[1])
    decisions.keep_file(lake, MARKET, champion, models["ewma"].to_bytes())
    lake.write_bytes(MARKET.asset("model_har_logit"), HOURS[1], models["har_logit"].to_bytes(), "zip")
    measured = Measured(
        as_of=HOURS[1],
        end_ns=hour_window(HOURS[1])[1],
        sufficient=True,
        reasons=(),
        numbers={},
        differences={},
        trained={"har_logit": challenger},
        data_hash="da7a",
        feature_hash="f00d",
        evaluation_hash="e7a1",
    )
    read: list[Any] = []

    def read_problem(*asked: object) -> Problem:
        read.append("problem")
        return problem

    def score_span(_: object, spec: object, start_ns: int, end_ns: int, tau: object, named: Any) -> str:
        read.append((start_ns, end_ns, tau, {name: model.name for name, model in named.items()}))
        return "scored"

    monkeypatch.setattr(scoring.plans, "read_problem", read_problem)
    monkeypatch.setattr(scoring, "score_span", score_span)
    rows = scoring.StoredRows(lake, MARKET, plan, measured)
    monkeypatch.setattr(scoring, "feature_names", lambda spec: models["ewma"].meta.features)
    assert rows.why_unscorable(champion) == ""
    assert read == []
    assert set(rows.validation()) == {"har_logit"}
    assert read == ["problem"]
    assert set(rows.matured(champion).scores) == {THE_CHAMPION, "har_logit"}
    assert read == ["problem", "problem"]
    assert rows.hold_out(champion, Contest(challenger, 7)) == "scored"
    named = {"har_logit": "har_logit", THE_CHAMPION: "ewma", THE_CHALLENGER: "har_logit"}
    assert read[2:] == [(7, measured.end_ns, models["har_logit"].meta.thresholds, named)]
    # Without a new fallback the champion is scored alone.
    alone = replace(rows, measured=replace(measured, trained={}))
    assert set(alone.matured(champion).scores) == {THE_CHAMPION}


def test_a_hold_out_is_scored_by_the_stored_models_on_every_row_once(world: World) -> None:
    """The rows of three hours, read piece by piece, against one read of all of them."""
    champion, challenger = (
        load_model(world.lake.read_bytes(f"seconds/model_{name}", HOURS[0], "zip"))
        for name in ("ewma", "xgboost")
    )
    plan = plans.read_plan(world.lake, SPEC, HOURS[0])
    assert plan.split is not None
    start_ns, end_ns = plan.split.test.start_ns, hour_window(HOURS[3])[1] - 1_800 * NS
    thresholds = dict(challenger.meta.thresholds)
    found = scoring.score_span(
        world.lake, SPEC, start_ns, end_ns, thresholds, {"champion": champion, "challenger": challenger}
    )
    every = datasets.read_span(world.lake, SPEC, hour_window(HOURS[0])[0], hour_window(HOURS[3])[1])
    rows = every.rows((every.t_ns >= start_ns) & (every.t_ns < end_ns))
    assert len(rows) > 1_000
    np.testing.assert_array_equal(found.t_ns, rows.t_ns)
    tau = np.array([thresholds[name] for name in rows.product])
    np.testing.assert_array_equal(found.y, rows.sigma >= tau)
    for name, model in (("champion", champion), ("challenger", challenger)):
        np.testing.assert_array_equal(
            found.scores[name],
            model.predict_proba(rows.features.reindex(columns=list(model.meta.inputs))),
        )
    without = scoring.score_span(
        world.lake, SPEC, start_ns, end_ns, {"BTC-USD": thresholds["BTC-USD"]}, {"champion": champion}
    )
    assert without.t_ns.size == int(np.sum(rows.product == "BTC-USD"))


def test_a_piece_without_rows_is_left_out(world: World) -> None:
    model = load_model(world.lake.read_bytes("seconds/model_ewma", HOURS[0], "zip"))
    later_ns = hour_window(HOURS[3])[1] + 100 * 3_600 * NS
    found = scoring.score_span(world.lake, SPEC, later_ns, later_ns + 3_600 * NS, {}, {"champion": model})
    assert (found.t_ns.size, found.scores["champion"].size) == (0, 0)


def test_a_real_analysis_scores_both_models_and_the_references(world: World) -> None:
    world.settle(HOURS[0])
    decision = world.settle(HOURS[1]).decision
    challenge = decision.challenge
    assert challenge is not None
    assert (challenge.champion.model, challenge.champion.as_of) == ("ewma", HOURS[0])
    assert challenge.challenger.as_of == HOURS[1]
    assert set(challenge.references) == {"ewma", "har_logit"}
    assert challenge.rows > 500
    # EWMA of the hour ranks as in the hour's evaluation: the same rows and labels.
    report = json.loads(world.lake.read_bytes("seconds/model_evaluation", HOURS[1], "json"))
    assert challenge.references["ewma"] == pytest.approx(report["models"]["ewma"]["average_precision"])

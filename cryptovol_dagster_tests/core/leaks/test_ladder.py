"""The leak ladder: its honest rung is the ordinary way of judging, and each leak changes one step of it."""

from __future__ import annotations

import numpy as np
import pytest

from cryptovol_dagster.core.exploration.pictures import plot_leak_ladder
from cryptovol_dagster.core.leaks import ladder as leaks
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.models import train_model
from cryptovol_dagster_tests.core.leaks.bars import LEAK_SPEC, SMALL, made_up

FLATTERED = ("random split", "previous row's label", "label of the present")


@pytest.fixture(scope="module")
def honest() -> leaks.Study:
    return leaks.Study(made_up(1), LEAK_SPEC, SMALL, leaks.HONEST)


@pytest.fixture(scope="module")
def rungs(honest: leaks.Study) -> dict[str, leaks.Rung]:
    return {rung.name: rung for rung in leaks.leak_ladder(honest.bars, LEAK_SPEC, SMALL)}


def test_the_honest_rung_is_what_a_retrain_would_measure(
    honest: leaks.Study, rungs: dict[str, leaks.Rung]
) -> None:
    problem = honest.problem
    model = train_model("xgboost", problem, LEAK_SPEC, SMALL, feature_hash="")
    test, y = problem.part(problem.split.test)
    expected = average_precision(y, model.predict_proba(test.features))
    rung = rungs["honest"]
    assert rung.average_precision == pytest.approx(expected, abs=1e-12)
    assert (rung.test_rows, rung.base_rate) == (len(test), pytest.approx(y.mean()))
    assert rung.train_rows == len(problem.part(problem.split.train)[1])
    assert rung.lift == pytest.approx(expected / y.mean())


def test_there_is_a_rung_for_each_leak_and_the_famous_ones_stand_far_above(
    rungs: dict[str, leaks.Rung],
) -> None:
    assert list(rungs) == ["honest", "honest logreg", *(leak.name for leak in leaks.LEAKS)]
    assert not rungs["honest"].fault
    assert all(rungs[leak.name].fault == leak.fault for leak in leaks.LEAKS)
    for name in FLATTERED:
        assert rungs[name].average_precision > rungs["honest"].average_precision + 0.05, name
    tuned, honest = rungs["operating point by test"], rungs["honest"]
    assert tuned.average_precision == honest.average_precision
    assert tuned.f1 > honest.f1


def study(name: str, honest: leaks.Study) -> leaks.Study:
    return leaks.study_of(next(leak for leak in leaks.LEAKS if leak.name == name), honest)


def test_the_random_split_deals_the_same_rows(honest: leaks.Study) -> None:
    dealt, problem = study("random split", honest).problem, honest.problem
    split = problem.split

    def keys(of: leaks.Problem) -> list[tuple[int, str]]:
        parts = [of.part(part)[0] for part in (split.train, split.validation, split.test)]
        return sorted(
            (int(t), str(p)) for part in parts for t, p in zip(part.t_ns, part.product, strict=True)
        )

    assert keys(dealt) == keys(problem)
    for part in (split.train, split.validation, split.test):
        assert len(dealt.part(part)[1]) == len(problem.part(part)[1])
    assert dealt.part(split.train)[0].t_ns.max() > problem.part(split.test)[0].t_ns.min()


def test_what_a_leak_does_not_touch_is_computed_once(honest: leaks.Study) -> None:
    tuned, moved = study("operating point by test", honest), study("missing purge", honest)
    assert tuned.model("ewma") is honest.model("ewma")
    assert moved.dataset is honest.dataset
    assert moved.problem is not honest.problem
    assert moved.problem.split.train.end_ns == moved.problem.split.validation.start_ns


def test_leaking_labels_are_those_of_the_row_before_and_of_the_present(honest: leaks.Study) -> None:
    rows = honest.dataset
    shifted = study("label shifted by a row", honest).dataset
    own = rows.product == "BTC-USD"
    sigma = dict(zip(rows.t_ns[own], rows.sigma[own], strict=True))
    theirs = shifted.product == "BTC-USD"
    pairs = [
        (value, sigma[t - rows.bar_ns])
        for t, value in zip(shifted.t_ns[theirs], shifted.sigma[theirs], strict=True)
        if t - rows.bar_ns in sigma
    ]
    assert len(pairs) > 1_000
    assert all(a == b for a, b in pairs)
    present = study("label of the present", honest).dataset
    assert np.array_equal(present.sigma, present.trailing_sigma)


def test_the_ladder_is_drawn(rungs: dict[str, leaks.Rung]) -> None:
    assert plot_leak_ladder(tuple(rungs.values()), "made up").startswith(b"\x89PNG")

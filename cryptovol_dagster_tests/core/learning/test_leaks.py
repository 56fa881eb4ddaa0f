"""The leak ladder: the honest rung is the ordinary way of judging, and each leak stands out above it."""

from __future__ import annotations

import numpy as np
import pytest

from cryptovol_dagster.core import leaks
from cryptovol_dagster.core.dataset import Problem
from cryptovol_dagster.core.exploration_plots import plot_leak_ladder
from cryptovol_dagster.core.metrics import average_precision
from cryptovol_dagster.core.models import train_model
from cryptovol_dagster_tests.core.learning.market import MODEL_SPEC, SPEC, make_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(10_800)


@pytest.fixture(scope="module")
def rungs(problem: Problem) -> dict[str, leaks.Rung]:
    return {rung.name: rung for rung in leaks.leak_ladder(problem, MODEL_SPEC)}


def test_the_honest_rung_is_what_a_retrain_would_measure(
    problem: Problem, rungs: dict[str, leaks.Rung]
) -> None:
    model = train_model("xgboost", problem, SPEC, MODEL_SPEC, feature_hash="")
    test, y = problem.part(problem.split.test)
    expected = average_precision(y, model.predict_proba(test.features))
    honest = rungs["honest"]
    assert honest.average_precision == pytest.approx(expected, abs=1e-12)
    assert (honest.test_rows, honest.base_rate) == (len(test), pytest.approx(y.mean()))
    assert honest.lift == pytest.approx(expected / y.mean())


def test_every_leak_stands_above_the_honest_number(rungs: dict[str, leaks.Rung]) -> None:
    honest, *leaking = rungs.values()
    assert len(leaking) == 3
    assert not honest.fault
    for rung in leaking:
        assert rung.fault
        assert rung.average_precision > honest.average_precision + 0.05, rung


def test_the_random_split_deals_the_same_rows(problem: Problem) -> None:
    honest = leaks._in_time_order(problem)
    dealt = leaks._dealt(honest, seed=1)
    assert [part.y.size for part in dealt] == [part.y.size for part in honest]

    def keys(parts: leaks._Parts) -> list[tuple[int, str, bool]]:
        rows = [zip(part.dataset.t_ns, part.dataset.product, part.y, strict=True) for part in parts]
        return sorted((int(t), str(name), bool(y)) for part in rows for t, name, y in part)

    assert keys(dealt) == keys(honest)
    assert dealt.train.dataset.t_ns.max() > honest.test.dataset.t_ns.min()


def test_the_previous_label_is_that_of_the_same_product(problem: Problem) -> None:
    leaking = leaks._with_previous(problem)
    previous = leaking.dataset.features[leaks.PREVIOUS_LABEL].to_numpy()
    for product in problem.dataset.products:
        own = problem.dataset.product == product
        assert np.array_equal(previous[own][1:], problem.y[own][:-1].astype(float))
    assert leaks.PREVIOUS_LABEL not in problem.dataset.features


def test_the_ladder_is_drawn(rungs: dict[str, leaks.Rung]) -> None:
    assert plot_leak_ladder(tuple(rungs.values()), "made up").startswith(b"\x89PNG")

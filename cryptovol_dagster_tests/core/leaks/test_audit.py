"""The audit catches each known leak by the detector whose business it is, and is silent on the honest way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cryptovol_dagster.core.leaks import audit as leak_audit
from cryptovol_dagster.core.leaks import detectors, witnesses
from cryptovol_dagster.core.leaks.audit import Verdict
from cryptovol_dagster.core.leaks.detectors import Artefacts, Case, read_claims
from cryptovol_dagster.core.leaks.ladder import HONEST, LEAKS, Study
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.models import MODELS
from cryptovol_dagster_tests.core.leaks.bars import LEAK_SPEC, SMALL, made_up


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {verdict.rung.name: verdict for verdict in leak_audit.audit_leaks(made_up(1), LEAK_SPEC, SMALL)}


@pytest.fixture(scope="module")
def case() -> Case:
    """What the honest steps make, as it would lie in a lake."""
    study = Study(made_up(1), LEAK_SPEC, SMALL, HONEST)
    scaled = replace(study, bars=witnesses.scale_prices(study.bars), _models={})
    claims = read_claims(study.evaluation("logreg").to_dict())
    artefacts = Artefacts(study.problem, {"logreg": study.model("logreg")}, claims)
    return Case(study.bars, LEAK_SPEC, artefacts, study.dataset, scaled.problem.dataset)


@pytest.mark.parametrize("leak", [leak.name for leak in LEAKS])
def test_every_leak_is_caught_by_its_own_detector(verdicts: dict[str, Verdict], leak: str) -> None:
    verdict = verdicts[leak]
    assert verdict.detector == leak_audit.CAUGHT_BY[leak].__name__
    assert verdict.detector in verdict.fired
    assert verdict.passed
    said = {finding.detector: finding.said for finding in verdict.findings}
    assert said[verdict.detector]


def test_the_honest_way_is_not_flagged(verdicts: dict[str, Verdict]) -> None:
    honest = verdicts["honest"]
    assert honest.fired == ()
    assert honest.passed
    names = [detector.__name__ for detector in (*detectors.DETECTORS, *detectors.PAST_DETECTORS)]
    assert [finding.detector for finding in honest.findings] == names
    assert set(names) >= {detector.__name__ for detector in leak_audit.CAUGHT_BY.values()}


@pytest.mark.parametrize("seed", [2, 3])
def test_nor_is_it_on_another_market(seed: int) -> None:
    (honest,) = leak_audit.audit_leaks(made_up(seed), LEAK_SPEC, SMALL, leaks=())
    assert honest.passed, honest.findings


def test_a_verdict_says_what_the_leak_would_have_claimed(verdicts: dict[str, Verdict]) -> None:
    present = verdicts["label of the present"].to_dict()
    assert present["average_precision"] > 0.9 > present["honest_average_precision"]
    assert present["passed"]
    assert present["detector"] == "labels"
    assert "plausible_score" in present["fired"]


def test_what_lies_in_the_lake_is_looked_at_without_a_second_run(case: Case) -> None:
    findings = leak_audit.inspect(case)
    assert [finding.detector for finding in findings] == [d.__name__ for d in detectors.DETECTORS]
    assert all(finding.clean for finding in findings), findings


def test_a_model_that_standardised_by_all_rows_is_seen_in_the_model_itself(case: Case) -> None:
    rows, y = case.artefacts.problem.dataset, case.artefacts.problem.y
    model = MODELS["logreg"]().fit(rows, y, rows, y, SMALL)
    finding = detectors.scaler(replace(case, artefacts=replace(case.artefacts, models={"logreg": model})))
    assert not finding.clean
    assert "logreg subtracts" in finding.said
    assert "training rows is" in finding.said
    finding = detectors.purge(replace(case, artefacts=replace(case.artefacts, models={"logreg": model})))
    assert finding.said.startswith("the last of training rows of logreg is decided at")


def test_one_label_in_a_thousand_is_enough(case: Case) -> None:
    problem = case.artefacts.problem
    sigma = problem.dataset.sigma.copy()
    sigma[0] *= 1.01
    wrong = replace(problem, dataset=replace(problem.dataset, sigma=sigma))
    finding = detectors.labels(replace(case, artefacts=replace(case.artefacts, problem=wrong)))
    assert not finding.clean
    assert finding.said.startswith("1 of 1,000 labels are not the volatility that follows, e.g. ")


def test_a_row_on_the_wrong_side_of_its_threshold_is_seen(case: Case) -> None:
    problem = case.artefacts.problem
    y = problem.y.copy()
    y[7] = ~y[7]
    finding = detectors.thresholds(
        replace(case, artefacts=replace(case.artefacts, problem=replace(problem, y=y)))
    )
    assert finding.said == "1 rows are not labelled by σ ≥ τ"


def test_the_witness_changes_all_the_future_and_nothing_before(case: Case) -> None:
    bars, cut_ns = case.bars, case.bars.start_ns + 1_000 * case.bars.bar_ns
    changed = witnesses.change_future(bars, LEAK_SPEC, cut_ns)
    early, late = slice(None, 1_000), slice(1_000, None)
    for name, column in bars.columns().items():
        assert np.array_equal(column[:, early], getattr(changed, name)[:, early], equal_nan=_floats(column))
        if column.dtype == np.bool_:
            assert np.array_equal(column[:, late], getattr(changed, name)[:, late])
    for name in ("ret_nano", "gk_atto", "spread_nano", "close", "volume_e8"):
        assert not np.array_equal(getattr(bars, name)[:, late], getattr(changed, name)[:, late]), name


def _floats(column: np.ndarray) -> bool:
    return column.dtype.kind == "f"


def test_labels_recomputed_from_prices_stop_at_what_may_not_be_used(case: Case) -> None:
    bars, t_ns = case.bars, case.bars.start_ns + 100 * case.bars.bar_ns
    known = detectors.sigma_of_prices(bars, LEAK_SPEC, "BTC-USD", t_ns)
    assert known is not None
    moves = np.diff(np.log(bars.close[0, 99:115]))
    assert known.sigma == pytest.approx(np.sqrt(np.mean(moves**2)), rel=1e-12)
    assert (
        abs(known.sigma**2 - np.mean((bars.ret_nano[0, 100:115] * 1e-9) ** 2))
        <= known.slack
        < 1e-3 * known.sigma**2
    )
    wild = detectors.sigma_of_prices(bars, LEAK_SPEC, "BTC-USD", t_ns, garman_klass=True)
    assert wild is not None
    terms = bars.gk_atto[0, 100:115] * 1e-18
    assert abs(wild.sigma**2 - np.mean(terms)) <= wild.slack < 1e-2 * wild.sigma**2
    for flag, value in (("ret_ok", False), ("new_segment", True), ("in_gap", True)):
        assert detectors.sigma_of_prices(_with(bars, flag, 110, value), LEAK_SPEC, "BTC-USD", t_ns) is None
        assert detectors.sigma_of_prices(_with(bars, flag, 115, value), LEAK_SPEC, "BTC-USD", t_ns) == known
    assert detectors.sigma_of_prices(bars, LEAK_SPEC, "BTC-USD", bars.end_ns - bars.bar_ns) is None


def _with(bars: BarGrid, name: str, bar: int, value: bool) -> BarGrid:
    column = getattr(bars, name).copy()
    column[0, bar] = value
    return replace(bars, **{name: column})

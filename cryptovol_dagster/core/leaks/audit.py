"""The leak audit: detectors that examine what a way of judging made, and must catch every known leak.

A detector sees bars, rows, cut, thresholds, models and evaluation; it does not know which leak, if any, made
them. Two of its witnesses come from going the same steps again: on bars whose *future* was changed (nothing
decided before may change by a bit), and on bars whose *prices and sizes* are ten times as high (no feature
may change). Sound are only detectors that stay silent on the honest steps and catch each of
`ladder.LEAKS`; `audit_leaks` shows both. `inspect` runs those that need no second run on stored artefacts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptovol_dagster.core.evaluation.report import ModelEvaluation
from cryptovol_dagster.core.leaks.detectors import (
    DETECTORS,
    PAST_DETECTORS,
    Case,
    Finding,
    Made,
    labels,
    past_features,
    past_models,
    past_operating_points,
    price_scale,
    purge,
    read_claims,
    scaler,
    thresholds,
    time_order,
)
from cryptovol_dagster.core.leaks.ladder import HONEST, LEAKS, Leak, Rung, Study, rung_of, study_of
from cryptovol_dagster.core.leaks.witnesses import change_future, scale_prices
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.models.boosting import BoostedTrees
from cryptovol_dagster.core.parallel import on_all_cores
from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec


@dataclass(frozen=True)
class Verdict:
    """One way of judging and what the detectors say of it.

    Attributes:
        rung: what it claims.
        honest: what the honest way with the same kind of model comes to.
        detector: the one whose business its leak is; empty for the honest way.
        findings: of every detector.
    """

    rung: Rung
    honest: Rung
    detector: str
    findings: tuple[Finding, ...]

    @property
    def fired(self) -> tuple[str, ...]:
        """Names of the detectors that found something."""
        return tuple(finding.detector for finding in self.findings if not finding.clean)

    @property
    def passed(self) -> bool:
        """Whether the audit did its work: silent on the honest way, or a leak caught by its own detector."""
        return self.detector in self.fired if self.detector else not self.fired

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; a number that is none is null."""
        return {
            "leak": self.rung.name,
            "fault": self.rung.fault,
            "model": self.rung.model,
            "detector": self.detector or None,
            "passed": self.passed,
            "fired": list(self.fired),
            "findings": [finding._asdict() for finding in self.findings],
            "average_precision": _null(self.rung.average_precision),
            "honest_average_precision": _null(self.honest.average_precision),
            "f1": _null(self.rung.f1),
            "honest_f1": _null(self.honest.f1),
            "base_rate": self.rung.base_rate,
            "test_rows": self.rung.test_rows,
        }


#: Whose business each leak is.
CAUGHT_BY: Mapping[str, Callable[[Case], Finding]] = {
    "random split": time_order,
    "label shifted by a row": labels,
    "previous row's label": past_features,
    "label of the present": labels,
    "threshold of all rows": thresholds,
    "missing purge": purge,
    "scaler of all rows": scaler,
    "price level": price_scale,
    "early stopping by test": past_models,
    "operating point by test": past_operating_points,
}


def inspect(case: Case) -> tuple[Finding, ...]:
    """Run every detector that has what it needs."""
    used = DETECTORS if case.changed is None else (*DETECTORS, *PAST_DETECTORS)
    return tuple(on_all_cores(lambda detector: detector(case), used))


def audit_leaks(
    bars: BarGrid,
    timescale: TimescaleSpec,
    spec: ModelSpec,
    *,
    leaks: Sequence[Leak] = LEAKS,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[Verdict, ...]:
    """Run the honest steps and each leaking way on the same bars, and run the detectors on each.

    Args:
        bars: long enough for look-back, training span and test.
        timescale: what is asked.
        spec: parameters of the models.
        leaks: those to inject.
        progress: called with the name of each way before it is run.

    Returns:
        The honest way first, then one a leak.

    Raises:
        LearningError: the bars do not allow an honest problem.
    """
    honest = Study(bars, timescale, spec, HONEST)
    cut_ns = honest.problem.split.test.start_ns
    second = replace(honest, bars=change_future(bars, timescale, cut_ns), _models={})
    third = replace(honest, bars=scale_prices(bars), _models={})
    kinds = tuple(dict.fromkeys(leak.model for leak in leaks)) or (BoostedTrees.name,)

    def case_of(studies: Sequence[Study], names: tuple[str, ...]) -> tuple[Case, ModelEvaluation]:
        (made, report), (changed, _) = (_made(study, names) for study in studies[:2])
        scaled = studies[2].problem.dataset
        return Case(bars, timescale, made, honest.dataset, scaled, changed, cut_ns), report

    progress("honest")
    case, report = case_of((honest, second, third), kinds)
    rungs = {kind: rung_of(report, "honest", "", kind) for kind in kinds}
    verdicts = [Verdict(rungs[kinds[0]], rungs[kinds[0]], "", inspect(case))]
    for leak in leaks:
        progress(leak.name)
        case, report = case_of([study_of(leak, study) for study in (honest, second, third)], (leak.model,))
        rung = rung_of(report, leak.name, leak.fault, leak.model)
        detector = CAUGHT_BY[leak.name].__name__
        verdicts.append(Verdict(rung, rungs[leak.model], detector, inspect(case)))
    return tuple(verdicts)


def _made(study: Study, names: tuple[str, ...]) -> tuple[Made, ModelEvaluation]:
    models = {name: study.model(name) for name in names}
    evaluation = study.evaluation(*names)
    return Made(study.problem, models, read_claims(evaluation.to_dict())), evaluation.report


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None

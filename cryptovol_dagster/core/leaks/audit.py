"""The leak audit: detectors that examine the artefacts of a pipeline, and must catch every known leak.

A detector sees bars, rows, split, thresholds, models and evaluation; it does not know which leak, if any, is
in them. Two witnesses come from a second run of the same steps: on bars with another *future* (nothing
decided before may change by a bit), and on bars whose *prices and sizes* are ten times as high (no feature
may change). Valid detectors find nothing in the honest pipeline and catch each of `ladder.LEAKS`;
`audit_leaks` shows both. `inspect` runs the detectors that need no second run on stored artefacts.
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
    Artefacts,
    Case,
    Finding,
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
    """Findings of the detectors on one pipeline.

    Attributes:
        rung: its results.
        honest: results of the honest pipeline with the same kind of model.
        detector: the one that must catch its leak; empty for the honest pipeline.
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
        """Whether no detector fired on the honest pipeline, or the leak was caught by its own detector."""
        return self.detector in self.fired if self.detector else not self.fired

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form; undefined numbers are null."""
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


#: The detector that must catch each leak.
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
    """Run every detector whose input the case contains.

    Examples:
        >>> from cryptovol_dagster.core.leaks.ladder import HONEST
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, bars
        >>> artefacts, _ = _artefacts_of(Study(bars(), SPEC, MODEL_SPEC, HONEST), ("ewma",))
        >>> case = Case(bars(), SPEC, artefacts, artefacts.problem.dataset, artefacts.problem.dataset)
        >>> [finding.detector for finding in inspect(case) if not finding.clean]
        []
    """
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
    """Run the honest pipeline and each leaking one on the same bars, and the detectors on each.

    Args:
        bars: long enough for look-back, training span and test.
        timescale: spec of the chain.
        spec: parameters of the models.
        leaks: the leaks to inject.
        progress: called with the name of each pipeline before its run.

    Returns:
        The verdict on the honest pipeline first, then one per leak.

    Raises:
        LearningError: the bars do not suffice for the honest pipeline.

    Examples:
        >>> from cryptovol_dagster.core.leaks.ladder import LEAKS
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, SPEC, bars
        >>> purge = next(leak for leak in LEAKS if leak.name == "missing purge")
        >>> [verdict.passed for verdict in audit_leaks(bars(), SPEC, MODEL_SPEC, leaks=[purge])]
        [True, True]
    """
    honest = Study(bars, timescale, spec, HONEST)
    cut_ns = honest.problem.split.test.start_ns
    second = replace(honest, bars=change_future(bars, timescale, cut_ns), _models={})
    third = replace(honest, bars=scale_prices(bars), _models={})
    kinds = tuple(dict.fromkeys(leak.model for leak in leaks)) or (BoostedTrees.name,)

    def case_of(studies: Sequence[Study], names: tuple[str, ...]) -> tuple[Case, ModelEvaluation]:
        (artefacts, report), (changed, _) = (_artefacts_of(study, names) for study in studies[:2])
        scaled = studies[2].problem.dataset
        return Case(bars, timescale, artefacts, honest.dataset, scaled, changed, cut_ns), report

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


def _artefacts_of(study: Study, names: tuple[str, ...]) -> tuple[Artefacts, ModelEvaluation]:
    models = {name: study.model(name) for name in names}
    evaluation = study.evaluation(*names)
    return Artefacts(study.problem, models, read_claims(evaluation.to_dict())), evaluation.report


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Checks from the labels to the champion."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Sequence

from cryptovol_dagster.core.evaluation.report import SCHEMA_VERSION, EvaluationError, check_report
from cryptovol_dagster.core.models.kinds import BASELINES, LEARNED
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.defs import schemas
from cryptovol_dagster.defs.checks.framework import Check, Rule, Stored
from cryptovol_dagster.defs.checks.schema import schema_check
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.lake import decisions, plans

MIN_LABELLED_SHARE = 0.5
#: Range around the quantile's own base rate (10 %): regimes move it, but not beyond this.
BASE_RATE_RANGE = (0.005, 0.6)


def chain_checks(spec: TimescaleSpec, models: Sequence[str]) -> list[Check]:
    """Declare the checks of a chain from labels on."""
    labels, splits, evaluation = (asset_key(spec, name) for name in ("labels", "splits", "model_evaluation"))
    return [
        schema_check(labels, schemas.labels(spec)),
        Check(
            labels,
            "labelled_share",
            _labelled_share,
            description=f"At least {MIN_LABELLED_SHARE:.0%} of the rows have a label, none below 0.",
        ),
        Check(
            splits,
            "disjoint_with_purge",
            _disjoint(spec),
            description="Training, validation and test are in order, a horizon (and embargo) apart.",
            blocking=True,
        ),
        Check(
            splits,
            "base_rate",
            _base_rate(spec),
            description="The share of spikes in each part is one a market can have.",
        ),
        Check(
            evaluation,
            "complete",
            _complete_evaluation(spec, models),
            description="Every enabled model is measured, on the rows of the splits.",
            blocking=True,
        ),
        Check(
            evaluation,
            "not_worse_than_baseline",
            _not_worse_than_baseline(spec),
            description="The best learned model ranks no worse than the best baseline, where data suffice.",
        ),
        Check(
            evaluation,
            "no_leak",
            _no_leak(spec, models),
            description="Labels, thresholds and features, computed again, are those the models saw; nothing "
            "was chosen on the test, and no score is too good (docs/concepts/leaks.md).",
        ),
        Check(
            asset_key(spec, "champion"),
            "champion_not_worse_than_baseline",
            _champion_not_worse_than_baseline(spec),
            description="No baseline ranks surely better than the champion's kind, where data suffice.",
        ),
    ]


def _labelled_share(stored: Stored) -> list[str]:
    frame = stored.frame(["product", "bar_start", "sigma"])
    sentences = []
    negative = frame[frame["sigma"] < 0]
    if len(negative):
        first = negative.iloc[0]
        sentences.append(
            f"expected sigma >= 0, found {len(negative)} rows below, the first {first['product']} "
            f"{first['bar_start']}"
        )
    for product, sigma in frame.groupby("product", observed=True)["sigma"]:
        share = float(sigma.notna().mean())
        if share < MIN_LABELLED_SHARE:
            sentences.append(
                f"{product}: expected {MIN_LABELLED_SHARE:.0%} of rows labelled or more, found {share:.0%}"
            )
    return sentences


def _disjoint(spec: TimescaleSpec) -> Rule:
    def rule(stored: Stored) -> list[str]:
        split = plans.read_plan(stored.lake, spec, stored.key).split
        if split is None:
            return []
        # From the configuration, not from the split: otherwise the split would be compared with itself.
        embargo_ns = max(spec.horizon_ns, spec.splits.embargo_s * NS)
        borders = (
            ("validation", split.train.end_ns + spec.horizon_ns, split.validation.start_ns),
            ("test", split.validation.end_ns + spec.horizon_ns + embargo_ns, split.test.start_ns),
        )
        return [
            f"expected {name} to start at {expected} ns or later, found {found} ns: labels reach across"
            for name, expected, found in borders
            if found < expected
        ]

    return rule


def _base_rate(spec: TimescaleSpec) -> Rule:
    low, high = BASE_RATE_RANGE

    def rule(stored: Stored) -> list[str]:
        plan = plans.read_plan(stored.lake, spec, stored.key)
        if plan.status == plans.CARRIED:
            return []
        if not plan.trainable:
            return [f"expected a trainable span, found: {plan.reason}"]
        rates = {
            name: plan.counts[name]["positives"] / max(plan.counts[name]["rows"], 1)
            for name in ("train", "validation", "test")
        }
        return [
            f"{name}: expected a share of spikes between {low:.1%} and {high:.0%}, found {rate:.2%}"
            for name, rate in rates.items()
            if not low <= rate <= high
        ]

    return rule


def _complete_evaluation(spec: TimescaleSpec, models: Sequence[str]) -> Rule:
    def rule(stored: Stored) -> list[str]:
        if stored.was_skipped(spec):
            return []
        report, plan = stored.json(), plans.read_plan(stored.lake, spec, stored.key)
        sentences = [
            f"expected model {name} to be measured, found {sorted(report['models'])}"
            for name in models
            if name not in report["models"]
        ]
        try:
            check_report(report)
        except EvaluationError as error:
            sentences.append(f"expected the fields of schema version {SCHEMA_VERSION}, found an {error}")
        if report["data"]["hash"] != plan.data_hash:
            sentences.append(
                f"expected an evaluation of data {plan.data_hash}, found {report['data']['hash']}: "
                "splits were materialized again later"
            )
        return sentences

    return rule


def _not_worse_than_baseline(spec: TimescaleSpec) -> Rule:
    def rule(stored: Stored) -> list[str]:
        if stored.was_skipped(spec):
            return []
        report = stored.json()
        scores = {
            name: result["average_precision"]
            for name, result in report["models"].items()
            if result["average_precision"] is not None
        }
        best_learned = max((ap for name, ap in scores.items() if name in LEARNED), default=None)
        best_baseline = max((ap for name, ap in scores.items() if name not in LEARNED), default=None)
        if report["verdict"] != "ok" or best_learned is None or best_baseline is None:
            return []
        if best_learned >= best_baseline:
            return []
        return [
            f"expected the best learned model to reach the best baseline's average precision "
            f"{best_baseline:.3f}, found {best_learned:.3f}"
        ]

    return rule


def _no_leak(spec: TimescaleSpec, models: Sequence[str]) -> Rule:
    def rule(stored: Stored) -> list[str]:
        if stored.was_skipped(spec):
            return []
        from cryptovol_dagster.core.leaks.audit import inspect
        from cryptovol_dagster.lake.leak_case import stored_case

        findings = inspect(stored_case(stored.lake, spec, models, stored.key))
        return [
            f"{finding.detector}: expected nothing, found: {finding.said}"
            for finding in findings
            if not finding.clean
        ]

    return rule


def _champion_not_worse_than_baseline(spec: TimescaleSpec) -> Rule:
    def rule(stored: Stored) -> list[str]:
        plan = plans.read_plan(stored.lake, spec, stored.key)
        champion = decisions.read_decision(stored.lake, spec, stored.key).champion
        if champion is None or not plan.trainable:
            return []
        measured = decisions.read_measured(stored.lake, spec, plan)
        found = {name: measured.difference(champion.model, name) for name in BASELINES}
        return [
            f"expected {champion.model}, the champion's kind, not to rank below baseline {name} in the test "
            f"of {stored.key}, found a difference of average precision of {difference.estimate:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}]"
            for name, difference in found.items()
            if difference is not None and difference.high < 0
        ]

    return rule

"""Asset checks: one small function a rule; one step an asset runs its rules over the partitions of a run.

A rule reads one stored partition and gives sentences that say what was expected, what was found and where;
none means the partition passes. Checks read what was written, not what was in memory when it was written. Of
a run over a range Dagster takes a single result a check, which names the hours that fail; an evaluation of
each hour is logged beside it, without which Dagster would show the check of that hour as skipped.
"""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa

from cryptovol_dagster.core.evaluation.evaluate import BASELINES
from cryptovol_dagster.core.evaluation.report import SCHEMA_VERSION, EvaluationError, check_report
from cryptovol_dagster.core.features.catalogue import optional_feature_names
from cryptovol_dagster.core.learning.dataset import KEY_COLUMNS
from cryptovol_dagster.core.learning.labels import iso_utc
from cryptovol_dagster.core.market.ticks import TickColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.defs import schemas
from cryptovol_dagster.defs.assets.champion import champion_key
from cryptovol_dagster.defs.assets.ingestion import LEDGER_SCHEMA
from cryptovol_dagster.defs.assets.market import lake_name
from cryptovol_dagster.defs.metadata import asset_key
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake import market as chain
from cryptovol_dagster.lake.files import Lake, hour_window, partition_window
from cryptovol_dagster.lake.raw_ticks import RawStore

#: Shares at which people should look; none of them poisons a model, since such rows are never learned from.
MAX_GAP_SHARE = 0.2
MIN_LABELLED_SHARE = 0.5
#: Around the quantile's own base rate (10 %): regimes move it, this far it is no regime any more.
BASE_RATE_RANGE = (0.005, 0.6)
#: Models that learn more than a scale; the others are baselines.
LEARNED = ("har_logit", "logreg", "xgboost")
#: Failing sentences shown for each hour.
_SHOWN = 5


@dataclass(frozen=True)
class Stored:
    """A stored partition, as the rules of its asset see it: its table is read once."""

    lake: Lake
    asset: str
    key: str

    @cached_property
    def table(self) -> pa.Table:
        """The partition's table."""
        return self.lake.read_table(self.asset, *partition_window(self.key))

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Give the partition's table, or columns of it, as a frame."""
        return (self.table if columns is None else self.table.select(columns)).to_pandas()

    def json(self) -> dict[str, Any]:
        """Read the partition's JSON."""
        return json.loads(self.lake.read_bytes(self.asset, self.key, "json"))

    def was_skipped(self, spec: TimescaleSpec) -> bool:
        """Tell whether nothing was trained as of this partition, so that there is nothing to check."""
        return not chain.read_plan(self.lake, spec, self.key).trainable


Rule = Callable[[Stored], list[str]]


@dataclass(frozen=True)
class RawRule:
    """A rule about raw storage, which is asked for all hours of a run at once.

    Attributes:
        find: gives sentences by hour, none where it passes.
    """

    find: Callable[[RawStore, Sequence[str]], dict[str, list[str]]]

    def over(self, raw: RawStore, keys: Sequence[str]) -> Rule:
        """Give the rule about a partition of a run; the first that is asked for looks at all of them."""
        found = cache(partial(self.find, raw, keys))
        return lambda stored: found()[stored.key]


@dataclass(frozen=True)
class Check:
    """An asset check, declared: a rule about a partition, and what its failure means.

    Attributes:
        asset: that it is about.
        name: of the check.
        rule: what is to hold.
        description: what passes.
        blocking: whether a failure is an ERROR and stops the run. Any other is a WARN: an ERROR that let the
            run succeed would be one of which no alert told.
    """

    asset: dg.AssetKey
    name: str
    rule: Rule | RawRule
    description: str
    blocking: bool = False

    @property
    def key(self) -> dg.AssetCheckKey:
        """The key by which Dagster knows it."""
        return dg.AssetCheckKey(self.asset, self.name)

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        """What a failure is."""
        return dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN

    def spec(self, partitions: dg.PartitionsDefinition) -> dg.AssetCheckSpec:
        """Give what Dagster shows before anything was evaluated."""
        return dg.AssetCheckSpec(
            self.name,
            asset=self.asset,
            description=self.description,
            blocking=self.blocking,
            partitions_def=partitions,
        )


def asset_checks(
    checks: Sequence[Check], partitions: dg.PartitionsDefinition
) -> list[dg.AssetChecksDefinition]:
    """Make one step an asset out of the checks declared; it evaluates them in the order of declaration."""
    by_asset: dict[dg.AssetKey, list[Check]] = {}
    for check in checks:
        by_asset.setdefault(check.asset, []).append(check)
    return [_checks_step(asset, own, partitions) for asset, own in by_asset.items()]


def _checks_step(
    asset: dg.AssetKey, checks: Sequence[Check], partitions: dg.PartitionsDefinition
) -> dg.AssetChecksDefinition:
    of_raw = any(isinstance(check.rule, RawRule) for check in checks)

    @dg.multi_asset_check(
        name=f"{asset.to_python_identifier()}_checks",
        specs=[check.spec(partitions) for check in checks],
        can_subset=True,
        required_resource_keys={"lake", "raw"} if of_raw else {"lake"},
    )
    def step(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = context.partition_keys
        rules = {
            check: check.rule.over(context.resources.raw, keys)
            if isinstance(check.rule, RawRule)
            else check.rule
            for check in checks
            if check.key in context.selected_asset_check_keys
        }
        # A generator: only one partition's table is in memory.
        partitions = (Stored(context.resources.lake, lake_name(asset), key) for key in keys)
        for check, sentences in _evaluate(rules, partitions):
            if not context.has_partition_key:
                for key in keys:
                    evaluation = _evaluation(check, key, sentences[key])
                    # Dagster takes it; only the annotation of its method does not say so.
                    context.op_execution_context.log_event(evaluation)  # pyright: ignore[reportArgumentType]
            yield _result(check, sentences)

    return step


def _evaluate(
    rules: Mapping[Check, Rule], partitions: Iterable[Stored]
) -> Iterator[tuple[Check, dict[str, list[str]]]]:
    """Put every partition to every rule, and give what each found, by partition.

    Raises:
        Exception: the first that a rule raised, once the other checks' results are out: a column that is
            missing fails the check `schema`, and breaks rules that read it.
    """
    found: dict[Check, dict[str, list[str]]] = {check: {} for check in rules}
    broken: dict[Check, Exception] = {}
    for stored in partitions:
        for check, rule in rules.items():
            if check in broken:
                continue
            try:
                found[check][stored.key] = rule(stored)
            except Exception as error:  # noqa: BLE001 - raised below, once the others were evaluated
                broken[check] = error
    for check, sentences in found.items():
        if check not in broken:
            yield check, sentences
    if broken:
        raise next(iter(broken.values()))


def _evaluation(check: Check, key: str, sentences: Sequence[str]) -> dg.AssetCheckEvaluation:
    """Give what Dagster shows of a check for one partition of a range; it stops nothing by itself."""
    return dg.AssetCheckEvaluation(
        check.asset,
        check.name,
        passed=not sentences,
        severity=check.severity,
        description="\n".join(sentences[:_SHOWN]) or None,
        blocking=check.blocking,
        partition=key,
    )


def _result(check: Check, found: Mapping[str, list[str]]) -> dg.AssetCheckResult:
    failing = {key: sentences for key, sentences in found.items() if sentences}
    lines = [f"{key}: {sentence}" for key, sentences in failing.items() for sentence in sentences[:_SHOWN]]
    return dg.AssetCheckResult(
        asset_key=check.asset,
        check_name=check.name,
        passed=not failing,
        severity=check.severity,
        description="\n".join(lines[:_SHOWN]) if lines else None,
        metadata={
            "partitions": len(found),
            "failing_partitions": dg.MetadataValue.json(sorted(failing)),
            "findings": dg.MetadataValue.json(lines),
        },
    )


def _unaccounted(raw: RawStore, keys: Sequence[str]) -> dict[str, list[str]]:
    """Give what the audit of these hours finds, by hour."""
    found: dict[str, list[str]] = {key: [] for key in keys}
    for finding in raw.audit(hour_window(min(keys))[0], hour_window(max(keys))[1]).findings:
        if finding.hour in found:
            found[finding.hour].append(finding.text)
    return found


def _not_recorded(raw: RawStore, keys: Sequence[str]) -> dict[str, list[str]]:
    """Find hours of which nobody recorded anything, which is not the same as a quiet hour."""
    recorded = raw.recorded_hours()
    return {
        key: []
        if key in recorded or raw.closed_hour(key) is not None
        else ["expected raw storage to hold the hour, or to have closed it empty; found nothing of it"]
        for key in keys
    }


def ledger_checks() -> list[Check]:
    """Declare the checks of `gap_ledger`."""
    return [
        schema_check(
            dg.AssetKey(chain.LEDGER),
            LEDGER_SCHEMA,
            description="Columns and types are the ones that ticks and bars read.",
        ),
        Check(
            dg.AssetKey(chain.LEDGER),
            "nothing_unaccounted_for",
            RawRule(_unaccounted),
            description="Every sequence number of the hour is stored, a control frame, a dead letter or in "
            "the ledger, every Kafka offset is stored or recorded as lost, and a sealed hour is as it was.",
            blocking=True,
        ),
        Check(
            dg.AssetKey(chain.LEDGER),
            "recorded",
            RawRule(_not_recorded),
            description="Somebody recorded the hour: raw storage holds something of it, or closed it empty.",
        ),
    ]


def tick_checks() -> list[Check]:
    """Declare the checks of `ticks`."""
    ticks = dg.AssetKey(chain.TICKS)
    return [
        schema_check(
            ticks,
            TickColumns.empty().to_table().schema,
            description="Columns and types are the ones the core reads.",
        ),
        Check(
            ticks,
            "ordered_inside_the_hour",
            _ordered_ticks,
            description="Ticks of a product never go back in time and lie inside their hour.",
            blocking=True,
        ),
        Check(
            ticks,
            "no_crossed_quotes",
            _usable_quotes,
            description="Every quote is positive and its bid does not exceed its ask.",
            blocking=True,
        ),
    ]


def schema_check(asset: dg.AssetKey, schema: pa.Schema, *, description: str = "") -> Check:
    """Declare the check that a table has the columns and types that the code knows, and no others."""
    return Check(
        asset,
        "schema",
        _schema_rule(schema),
        description=description or f"Columns and types of {asset.path[-1]} are the ones the core writes.",
        blocking=True,
    )


def tick_bar_checks(spec: TimescaleSpec, products: Sequence[str]) -> list[Check]:
    """Declare the check of bars that only bars made of ticks can be put to."""
    return [
        Check(
            asset_key(spec, "bars"),
            "no_return_across_a_loss",
            _no_return_across_a_loss(spec, products),
            description="No bar has a known return between a product's ticks around a ledgered gap.",
            blocking=True,
        ),
    ]


def grid_checks(spec: TimescaleSpec, products: Sequence[str]) -> list[Check]:
    """Declare the checks of a grid's bars and features."""
    bars, features = asset_key(spec, "bars"), asset_key(spec, "features")
    return [
        schema_check(bars, schemas.bars(spec)),
        schema_check(features, schemas.features(spec)),
        Check(
            bars,
            "complete_grid",
            _complete_grid(spec, products),
            description="Every product has every bar of the partition once, in order.",
            blocking=True,
        ),
        Check(
            bars,
            "gap_share",
            _gap_share,
            description=f"At most {MAX_GAP_SHARE:.0%} of a product's bars lie in a gap.",
        ),
        Check(
            features,
            "finite_where_valid",
            _finite_where_valid(spec),
            description="A row that may be scored holds finite numbers; only optional features may be null.",
            blocking=True,
        ),
    ]


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
            description="Every enabled model is measured, on the rows the splits were made from.",
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
            "was chosen on the test, and no score is too good (docs/leaks.md).",
        ),
        Check(
            champion_key(spec),
            "champion_not_worse_than_baseline",
            _champion_not_worse_than_baseline(spec),
            description="No baseline ranks surely better than the champion's kind, where data suffice.",
        ),
    ]


def _schema_rule(expected: pa.Schema) -> Rule:
    def rule(stored: Stored) -> list[str]:
        found = stored.table.schema
        sentences = [
            f"{stored.asset}: expected column {field.name} {field.type}, found {_type_of(found, field.name)}"
            for field in expected
            if _type_of(found, field.name) != str(field.type)
        ]
        unknown = [name for name in found.names if name not in expected.names]
        if unknown:
            sentences.append(f"{stored.asset}: found columns nobody expects: {', '.join(unknown)}")
        return sentences

    return rule


def _type_of(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "no such column"


def _ordered_ticks(stored: Stored) -> list[str]:
    start_ns, end_ns = hour_window(stored.key)
    frame = stored.frame(["product_id", "event_time_ns"])
    sentences = []
    outside = frame[(frame["event_time_ns"] < start_ns) | (frame["event_time_ns"] >= end_ns)]
    if len(outside):
        first = outside.iloc[0]
        sentences.append(
            f"expected event times inside the hour, found {len(outside)} of {len(frame)} outside, the first "
            f"{first['product_id']} at {first['event_time_ns']} ns"
        )
    for product, times in frame.groupby("product_id", observed=True)["event_time_ns"]:
        back = np.flatnonzero(np.diff(times.to_numpy()) < 0)
        if back.size:
            sentences.append(
                f"{product}: expected ascending event times, found {back.size} steps back, the first after "
                f"{times.iloc[back[0]]} ns"
            )
    return sentences


def _usable_quotes(stored: Stored) -> list[str]:
    frame = stored.frame(["product_id", "event_time_ns", "bid", "ask"])
    bad = frame[~((frame["bid"] > 0) & (frame["bid"] <= frame["ask"]) & np.isfinite(frame["ask"]))]
    if bad.empty:
        return []
    first = bad.iloc[0]
    return [
        f"expected 0 < bid <= ask, found {len(bad)} of {len(frame)} ticks without, the first "
        f"{first['product_id']} at {first['event_time_ns']} ns: bid {first['bid']:g}, ask {first['ask']:g}"
    ]


def _complete_grid(spec: TimescaleSpec, products: Sequence[str]) -> Rule:
    def rule(stored: Stored) -> list[str]:
        start_ns, end_ns = partition_window(stored.key)
        expected = np.arange(start_ns, end_ns, spec.bar_ns)
        frame = stored.frame(["bar_start", "product"])
        absent = sorted(set(products) - set(frame["product"]))
        sentences = [f"{product}: expected {expected.size} bars in order, found none" for product in absent]
        for product, starts in frame.groupby("product", observed=True)["bar_start"]:
            found = starts.to_numpy(dtype="datetime64[ns]").astype(np.int64)
            if np.array_equal(found, expected):
                continue
            missing = np.setdiff1d(expected, found)
            first = f", the first at {iso_utc(int(missing[0]))}" if missing.size else ""
            sentences.append(
                f"{product}: expected {expected.size} bars in order, found {found.size} "
                f"({missing.size} missing{first})"
            )
        return sentences

    return rule


def _no_return_across_a_loss(spec: TimescaleSpec, products: Sequence[str]) -> Rule:
    """Find a gap's bars by sequence numbers, not by the flags that the bars were made with."""

    def rule(stored: Stored) -> list[str]:
        losses = chain.read_sequence_gaps(stored.lake, stored.key).to_pylist()
        if not losses:
            return []
        ticks = chain.read_ticks(stored.lake, stored.key, tuple(products))
        bars = stored.frame(["bar_start", "product", "ret_ok"])
        starts = bars["bar_start"].to_numpy(dtype="datetime64[ns]").astype(np.int64)
        sentences = []
        for loss in losses:
            for since_ns, until_ns, product in _spans_without_messages(ticks, loss, spec):
                inside = (starts + spec.bar_ns > since_ns) & (starts <= until_ns)
                wrong = np.flatnonzero(inside & bars["ret_ok"] & (bars["product"] == product))
                if wrong.size:
                    sentences.append(
                        f"{product}: expected no return from {iso_utc(since_ns)} to {iso_utc(until_ns)} "
                        f"(connection {loss['connection_id']} lost {loss['from_sequence']} to "
                        f"{loss['to_sequence']}), found {wrong.size}, the first at "
                        f"{iso_utc(int(starts[wrong[0]]))}"
                    )
        return sentences

    return rule


def _spans_without_messages(
    ticks: TickColumns, loss: dict[str, Any], spec: TimescaleSpec
) -> Iterator[tuple[int, int, str]]:
    """Give, for each product with ticks on both sides of a gap, from when to when its market is unknown."""
    if loss["connection_id"] not in ticks.connections:
        return
    of_connection = ticks.connection == ticks.connections.index(loss["connection_id"])
    for code, product in enumerate(ticks.products):
        of_product = ticks.product == code
        own = np.flatnonzero(of_connection & of_product)
        after = own[ticks.sequence_num[own] > loss["to_sequence"]]
        if not after.size or not (ticks.sequence_num[own] < loss["from_sequence"]).any():
            continue
        first = after[np.argmin(ticks.sequence_num[after])]
        until_ns = int(ticks.event_time_ns[first])
        before_ns = int(ticks.event_time_ns[:first][of_product[:first]].max(initial=0))
        yield max(before_ns, until_ns - round(spec.gap_after_s * NS)), until_ns, product


def _gap_share(stored: Stored) -> list[str]:
    shares = stored.frame(["product", "in_gap"]).groupby("product", observed=True)["in_gap"].mean()
    return [
        f"{product}: expected at most {MAX_GAP_SHARE:.0%} of the bars in a gap, found {share:.0%}"
        for product, share in shares.items()
        if share > MAX_GAP_SHARE
    ]


def _finite_where_valid(spec: TimescaleSpec) -> Callable[[Stored], list[str]]:
    optional = optional_feature_names(spec)

    def find(stored: Stored) -> list[str]:
        frame = stored.frame()
        valid = frame.loc[frame["valid"]]
        sentences = []
        for name in [name for name in frame.columns if name not in KEY_COLUMNS]:
            values = np.asarray(valid[name], dtype=np.float64)
            bad = valid.loc[np.isinf(values) if name in optional else ~np.isfinite(values)]
            if len(bad):
                sentences.append(
                    f"{name}: expected a finite number in every valid row, found {len(bad)} of {len(valid)} "
                    f"without, the first {bad['product'].iloc[0]} {bad['bar_start'].iloc[0]}"
                )
        return sentences

    return find


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
        split = chain.read_plan(stored.lake, spec, stored.key).split
        if split is None:
            return []
        # From the configuration, not from the split: a yardstick of its own making would fit anything.
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
        plan = chain.read_plan(stored.lake, spec, stored.key)
        if plan.status == chain.CARRIED:
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
        report, plan = stored.json(), chain.read_plan(stored.lake, spec, stored.key)
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
                "splits were made again since"
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
        plan = chain.read_plan(stored.lake, spec, stored.key)
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

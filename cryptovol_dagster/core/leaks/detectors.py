"""Detectors: each looks at one step from market to model for one way the future can get in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from cryptovol_dagster.core.evaluation.report import EvaluationError
from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.leaks.witnesses import PRICE_SCALE
from cryptovol_dagster.core.learning.dataset import Dataset, Problem
from cryptovol_dagster.core.learning.errors import LearningError
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.metrics.bootstrap import MIN_POSITIVES
from cryptovol_dagster.core.metrics.ranking import average_precision, best_f1_threshold
from cryptovol_dagster.core.models import Model
from cryptovol_dagster.core.models.logistic import LogisticModel
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Labels recomputed one by one; spread evenly over the rows.
_SAMPLED_LABELS = 1_000
#: Bars round logs of prices to a nano; what that may do to the square of a move of size m is twice m of it.
_ROUNDING = 1e-9
#: A scaler's mean may differ from that of its training rows by this share of their deviation (float32 sums).
_MEAN_TOLERANCE = 1e-3
#: Only so much of what the best single volatility misses has ever been found honestly (on 21 months of minute
#: bars XGBoost leaves two thirds of it); a ranking that leaves less than a third has read the answer.
_LEAST_SHARE_MISSED = 1 / 3


class Finding(NamedTuple):
    """What a detector says.

    Attributes:
        detector: its name.
        clean: whether it found nothing.
        said: what it looked at, or what is wrong and where.
    """

    detector: str
    clean: bool
    said: str


class Point(msgspec.Struct):
    """An operating point, as far as the audit needs it."""

    threshold: float
    f1: float | None = None


class Claim(msgspec.Struct):
    """What an evaluation claims for a model, as far as the audit needs it."""

    average_precision: float | None
    operating_points: dict[str, Point | None]

    def threshold(self, kind: str) -> float | None:
        """Return the threshold of an operating point; None where there is none."""
        point = self.operating_points[kind]
        return point and point.threshold


def read_claims(report: Mapping[str, Any]) -> dict[str, Claim]:
    """Read the claims in the JSON of an evaluation; what else it holds, and its version, do not matter.

    Raises:
        EvaluationError: it holds none.
    """
    try:
        return msgspec.convert(report["models"], dict[str, Claim])
    except (KeyError, msgspec.ValidationError) as error:
        raise EvaluationError(f"evaluation of another form: {error}") from error


@dataclass(frozen=True)
class Made:
    """What a way of judging made.

    Attributes:
        problem: rows, cut, thresholds, labels.
        models: fitted, by name.
        claims: of the evaluation, by model.
    """

    problem: Problem
    models: Mapping[str, Model]
    claims: Mapping[str, Claim]


@dataclass(frozen=True)
class Case:
    """What the detectors examine.

    Attributes:
        bars: the bars everything was made from.
        timescale: what was asked.
        made: what came of it.
        honest: rows whose features are known to be the declared ones, of the same bars.
        scaled: rows made by the same steps from bars whose prices and sizes are `PRICE_SCALE` times as high.
        changed: made by the same steps from bars that differ from `cut_ns` on; None where only one run is
            there to be looked at.
        cut_ns: everything decided by then must be the same.
    """

    bars: BarGrid
    timescale: TimescaleSpec
    made: Made
    honest: Dataset
    scaled: Dataset
    changed: Made | None = None
    cut_ns: int = 0


def time_order(case: Case) -> Finding:
    """Every training row is decided before every validation row, and that before every test row."""
    parts = _parts(case)
    for (before, earlier), (after, later) in pairwise(parts):
        wrong = int(np.sum(earlier.t_ns >= later.t_ns.min()))
        if wrong:
            return Finding(
                "time_order",
                False,
                f"{wrong:,} of {len(earlier):,} {before} rows are decided after the first {after} row "
                f"({iso_utc(int(later.t_ns.min()))})",
            )
    return Finding("time_order", True, "training, validation, test: one after the other")


def purge(case: Case) -> Finding:
    """No label reaches into the next part, and the embargo lies before the test.

    H is that of the timescale, not what the split says of itself. What a model says of its own training rows
    counts as well.
    """
    horizon_ns = case.timescale.horizon_ns
    embargo_ns = max(horizon_ns, case.timescale.splits.embargo_s * NS)
    (_, train), (_, validation), (_, test) = _parts(case)
    own = {f"training rows of {name}": model.meta.train_end_ns for name, model in case.made.models.items()}
    for what, last_ns, next_ns, reach_ns in (
        ("training", int(train.t_ns.max()), int(validation.t_ns.min()), horizon_ns),
        ("validation", int(validation.t_ns.max()), int(test.t_ns.min()), horizon_ns + embargo_ns),
        *((what, end_ns, int(test.t_ns.min()), horizon_ns + embargo_ns) for what, end_ns in own.items()),
    ):
        if last_ns + reach_ns > next_ns:
            return Finding(
                "purge",
                False,
                f"the last of {what} is decided at {iso_utc(last_ns)}, and what it speaks of "
                f"({reach_ns / NS:g} s with purge and embargo) reaches past {iso_utc(next_ns)}, where the "
                "next part begins",
            )
    return Finding(
        "purge", True, f"{horizon_ns / NS:g} s after training, {embargo_ns / NS:g} s more before test"
    )


def labels(case: Case) -> Finding:
    """σ of a row is that of the H bars after it, recomputed one by one from prices."""
    rows = case.made.problem.dataset
    garman_klass = getattr(case.timescale, "target", "rv") == "gk"
    covered = np.flatnonzero(rows.t_ns >= case.bars.start_ns + 2 * case.bars.bar_ns)
    spread = np.linspace(0, covered.size - 1, min(covered.size, _SAMPLED_LABELS)).astype(np.int64)
    wrong: list[str] = []
    for k in covered[spread].tolist():
        product, t_ns, sigma = str(rows.product[k]), int(rows.t_ns[k]), float(rows.sigma[k])
        expected = sigma_of_prices(case.bars, case.timescale, product, t_ns, garman_klass=garman_klass)
        if expected is None or abs(sigma**2 - expected.sigma**2) > expected.slack:
            text = "unknown" if expected is None else f"{expected.sigma:.4g}"
            wrong.append(f"{product} {iso_utc(t_ns)}: σ {sigma:.4g}, recomputed {text}")
    looked = spread.size
    if wrong:
        said = f"{len(wrong):,} of {looked:,} labels are not the volatility that follows, e.g. {wrong[0]}"
        return Finding("labels", False, said)
    return Finding("labels", looked > 0, f"{looked:,} labels recomputed from prices")


class Recomputed(NamedTuple):
    """A label from prices.

    Attributes:
        sigma: σ.
        slack: by how much σ² may differ from that of bars, whose moves are rounded.
    """

    sigma: float
    slack: float


def sigma_of_prices(
    bars: BarGrid, timescale: TimescaleSpec, product: str, t_ns: int, *, garman_klass: bool = False
) -> Recomputed | None:
    """Compute σ of ``(t, t + H]`` bar by bar from prices, slowly and by its definition alone.

    Close to close: ``sqrt(Σ (ln c_k − ln c_{k−1})² / H)``; Garman–Klass:
    ``sqrt(max(0, Σ (0.5 (ln h_k − ln l_k)² − (2 ln 2 − 1)(ln c_k − ln o_k)²)) / H)``.

    Returns:
        None where one of the bars may not be used or lies past the end.
    """
    row, first = bars.products.index(product), (t_ns - bars.start_ns) // bars.bar_ns
    total = sizes = 0.0
    for bar in range(first, first + timescale.horizon_bars):
        if bar >= bars.n_bars or not bars.ret_ok[row, bar] or bars.new_segment[row, bar]:
            return None
        if bars.in_gap[row, bar] or bars.age_s[row, bar] > timescale.label_max_age_s:
            return None
        close = math.log(bars.close[row, bar])
        move = close - math.log(bars.open[row, bar] if garman_klass else bars.close[row, bar - 1])
        span = math.log(bars.high[row, bar]) - math.log(bars.low[row, bar]) if garman_klass else 0.0
        total += 0.5 * span**2 - (2 * math.log(2) - 1) * move**2 if garman_klass else move**2
        sizes += abs(move) + span + _ROUNDING
    mean = max(total, 0.0) / timescale.horizon_bars
    return Recomputed(math.sqrt(mean), 2 * _ROUNDING * sizes / timescale.horizon_bars)


def thresholds(case: Case) -> Finding:
    """τ is the quantile of σ over the training rows, and a spike is what is at or over it."""
    problem, quantile = case.made.problem, case.timescale.quantile
    (_, train), *_ = _parts(case)
    for product in train.products:
        own = train.sigma[train.product == product]
        expected, found = float(np.quantile(own, quantile)), problem.thresholds.get(product)
        if found != expected:
            said = f"τ of {product} is {found:.6g}" if found is not None else f"{product} has no τ"
            return Finding(
                "thresholds",
                False,
                f"{said}; the {quantile:g} quantile of its {own.size:,} training rows is {expected:.6g}",
            )
    taus = np.array([problem.thresholds[name] for name in problem.dataset.product])
    wrong = int(np.sum((problem.dataset.sigma >= taus) != problem.y))
    said = f"the {quantile:g} quantile of {len(train):,} training rows"
    return Finding("thresholds", not wrong, f"{wrong:,} rows are not labelled by σ ≥ τ" if wrong else said)


def declared_features(case: Case) -> Finding:
    """Every column is a declared feature, with the value the declaration gives on these bars."""
    rows = case.made.problem.dataset
    if strange := sorted(set(rows.features.columns) - set(feature_names(case.timescale))):
        return Finding("declared_features", False, f"undeclared columns: {', '.join(strange)}")
    unlike, compared = _unlike(rows, case.honest)
    if unlike:
        said = f"{', '.join(unlike[:4])} differ from what the bars give ({len(unlike)} columns)"
        return Finding("declared_features", False, said)
    said = f"{len(rows.features.columns)} columns of {compared:,} rows computed again"
    return Finding("declared_features", compared > 0, said)


def price_scale(case: Case) -> Finding:
    """No feature changes when all prices and sizes are ten times as high."""
    unlike, compared = _unlike(case.made.problem.dataset, case.scaled)
    if unlike:
        said = f"{', '.join(unlike[:4])} change with the level of prices ({len(unlike)} columns)"
        return Finding("price_scale", False, said)
    return Finding(
        "price_scale", compared > 0, f"{compared:,} rows are the same at {PRICE_SCALE:g} times the price"
    )


def scaler(case: Case) -> Finding:
    """Linear models standardise by the mean of their training rows, features as the bars give them."""
    (_, train), *_ = _parts(case)
    at, there = _shared_rows(train, case.honest, None)
    # Computed again where all of them were: features that were scaled before would agree with themselves.
    features = case.honest.features.iloc[there] if at.size == len(train) else train.features
    looked = []
    for name, model in case.made.models.items():
        if not isinstance(model, LogisticModel):
            continue
        for column, held in zip(model.meta.features, model.folded().means, strict=True):
            values = features[column].to_numpy(dtype=np.float64)
            own, deviation = float(np.nanmean(values)), float(np.nanstd(values))
            if abs(held - own) > _MEAN_TOLERANCE * deviation + 1e-9 + 1e-6 * abs(own):
                said = (
                    f"{name} subtracts {held:.6g} from {column}; its mean over the {len(train):,} training "
                    f"rows is {own:.6g}"
                )
                return Finding("scaler", False, said)
        looked.append(name)
    said = f"means of {', '.join(looked)} are those of training" if looked else "no model has a scaler"
    return Finding("scaler", True, said)


def operating_point(case: Case) -> Finding:
    """The threshold of the highest F1 is that of validation rows."""
    validation, y = case.made.problem.part(case.made.problem.split.validation)
    for name, model in case.made.models.items():
        expected = best_f1_threshold(y, model.predict_proba(validation.features))
        found = case.made.claims[name].threshold("max_f1")
        if found != expected:
            said = f"{name} flags from {found} on; validation rows would have chosen {expected}"
            return Finding("operating_point", False, said)
    return Finding("operating_point", True, f"chosen again on {len(validation):,} validation rows: the same")


def past_features(case: Case) -> Finding:
    """Rows decided before the future was changed have the same features, bit for bit."""
    assert case.changed is not None
    unlike, compared = _unlike(case.made.problem.dataset, case.changed.problem.dataset, until_ns=case.cut_ns)
    if unlike:
        said = f"{', '.join(unlike[:4])} of earlier rows changed with bars after {iso_utc(case.cut_ns)}"
        return Finding("past_features", False, said)
    said = f"{compared:,} rows up to {iso_utc(case.cut_ns)} are the same whatever follows"
    return Finding("past_features", compared > 0, said)


def past_thresholds(case: Case) -> Finding:
    """Thresholds are the same whatever the test holds."""
    assert case.changed is not None
    before, after = case.made.problem.thresholds, case.changed.problem.thresholds
    if before != after:
        return Finding("past_thresholds", False, f"τ {before} became {after} when only later bars changed")
    return Finding("past_thresholds", True, "the same whatever follows")


def past_models(case: Case) -> Finding:
    """Fitted models are the same whatever the test holds: they say the same of the same rows, bit for bit."""
    assert case.changed is not None
    (_, train), *_ = _parts(case)
    for name, model in case.made.models.items():
        again = case.changed.models[name]
        same = model.meta.features == again.meta.features and model.importances() == again.importances()
        if not same or not np.array_equal(
            model.predict_proba(train.features), again.predict_proba(train.features)
        ):
            said = f"{name} became another model when only bars after {iso_utc(case.cut_ns)} changed"
            return Finding("past_models", False, said)
    return Finding("past_models", True, f"{', '.join(case.made.models)}: the same whatever follows")


def past_operating_points(case: Case) -> Finding:
    """Operating points are the same whatever the test holds."""
    assert case.changed is not None
    for name in case.made.models:
        for kind in case.made.claims[name].operating_points:
            before, after = (made.claims[name].threshold(kind) for made in (case.made, case.changed))
            if before != after:
                said = f"{kind} of {name} moved from {before} to {after} when only later bars changed"
                return Finding("past_operating_points", False, said)
    return Finding("past_operating_points", True, "the same whatever follows")


def plausible_score(case: Case) -> Finding:
    """No ranking leaves less than a third of what the best single volatility misses.

    That one is scored against labels of its own, straight from the bars, so that a label which is already
    known does not make it look as good as the model.
    """
    timescale = case.timescale
    _, _, (_, test) = _parts(case)
    grid = forward_volatility(case.bars, timescale)
    products = np.array([grid.products.index(name) for name in test.product])
    bar = (test.t_ns - grid.bar_ns - grid.start_ns) // grid.bar_ns
    sigma, trailing = grid.sigma[products, bar], grid.trailing_sigma[products, bar]
    taus = np.array([case.made.problem.thresholds[name] for name in test.product])
    known = np.isfinite(sigma) & np.isfinite(trailing)
    y = sigma[known] >= taus[known]
    if y.sum() < MIN_POSITIVES or y.all():
        return Finding("plausible_score", True, f"{y.sum()} positives in the test: no score means anything")
    best = average_precision(y, trailing[known])
    at, other = _shared_rows(test.rows(known), case.honest, None)
    for name in case.honest.features.columns:
        if name.startswith("ln_ewma_"):
            values = case.honest.features[name].to_numpy(dtype=np.float64)[other]
            best = max(best, average_precision(y[at], np.nan_to_num(values, nan=-np.inf)))
    for name in case.made.models:
        claimed = case.made.claims[name].average_precision
        if claimed is not None and 1 - claimed < _LEAST_SHARE_MISSED * (1 - best):
            said = f"{name} claims {claimed:.3f}; the best single volatility reaches {best:.3f} on these rows"
            return Finding("plausible_score", False, said)
    return Finding("plausible_score", True, f"the best single volatility reaches {best:.3f} on these rows")


#: Those that one set of artefacts is enough for.
DETECTORS: tuple[Callable[[Case], Finding], ...] = (
    time_order,
    purge,
    labels,
    thresholds,
    declared_features,
    price_scale,
    scaler,
    operating_point,
    plausible_score,
)
#: Those that compare with a second run on a changed future.
PAST_DETECTORS: tuple[Callable[[Case], Finding], ...] = (
    past_features,
    past_thresholds,
    past_models,
    past_operating_points,
)


def _parts(case: Case) -> tuple[tuple[str, Dataset], ...]:
    problem = case.made.problem
    spans = {
        "training": problem.split.train,
        "validation": problem.split.validation,
        "test": problem.split.test,
    }
    parts = tuple((name, problem.part(span)[0]) for name, span in spans.items())
    if empty := [name for name, rows in parts if not len(rows)]:
        raise LearningError(f"no rows in {', '.join(empty)}: there is nothing to audit")
    return parts


def _shared_rows(
    one: Dataset, other: Dataset, until_ns: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that both have, by (product, time), up to a time: where they stand in each."""
    names = sorted({*one.products, *other.products})

    def keys(rows: Dataset) -> NDArray[np.int64]:
        codes = np.searchsorted(np.array(names), rows.product.astype(str))
        return (rows.t_ns // rows.bar_ns) * len(names) + codes

    _, at, there = np.intersect1d(keys(one), keys(other), assume_unique=True, return_indices=True)
    if until_ns is not None:
        early = one.t_ns[at] <= until_ns
        at, there = at[early], there[early]
    return at, there


def _unlike(one: Dataset, other: Dataset, until_ns: int | None = None) -> tuple[list[str], int]:
    """Return the columns that differ in any bit on the rows both have, and the number of those rows."""
    at, there = _shared_rows(one, other, until_ns)
    unlike = []
    for name in one.features.columns:
        if name not in other.features:
            unlike.append(str(name))
            continue
        mine, theirs = one.features[name].to_numpy()[at], other.features[name].to_numpy()[there]
        if not np.array_equal(mine, theirs, equal_nan=True):
            unlike.append(str(name))
    return unlike, int(at.size)

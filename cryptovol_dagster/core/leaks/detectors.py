"""Detectors: each checks one step from market to model for one way in which future data can enter."""

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

#: Number of labels that are recomputed one by one, spread evenly over the rows.
_SAMPLED_LABELS = 1_000
#: Bars round logs of prices to a nano; the square of a move of size m then differs by at most 2·m of that.
_ROUNDING = 1e-9
#: A scaler's mean may differ from that of its training rows by this share of their deviation (float32 sums).
_MEAN_TOLERANCE = 1e-3
#: Least share of the best single volatility's misses that an honest ranking also misses. On 21 months of
#: minute bars XGBoost misses two thirds of them; a ranking that misses less than a third has a leak.
_LEAST_SHARE_MISSED = 1 / 3


class Finding(NamedTuple):
    """Result of a detector.

    Attributes:
        detector: its name.
        clean: whether it found nothing.
        said: what was checked, or the fault and its place.
    """

    detector: str
    clean: bool
    said: str


class Point(msgspec.Struct):
    """An operating point, as far as the audit needs it."""

    threshold: float
    f1: float | None = None


class Claim(msgspec.Struct):
    """Claims of an evaluation for a model, as far as the audit needs them."""

    average_precision: float | None
    operating_points: dict[str, Point | None]

    def threshold(self, kind: str) -> float | None:
        """Return the threshold of an operating point; None where there is none."""
        point = self.operating_points[kind]
        return point and point.threshold


def read_claims(report: Mapping[str, Any]) -> dict[str, Claim]:
    """Read the claims in the JSON of an evaluation of any version; other fields are ignored.

    Raises:
        EvaluationError: it contains no claims.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> claims = read_claims(evaluation().to_dict())
        >>> list(claims), claims["ewma"].threshold("max_f1") is not None
        (['ewma', 'har_logit'], True)
    """
    try:
        return msgspec.convert(report["models"], dict[str, Claim])
    except (KeyError, msgspec.ValidationError) as error:
        raise EvaluationError(f"evaluation of another form: {error}") from error


@dataclass(frozen=True)
class Artefacts:
    """Artefacts of a pipeline.

    Attributes:
        problem: rows, split, thresholds, labels.
        models: fitted, by name.
        claims: of the evaluation, by model.
    """

    problem: Problem
    models: Mapping[str, Model]
    claims: Mapping[str, Claim]


@dataclass(frozen=True)
class Case:
    """Input of the detectors.

    Attributes:
        bars: the bars of the pipeline.
        timescale: spec of the chain.
        artefacts: the artefacts to examine.
        honest: rows of the same bars with the declared features.
        scaled: rows of the same steps on bars whose prices and sizes are `PRICE_SCALE` times as high.
        changed: artefacts of the same steps on bars that differ from `cut_ns` on; None without a second run.
        cut_ns: everything decided by then must be the same.
    """

    bars: BarGrid
    timescale: TimescaleSpec
    artefacts: Artefacts
    honest: Dataset
    scaled: Dataset
    changed: Artefacts | None = None
    cut_ns: int = 0


def time_order(case: Case) -> Finding:
    """Check that training rows are decided before validation rows, and these before test rows."""
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
    """Check that no label reaches into the next part, and that the embargo precedes the test.

    H is that of the timescale, not that of the split. The training span in a model's metadata counts as well.
    """
    horizon_ns = case.timescale.horizon_ns
    embargo_ns = max(horizon_ns, case.timescale.splits.embargo_s * NS)
    (_, train), (_, validation), (_, test) = _parts(case)
    own = {
        f"training rows of {name}": model.meta.train_end_ns for name, model in case.artefacts.models.items()
    }
    for what, last_ns, next_ns, reach_ns in (
        ("training", int(train.t_ns.max()), int(validation.t_ns.min()), horizon_ns),
        ("validation", int(validation.t_ns.max()), int(test.t_ns.min()), horizon_ns + embargo_ns),
        *((what, end_ns, int(test.t_ns.min()), horizon_ns + embargo_ns) for what, end_ns in own.items()),
    ):
        if last_ns + reach_ns > next_ns:
            return Finding(
                "purge",
                False,
                f"the last of {what} is decided at {iso_utc(last_ns)}, and its label "
                f"({reach_ns / NS:g} s with purge and embargo) reaches past {iso_utc(next_ns)}, where the "
                "next part begins",
            )
    return Finding(
        "purge", True, f"{horizon_ns / NS:g} s after training, {embargo_ns / NS:g} s more before test"
    )


def labels(case: Case) -> Finding:
    """Check that σ of a row is that of the H bars after it, recomputed one by one from prices."""
    rows = case.artefacts.problem.dataset
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
    """A label recomputed from prices.

    Attributes:
        sigma: σ.
        slack: greatest difference of σ² from that of bars, whose moves are rounded.
    """

    sigma: float
    slack: float


def sigma_of_prices(
    bars: BarGrid, timescale: TimescaleSpec, product: str, t_ns: int, *, garman_klass: bool = False
) -> Recomputed | None:
    """Compute σ of ``(t, t + H]`` bar by bar from prices, slowly, by its definition.

    Close to close: ``sqrt(Σ (ln c_k − ln c_{k−1})² / H)``; Garman–Klass:
    ``sqrt(max(0, Σ (0.5 (ln h_k − ln l_k)² − (2 ln 2 − 1)(ln c_k − ln o_k)²)) / H)``.

    Returns:
        None where one of the bars may not be used or lies past the end.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars, dataset
        >>> row = dataset().slice(0, 1)
        >>> found = sigma_of_prices(bars(), SPEC, row.product[0], int(row.t_ns[0]))
        >>> f"{found.sigma:.4e}", f"{row.sigma[0]:.4e}"
        ('1.0194e-05', '1.0194e-05')
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
    """Check that τ is the quantile of σ over the training rows, and that spikes are at or above it."""
    problem, quantile = case.artefacts.problem, case.timescale.quantile
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
    """Check that every column is a declared feature, with the value of its formula on these bars."""
    rows = case.artefacts.problem.dataset
    if strange := sorted(set(rows.features.columns) - set(feature_names(case.timescale))):
        return Finding("declared_features", False, f"undeclared columns: {', '.join(strange)}")
    unlike, compared = _unlike(rows, case.honest)
    if unlike:
        said = f"{', '.join(unlike[:4])} differ from the features of the bars ({len(unlike)} columns)"
        return Finding("declared_features", False, said)
    said = f"{len(rows.features.columns)} columns of {compared:,} rows computed again"
    return Finding("declared_features", compared > 0, said)


def price_scale(case: Case) -> Finding:
    """Check that no feature changes when all prices and sizes are ten times as high."""
    unlike, compared = _unlike(case.artefacts.problem.dataset, case.scaled)
    if unlike:
        said = f"{', '.join(unlike[:4])} change with the level of prices ({len(unlike)} columns)"
        return Finding("price_scale", False, said)
    return Finding(
        "price_scale", compared > 0, f"{compared:,} rows are the same at {PRICE_SCALE:g} times the price"
    )


def scaler(case: Case) -> Finding:
    """Check that linear models standardise by the mean of their training rows, computed from the bars."""
    (_, train), *_ = _parts(case)
    at, there = _shared_rows(train, case.honest, None)
    # From recomputed features where possible: features that were scaled before would agree with themselves.
    features = case.honest.features.iloc[there] if at.size == len(train) else train.features
    looked = []
    for name, model in case.artefacts.models.items():
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
    """Check that the threshold of the highest F1 is that of validation rows."""
    validation, y = case.artefacts.problem.part(case.artefacts.problem.split.validation)
    for name, model in case.artefacts.models.items():
        expected = best_f1_threshold(y, model.predict_proba(validation.features))
        found = case.artefacts.claims[name].threshold("max_f1")
        if found != expected:
            said = f"{name} flags from {found} on; validation rows would have chosen {expected}"
            return Finding("operating_point", False, said)
    return Finding("operating_point", True, f"chosen again on {len(validation):,} validation rows: the same")


def past_features(case: Case) -> Finding:
    """Check that rows decided before the change of the future have the same features, bit for bit."""
    assert case.changed is not None
    unlike, compared = _unlike(
        case.artefacts.problem.dataset, case.changed.problem.dataset, until_ns=case.cut_ns
    )
    if unlike:
        said = f"{', '.join(unlike[:4])} of earlier rows changed with bars after {iso_utc(case.cut_ns)}"
        return Finding("past_features", False, said)
    said = f"{compared:,} rows up to {iso_utc(case.cut_ns)} are the same whatever follows"
    return Finding("past_features", compared > 0, said)


def past_thresholds(case: Case) -> Finding:
    """Check that thresholds do not depend on the test rows."""
    assert case.changed is not None
    before, after = case.artefacts.problem.thresholds, case.changed.problem.thresholds
    if before != after:
        return Finding("past_thresholds", False, f"τ {before} became {after} when only later bars changed")
    return Finding("past_thresholds", True, "the same whatever follows")


def past_models(case: Case) -> Finding:
    """Check that fitted models do not depend on the test rows: equal scores of equal rows, bit for bit."""
    assert case.changed is not None
    (_, train), *_ = _parts(case)
    for name, model in case.artefacts.models.items():
        again = case.changed.models[name]
        same = model.meta.features == again.meta.features and model.importances() == again.importances()
        if not same or not np.array_equal(
            model.predict_proba(train.features), again.predict_proba(train.features)
        ):
            said = f"{name} became another model when only bars after {iso_utc(case.cut_ns)} changed"
            return Finding("past_models", False, said)
    return Finding("past_models", True, f"{', '.join(case.artefacts.models)}: the same whatever follows")


def past_operating_points(case: Case) -> Finding:
    """Check that operating points do not depend on the test rows."""
    assert case.changed is not None
    for name in case.artefacts.models:
        for kind in case.artefacts.claims[name].operating_points:
            before, after = (
                artefacts.claims[name].threshold(kind) for artefacts in (case.artefacts, case.changed)
            )
            if before != after:
                said = f"{kind} of {name} moved from {before} to {after} when only later bars changed"
                return Finding("past_operating_points", False, said)
    return Finding("past_operating_points", True, "the same whatever follows")


def plausible_score(case: Case) -> Finding:
    """Check that no ranking misses less than a third of what the best single volatility misses.

    The single volatility is compared with labels computed from the bars, so that a leaking label does not
    improve it as much as the model.
    """
    timescale = case.timescale
    _, _, (_, test) = _parts(case)
    grid = forward_volatility(case.bars, timescale)
    products = np.array([grid.products.index(name) for name in test.product])
    bar = (test.t_ns - grid.bar_ns - grid.start_ns) // grid.bar_ns
    sigma, trailing = grid.sigma[products, bar], grid.trailing_sigma[products, bar]
    taus = np.array([case.artefacts.problem.thresholds[name] for name in test.product])
    known = np.isfinite(sigma) & np.isfinite(trailing)
    y = sigma[known] >= taus[known]
    if y.sum() < MIN_POSITIVES or y.all():
        return Finding("plausible_score", True, f"{y.sum()} positives in the test: scores are meaningless")
    best = average_precision(y, trailing[known])
    at, other = _shared_rows(test.rows(known), case.honest, None)
    for name in case.honest.features.columns:
        if name.startswith("ln_ewma_"):
            values = case.honest.features[name].to_numpy(dtype=np.float64)[other]
            best = max(best, average_precision(y[at], np.nan_to_num(values, nan=-np.inf)))
    for name in case.artefacts.models:
        claimed = case.artefacts.claims[name].average_precision
        if claimed is not None and 1 - claimed < _LEAST_SHARE_MISSED * (1 - best):
            said = f"{name} claims {claimed:.3f}; the best single volatility reaches {best:.3f} on these rows"
            return Finding("plausible_score", False, said)
    return Finding("plausible_score", True, f"the best single volatility reaches {best:.3f} on these rows")


#: Detectors that need one set of artefacts.
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
#: Detectors that compare with a second run on a changed future.
PAST_DETECTORS: tuple[Callable[[Case], Finding], ...] = (
    past_features,
    past_thresholds,
    past_models,
    past_operating_points,
)


def _parts(case: Case) -> tuple[tuple[str, Dataset], ...]:
    problem = case.artefacts.problem
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
    """Return the positions, in each dataset, of the rows that both have, by (product, time), up to a time."""
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
    """Return the columns that differ in any bit on the shared rows, and the number of those rows."""
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

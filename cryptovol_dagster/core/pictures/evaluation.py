"""Pictures of an evaluation as PNG bytes. matplotlib is imported when one is drawn, never before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.bench import onset_rows
from cryptovol_dagster.core.metrics.events import Event, Market
from cryptovol_dagster.core.metrics.ranking import Ranking
from cryptovol_dagster.core.models import MODELS, Model
from cryptovol_dagster.core.pictures.canvas import canvas, clock, log_bins, png, time_axis, title
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.units import BPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from cryptovol_dagster.core.evaluation.evaluate import Evaluation
    from cryptovol_dagster.core.evaluation.report import ModelEvaluation, OperatingPoints, ReliabilityBin
    from cryptovol_dagster.core.learning.dataset import Problem

#: Keys of AP and the ends of its interval in a summary row.
_AP = ("average_precision", "ap_low", "ap_high")
#: Number of horizons shown before and after an episode, and without spike that count as calm.
_CALM_HORIZONS = 10
#: Share of rows that must be known for a calm.
_LEAST_KNOWN = 0.9
#: Steps of a curve; more than the pixels of a picture are useless.
_STEPS_SHOWN = 2_000


class Curve(NamedTuple):
    """A model's precision over recall.

    Attributes:
        model: its name.
        score: of each row, shape (n,).
        found: average precision; None where there is nothing to rank.
        low: lower end of its interval, where there is one.
        high: upper end.
        marks: recall, precision and marker of operating points.
    """

    model: str
    score: NDArray[np.float64]
    found: float | None
    low: float | None = None
    high: float | None = None
    marks: Sequence[tuple[float, float, str]] = ()


class Calibration(NamedTuple):
    """Calibration of a model's probabilities.

    Attributes:
        table: reliability, by bins of predicted probability.
        error: expected calibration error.
        brier: score.
        slope: of the calibration line; None where there is none.
    """

    table: Sequence[ReliabilityBin]
    error: float
    brier: float
    slope: float | None = None


class Stretch(NamedTuple):
    """A stretch of a product's test rows, bounds included.

    Attributes:
        product: name of the product.
        start: first bar drawn.
        end: last bar drawn.
        has_spike: whether it is a spike episode; else the test has none.
        after_calm: whether a calm before the episode is drawn; else no episode of the test has one.
    """

    product: str
    start: pd.Timestamp
    end: pd.Timestamp
    has_spike: bool
    after_calm: bool


def draw_evaluation(evaluation: Evaluation, mid: pd.DataFrame | None) -> dict[str, bytes]:
    """Draw the pictures of an evaluation: PNGs by name, the most instructive first.

    Args:
        evaluation: the evaluation to draw.
        mid: as for `plot_episode`.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> list(draw_evaluation(evaluation(), mid=None))
        ['episode', 'precision_recall', 'precision_recall_onset', 'by_period', 'reliability']
    """
    return {
        "episode": plot_episode(evaluation, mid),
        "precision_recall": plot_pr_curves(evaluation),
        "precision_recall_onset": plot_pr_curves(evaluation, at_onset=True),
        "by_period": plot_by_period(evaluation),
        "reliability": plot_reliability(evaluation),
    }


def plot_pr_curves(evaluation: Evaluation, *, at_onset: bool = False) -> bytes:
    """Draw precision over recall of every model, with the base rate and AP (interval) in the legend.

    Without `at_onset`, marks show the thresholds chosen on validation rows: a dot for the largest F1, a
    triangle for the alert budget.

    Args:
        evaluation: the evaluation to draw.
        at_onset: only rows whose own trailing window is not yet a spike.
    """
    report, rows = evaluation.report, evaluation.predictions
    if at_onset:
        product, trailing = rows["product"].to_numpy(dtype=object), rows["trailing_sigma"].to_numpy()
        rows = rows.loc[onset_rows(trailing, product, report.thresholds)]
    y = rows["y"].to_numpy(dtype=bool)
    names = ("onset_average_precision", "onset_low", "onset_high") if at_onset else _AP
    curves = []
    for row in evaluation.summary_rows():
        name, (found, low, high) = row["model"], (row[key] for key in names)
        marks = [] if at_onset else _marks(report.models[name].operating_points)
        curves.append(Curve(name, rows[name].to_numpy(), found, low, high, marks))
    if at_onset:
        return plot_curves(
            y,
            curves,
            f"Onset: calm so far, are the next {report.horizon_s} s a spike?",
            f"{_measured_on(evaluation)}; {at_onset_only(y)}",
        )
    return plot_curves(
        y,
        curves,
        f"Precision and recall: are the next {report.horizon_s} s a spike?",
        f"{_measured_on(evaluation)}\nthresholds chosen on validation: ● largest F1, ▲ alert budget",
    )


def _marks(points: OperatingPoints) -> list[tuple[float, float, str]]:
    """Return recall, precision and marker of the existing operating points."""
    return [
        (point.recall or 0.0, point.precision or 0.0, marker)
        for point, marker in ((points.max_f1, "o"), (points.alert_budget, "^"))
        if point is not None
    ]


def at_onset_only(y: NDArray[np.bool_]) -> str:
    """Return the text on rows and spikes at onset, which follows the text on the whole test."""
    return f"of these {y.size:,} rows and {int(y.sum()):,} spikes at onset"


def plot_curves(y: NDArray[np.bool_], curves: Sequence[Curve], heading: str, measured_on: str) -> bytes:
    """Draw precision over recall, the best model first in the legend, over the base rate.

    Args:
        y: labels of the rows shown, shape (n,).
        curves: one per model; those without an AP are left out.
        heading: title of the picture.
        measured_on: description of the rows.
    """
    figure, axes = canvas(7.5, 6)
    for curve in sorted(curves, key=lambda one: -(one.found or 0.0)):
        if curve.found is None:
            continue
        recall, precision = _steps(y, curve.score)
        bounds = "" if curve.low is None else f" [{curve.low:.3f}, {curve.high:.3f}]"
        axes.step(
            recall,
            precision,
            where="pre",
            color=_colour(curve.model),
            linewidth=1.2,
            label=f"{curve.model}  AP {curve.found:.3f}{bounds}",
        )
        for at_recall, at_precision, marker in curve.marks:
            axes.plot(
                at_recall,
                at_precision,
                marker=marker,
                color=_colour(curve.model),
                markersize=8,
                markeredgecolor="white",
            )
    base = float(y.mean()) if y.size else 0.0
    axes.axhline(base, color="black", linestyle=":", label=f"base rate {base:.3f}")
    if not 0 < base < 1:
        axes.text(0.5, 0.5, "one class only: nothing to rank", ha="center", transform=axes.transAxes)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    title(axes, heading, measured_on)
    return png(figure)


def _steps(y: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return recall and precision from the highest threshold down, as many steps as a picture can show."""
    hits, flagged = Ranking(y, score).counts()
    recall, precision = hits / hits[-1], hits / flagged
    shown = np.unique(np.minimum(np.searchsorted(recall, np.linspace(0, 1, _STEPS_SHOWN)), recall.size - 1))
    shown = shown if recall.size > _STEPS_SHOWN else np.arange(recall.size)
    return np.append(0, recall[shown]), np.append(precision[0], precision[shown])


def plot_by_period(evaluation: Evaluation) -> bytes:
    """Draw AP of every model by calendar day or month over the base rate, and the rows of each period."""
    report = evaluation.report
    models = [row["model"] for row in evaluation.summary_rows()]
    found = {name: report.models[name].by_period for name in models}
    first = found[models[0]]
    return plot_periods(
        [one.period for one in first],
        {name: [one.average_precision for one in found[name]] for name in models},
        base_rates=[one.base_rate or 0.0 for one in first],
        rows=[one.rows for one in first],
        heading=f"Average precision by {report.period_unit}, beside the base rate",
        measured_on=_measured_on(evaluation),
    )


def plot_periods(
    periods: Sequence[str],
    precisions: Mapping[str, Sequence[float | None]],
    *,
    base_rates: Sequence[float],
    rows: Sequence[int],
    heading: str,
    measured_on: str,
) -> bytes:
    """Draw AP over periods, with the base rate as bars and the rows below.

    Args:
        periods: their names, in order.
        precisions: AP of each period by model; None with a single class.
        base_rates: base rate of each period.
        rows: number of rows of each period.
        heading: title of the picture.
        measured_on: description of the rows.
    """
    figure, (axes, counts) = canvas(
        max(7.5, 0.32 * len(periods)), 6, rows=2, height_ratios=(4, 1), sharex=True
    )
    at = np.arange(len(periods))
    axes.bar(at, base_rates, color="#DDDDDD", width=0.8, label="base rate")
    for name, values in precisions.items():
        line = np.array(values, dtype=np.float64)
        axes.plot(at, line, marker="o", markersize=4, linewidth=1.2, color=_colour(name), label=name)
    axes.set(ylabel="average precision", ylim=(0, 1.02))
    counts.bar(at, rows, color="#999999", width=0.8)
    counts.set(ylabel="rows", xlim=(-0.6, len(periods) - 0.4))
    step = -(-len(periods) // 16)
    counts.set_xticks(at[::step], list(periods)[::step], rotation=45, ha="right", fontsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    title(axes, heading, measured_on)
    return png(figure)


def plot_reliability(evaluation: Evaluation) -> bytes:
    """Draw the observed share of spikes over the predicted probability, and the rows of each bin."""
    models = {
        name: Calibration(
            result.reliability,
            result.expected_calibration_error,
            result.brier,
            result.calibration and result.calibration.slope,
        )
        for name, result in evaluation.report.models.items()
    }
    return plot_calibration(models, _measured_on(evaluation))


def plot_calibration(models: Mapping[str, Calibration], measured_on: str) -> bytes:
    """Draw reliability tables, with ECE, Brier and, where there is a calibration line, its slope.

    Args:
        models: calibration by model name.
        measured_on: description of the rows.
    """
    figure, (axes, counts) = canvas(7.5, 7.5, rows=2, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfect")
    for name, found in models.items():
        predicted = [part.predicted for part in found.table]
        axes.plot(
            predicted,
            [part.observed for part in found.table],
            marker="o",
            markersize=4,
            color=_colour(name),
            label=f"{name}  ECE {found.error:.3f}, Brier {found.brier:.4f}"
            + ("" if found.slope is None else f", slope {found.slope:.2f}"),
        )
        rows = [part.rows for part in found.table]
        counts.plot(predicted, rows, marker="o", markersize=3, color=_colour(name))
    axes.set(ylabel="observed share of spikes", xlim=(0, 1), ylim=(0, 1))
    counts.set(xlabel="predicted probability (mean of the bin)", ylabel="rows (log)", yscale="log")
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    title(axes, "Calibration: does 30 % mean 30 %?", measured_on)
    return png(figure)


def plot_importances(model: Model, top: int = 15) -> bytes:
    """Draw the model's strongest features: standardised coefficients, or shares of the total gain."""
    weights = model.importances()
    used = sum(map(bool, weights.values()))
    trained = " – ".join(clock(ns) for ns in (model.meta.train_start_ns, model.meta.train_end_ns))
    return plot_weights(
        dict(list(weights.items())[:top]),
        model.importance_label,
        f"{model.name}: most important features",
        f"trained on {trained} UTC\n{len(weights)} features read, {used} with weight, {min(used, top)} shown",
    )


def plot_weights(
    weights: Mapping[str, float],
    kind: str,
    heading: str,
    measured_on: str,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    """Draw weights as bars, the first on top; those of 0 are left out.

    Args:
        weights: by feature.
        kind: meaning of a weight.
        heading: title of the picture.
        measured_on: description of the training rows.
        ranges: the least and the largest weight of each feature, where it is a mean.
    """
    names = [name for name, weight in weights.items() if weight][::-1]
    values = np.array([weights[name] for name in names])
    figure, axes = canvas(7.5, 1.6 + 0.28 * len(names))
    axes.barh(names, values, color=["#0072B2" if value >= 0 else "#D55E00" for value in values])
    if ranges is not None:
        low, high = np.array([ranges[name] for name in names]).reshape(-1, 2).T
        axes.errorbar(
            values, names, xerr=(values - low, high - values), fmt="none", ecolor="black", linewidth=0.8
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=kind)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.02)
    title(axes, heading, measured_on)
    return png(figure)


def plot_episode(evaluation: Evaluation, mid: pd.DataFrame | None = None) -> bytes:
    """Draw the most volatile stretch of the test: mid, volatility with its threshold, the best model's score.

    Args:
        evaluation: the evaluation, with predictions.
        mid: bars with `bar_start`, `product` and `close`; without it the picture starts with the volatility.
    """
    report = evaluation.report
    stretch = most_violent_stretch(evaluation)
    own = _between(evaluation.predictions, stretch, report.bar_interval_s)
    best = evaluation.summary_rows()[0]["model"]
    point = report.models[best].operating_points.max_f1
    threshold = None if point is None else point.threshold
    n_panels = 2 if mid is None else 3
    figure, panels = canvas(9.5, 2.3 * n_panels + 0.8, rows=n_panels, sharex=True)
    if mid is not None:
        _draw_mid(panels[0], _between(mid, stretch, report.bar_interval_s), stretch)
    volatility, score = panels[-2], panels[-1]
    _draw_volatility(volatility, own, report.horizon_s, report.thresholds[stretch.product] * BPS)
    _draw_score(score, own, best, threshold)
    score.set_xlabel(f"UTC, {stretch.start:%Y-%m-%d}")
    flagged = own[best] >= (np.inf if threshold is None else threshold)
    spans = (
        (own["y"].eq(True), 1.0, "#F0E442", 0.3, f"spike: next {report.horizon_s} s over τ"),
        (flagged, 0.05, _colour(best), 0.8, f"flagged by {best}"),
    )
    for panel in panels:
        for where, height, colour, alpha, label in spans:
            panel.fill_between(
                own["bar_start"],
                0,
                height,
                where=where,
                transform=panel.get_xaxis_transform(),
                color=colour,
                alpha=alpha,
                linewidth=0,
                label=label if panel is panels[0] else None,
            )
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    time_axis(score)
    title(panels[0], _episode_heading(stretch), _judged(report, best))
    return png(figure)


def _draw_mid(axes: Axes, bars: pd.DataFrame, stretch: Stretch) -> None:
    axes.plot(bars["bar_start"], bars["close"], color="black", linewidth=1, label="mid")
    axes.set(ylabel=f"mid, {stretch.product.partition('-')[2]}")
    axes.ticklabel_format(axis="y", useOffset=False)


def _draw_volatility(axes: Axes, own: pd.DataFrame, horizon_s: int, tau_bps: float) -> None:
    times = own["bar_start"]
    axes.plot(times, own["trailing_sigma"] * BPS, color="#0072B2", label=f"past {horizon_s} s (known)")
    axes.plot(times, own["sigma"] * BPS, color="#CC79A7", label=f"next {horizon_s} s (label)", linewidth=1)
    axes.axhline(tau_bps, color="black", linestyle=":", label=f"spike from τ = {tau_bps:.3g} bps")
    axes.set(ylabel="σ, bps per bar", ylim=(0, None))


def _draw_score(axes: Axes, own: pd.DataFrame, model: str, threshold: float | None) -> None:
    axes.plot(own["bar_start"], own[model], color=_colour(model), label=model, linewidth=1)
    highest = float(np.nanmax(own[model].to_numpy(dtype=np.float64)))
    if threshold is not None:
        highest = max(highest, threshold)
        axes.axhline(threshold, color=_colour(model), linestyle="--", label=f"flag from {threshold:.2f}")
    axes.set(ylabel="P(spike)", ylim=(0, min(1.02, 1.15 * highest)))


def _episode_heading(stretch: Stretch) -> str:
    what = f"The strongest spike episode {'after a calm' if stretch.after_calm else 'of the test'}"
    if not stretch.has_spike:
        what = "No spike in the test; its most volatile stretch"
    return f"{what}: {stretch.product}, {stretch.start:%Y-%m-%d %H:%M} – {stretch.end:%H:%M} UTC"


def _judged(report: ModelEvaluation, best: str) -> str:
    found = report.models[best].average_precision
    judged = "nothing to rank" if found is None else f"AP {found:.3f}, the best of {len(report.models)}"
    return f"score of {best} ({judged}); gaps in the data are left open"


def plot_sigma_distribution(problem: Problem) -> bytes:
    """Draw the distribution of σ in training and test, by product, with τ and the share at or over it."""
    products = sorted(problem.thresholds)
    figure, panels = canvas(8.5, 2.6 * len(products) + 0.8, rows=len(products), sharex=True)
    spans = (("training", problem.split.train, "#0072B2"), ("test", problem.split.test, "#D55E00"))
    bins = log_bins(problem.dataset.sigma * BPS)
    for axes, product in zip(np.atleast_1d(panels), products, strict=True):
        tau = problem.thresholds[product]
        for name, span, colour in spans:
            part, y = problem.part(span)
            own = part.product == product
            if own.any():
                axes.hist(
                    np.maximum(part.sigma[own] * BPS, bins[0]),
                    bins=bins,
                    weights=np.full(int(own.sum()), 100 / own.sum()),
                    histtype="stepfilled",
                    alpha=0.45,
                    color=colour,
                    label=f"{name}: {int(own.sum()):,} rows, {y[own].mean():.1%} spikes",
                )
        axes.axvline(tau * BPS, color="black", linestyle=":", label=f"τ = {tau * BPS:.3g} bps (training)")
        axes.set(xscale="log", ylabel=f"{product}\n% of rows")
        axes.legend(fontsize=8)
    last = np.atleast_1d(panels)[-1]
    horizon_s = problem.dataset.horizon_ns / NS
    last.set(xlabel=f"volatility of the next {horizon_s:g} s, bps per bar (log; zeros at the left edge)")
    train, test = problem.split.train, problem.split.test
    title(
        np.atleast_1d(panels)[0],
        "Volatility to be predicted, and what counts as a spike",
        f"training {clock(train.start_ns)} – {clock(train.end_ns)}, "
        f"test {clock(test.start_ns)} – {clock(test.end_ns)}",
    )
    return png(figure)


def most_violent_stretch(evaluation: Evaluation) -> Stretch:
    """Find the spike episode to show, and the time around it.

    It is the one with the largest σ/τ among those after a calm: no spike in the 10 horizons before. The
    picture shows at least as much time before its onset as after it. Where no episode follows a calm, the one
    with the largest σ/τ is shown; without any spike, the row with the largest σ/τ.

    Args:
        evaluation: with predictions.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> stretch = most_violent_stretch(evaluation())
        >>> stretch.product, stretch.has_spike
        ('ETH-USD', True)
    """
    rows, report = evaluation.predictions, evaluation.report
    market = Market(
        product=rows["product"].to_numpy(dtype=object),
        t_ns=rows["bar_start"].astype(np.int64).to_numpy(),
        y=rows["y"].to_numpy(dtype=bool),
        visible=np.zeros(len(rows), dtype=bool),
        bar_ns=int(report.bar_interval_s * NS),
        horizon_ns=int(report.horizon_s * NS),
    )
    taus = np.array([report.thresholds[str(product)] for product in market.product])
    excess = rows["sigma"].to_numpy(dtype=np.float64) / taus
    margin_ns = _CALM_HORIZONS * market.horizon_ns
    found = max(_episodes(market, excess), key=lambda one: (one.after_calm, one.excess), default=None)
    if found is None:
        worst = int(np.argmax(excess))
        at_ns = int(market.t_ns[worst])
        return _stretch(str(market.product[worst]), at_ns - margin_ns, at_ns + margin_ns, False, False)
    event, end_ns = found.event, found.event.end_ns + margin_ns
    start_ns = event.start_ns - margin_ns
    if found.after_calm:
        start_ns = min(start_ns, max(2 * event.start_ns - end_ns, found.known_from_ns))
    return _stretch(event.product, start_ns, end_ns, True, found.after_calm)


class _Episode(NamedTuple):
    """A spike episode, its largest σ/τ, whether a calm precedes it, and its product's first row."""

    event: Event
    excess: float
    after_calm: bool
    known_from_ns: int


def _episodes(market: Market, excess: NDArray[np.float64]) -> Iterator[_Episode]:
    calm_ns = _CALM_HORIZONS * market.horizon_ns
    own = {str(name): np.flatnonzero(market.product == name) for name in set(market.product)}
    for event in market.events():
        rows = own[event.product]
        times, y = market.t_ns[rows], market.y[rows]
        before, first, last = np.searchsorted(
            times, [event.start_ns - calm_ns, event.start_ns, event.end_ns + 1]
        )
        is_known = first - before >= _LEAST_KNOWN * calm_ns / market.bar_ns
        yield _Episode(
            event,
            float(excess[rows[first:last]].max()),
            bool(is_known and not y[before:first].any()),
            int(times[0]),
        )


def _stretch(product: str, start_ns: int, end_ns: int, has_spike: bool, after_calm: bool) -> Stretch:
    start, end = pd.to_datetime([start_ns, end_ns], unit="ns", utc=True)
    return Stretch(product, start, end, has_spike, after_calm)


def _between(frame: pd.DataFrame, stretch: Stretch, bar_s: float) -> pd.DataFrame:
    """Return a product's rows on every bar of a stretch; absent ones are NaN, so that lines break at gaps."""
    own = frame[
        (frame["product"] == stretch.product) & frame["bar_start"].between(stretch.start, stretch.end)
    ]
    own = own.drop(columns="product").set_index("bar_start")
    whole = pd.date_range(own.index.min(), own.index.max(), freq=pd.Timedelta(seconds=bar_s))
    return own.reindex(whole).rename_axis("bar_start").reset_index()


def _measured_on(evaluation: Evaluation) -> str:
    report = evaluation.report
    test, counts = report.split.test, report.counts.test
    span = f"{clock(test.start_ns)} – {clock(test.end_ns)}"
    verdict = "" if evaluation.verdict == "ok" else "; INSUFFICIENT DATA"
    return (
        f"test {', '.join(report.data.products)}, {span} UTC\n"
        f"{counts.rows:,} rows, {counts.positives:,} spikes in {counts.events} events{verdict}"
    )


def _colour(model: str) -> str:
    """Return the colour of a kind of model, the same in every picture."""
    return MODELS.get(model, Model).colour

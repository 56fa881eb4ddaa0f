"""Pictures of an evaluation as PNG bytes. matplotlib is imported when one is drawn, never before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.canvas import BPS, canvas, clock, log_bins, png, time_axis, title
from cryptovol_dagster.core.metrics import Market, Ranking
from cryptovol_dagster.core.specs import NS

if TYPE_CHECKING:
    from cryptovol_dagster.core.dataset import Problem
    from cryptovol_dagster.core.evaluation import Evaluation
    from cryptovol_dagster.core.models import Model

#: One colour a model, the same in every picture (Okabe & Ito, told apart by colour-blind readers).
_COLOURS = {
    "baseline_zscore": "#999999",
    "ewma": "#E69F00",
    "har_logit": "#009E73",
    "logreg": "#0072B2",
    "xgboost": "#D55E00",
}


def plot_pr_curves(evaluation: Evaluation) -> bytes:
    """Draw precision over recall of every model, with the base rate and AP (interval) in the legend."""
    report, rows = evaluation.report, evaluation.predictions
    y = rows["y"].to_numpy(dtype=bool)
    figure, axes = canvas(7.5, 6)
    for row in evaluation.summary_rows():
        name = row["model"]
        if row["average_precision"] is None:
            continue
        hits, flagged = Ranking(y, rows[name].to_numpy()).counts()
        bounds = "" if row["ap_low"] is None else f" [{row['ap_low']:.3f}, {row['ap_high']:.3f}]"
        axes.step(
            np.append(0, hits / hits[-1]),
            np.append((hits / flagged)[0], hits / flagged),
            where="pre",
            color=_colour(name),
            label=f"{name}  AP {row['average_precision']:.3f}{bounds}",
        )
    base = report["counts"]["test"]["base_rate"]
    axes.axhline(base, color="black", linestyle=":", label=f"base rate {base:.3f}")
    if not 0 < base < 1:
        axes.text(0.5, 0.5, "one class only: nothing to rank", ha="center", transform=axes.transAxes)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    title(
        axes, f"Precision and recall: are the next {report['horizon_s']} s a spike?", _measured_on(evaluation)
    )
    return png(figure)


def plot_reliability(evaluation: Evaluation) -> bytes:
    """Draw the observed share of spikes over the predicted probability, and how many rows each bin holds."""
    report = evaluation.report
    figure, (axes, counts) = canvas(7.5, 7.5, rows=2, height_ratios=(3, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfect")
    for name in evaluation.model_names:
        result = report["models"][name]
        table = result["reliability"]
        axes.plot(
            [part["predicted"] for part in table],
            [part["observed"] for part in table],
            marker="o",
            markersize=4,
            color=_colour(name),
            label=f"{name}  ECE {result['expected_calibration_error']:.3f}, Brier {result['brier']:.4f}",
        )
        counts.plot(
            [part["predicted"] for part in table],
            [part["rows"] for part in table],
            marker="o",
            markersize=3,
            color=_colour(name),
        )
    axes.set(ylabel="observed share of spikes", xlim=(0, 1), ylim=(0, 1))
    counts.set(xlabel="predicted probability (mean of the bin)", ylabel="rows (log)", yscale="log")
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    title(axes, "Calibration: does 30 % mean 30 %?", _measured_on(evaluation))
    return png(figure)


def plot_importances(model: Model, top: int = 20) -> bytes:
    """Draw the model's strongest features: standardised coefficients, or shares of the total gain."""
    used = {name: weight for name, weight in model.importances().items() if weight}
    weights = dict(list(used.items())[:top])
    names, values = list(weights)[::-1], list(weights.values())[::-1]
    figure, axes = canvas(7.5, 1.6 + 0.28 * len(names))
    axes.barh(names, values, color=["#0072B2" if value >= 0 else "#D55E00" for value in values])
    axes.axvline(0, color="black", linewidth=0.8)
    kind = "share of total gain" if model.name == "xgboost" else "coefficient of the standardised feature"
    axes.set(xlabel=kind)
    axes.tick_params(axis="y", labelsize=8)
    trained = " – ".join(clock(ns) for ns in (model.meta.train_start_ns, model.meta.train_end_ns))
    axes.margins(y=0.02)
    title(
        axes,
        f"{model.name}: what it looks at",
        f"trained on {trained} UTC\n{len(model.meta.features)} features read, {len(used)} with weight, "
        f"{len(names)} shown",
    )
    return png(figure)


def plot_episode(evaluation: Evaluation, mid: pd.DataFrame | None = None) -> bytes:
    """Draw the largest spike episode of the test: mid, volatility with its threshold, and the scores.

    Args:
        evaluation: its predictions hold the episode.
        mid: bars with `bar_start`, `product` and `close`; without it the picture starts with the volatility.
    """
    report, rows = evaluation.report, evaluation.predictions
    window = _largest_episode(evaluation)
    product, start, end = window or (
        str(rows["product"].iloc[0]),
        rows["bar_start"].min(),
        rows["bar_start"].max(),
    )
    margin = pd.Timedelta(seconds=10 * report["horizon_s"])
    own = _between(rows, product, start - margin, end + margin, report["bar_interval_s"])
    n_panels = 2 if mid is None else 3
    figure, panels = canvas(10.5, 2.4 * n_panels + 0.8, rows=n_panels, sharex=True)
    if mid is not None:
        bars = _between(mid, product, start - margin, end + margin, report["bar_interval_s"])
        panels[0].plot(bars["bar_start"], bars["close"], color="black", linewidth=1)
        panels[0].set(ylabel=f"mid, {product.partition('-')[2]}")
    volatility, scores = panels[-2], panels[-1]
    horizon = report["horizon_s"]
    volatility.plot(
        own["bar_start"], own["trailing_sigma"] * BPS, color="#0072B2", label=f"past {horizon} s (known)"
    )
    volatility.plot(
        own["bar_start"], own["sigma"] * BPS, color="#D55E00", alpha=0.8, label=f"next {horizon} s (label)"
    )
    tau = report["thresholds"][product] * BPS
    volatility.axhline(tau, color="black", linestyle=":", label=f"τ = {tau:.3g} bps")
    volatility.set(ylabel="volatility, bps per bar", ylim=(0, None))
    for name in evaluation.model_names:
        scores.plot(own["bar_start"], own[name], color=_colour(name), label=name, linewidth=1)
    highest = float(np.nanmax(own[list(evaluation.model_names)].to_numpy(dtype=np.float64)))
    scores.set(ylabel="P(spike)", ylim=(0, min(1.0, 1.1 * highest)), xlabel=f"UTC, {start:%Y-%m-%d}")
    if window:
        for panel in panels:
            panel.axvspan(start, end, color="#F0E442", alpha=0.25, linewidth=0)
    for panel in (volatility, scores):
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    time_axis(scores)
    what = f"largest spike episode of the test: {product}" if window else f"no spike in the test: {product}"
    title(panels[0], what[0].upper() + what[1:], "shaded: rows whose next span is a spike; gaps left open")
    return png(figure)


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


def _largest_episode(evaluation: Evaluation) -> tuple[str, pd.Timestamp, pd.Timestamp] | None:
    """Find the event with the largest σ/τ: product, first and last bar start; None without events."""
    rows, report = evaluation.predictions, evaluation.report
    taus = rows["product"].map(report["thresholds"]).to_numpy(dtype=np.float64)
    starts_ns = rows["bar_start"].astype(np.int64).to_numpy()
    market = Market(
        product=rows["product"].to_numpy(dtype=object),
        t_ns=starts_ns,
        y=rows["y"].to_numpy(dtype=bool),
        visible=np.zeros(len(rows), dtype=bool),
        bar_ns=int(report["bar_interval_s"] * NS),
        horizon_ns=int(report["horizon_s"] * NS),
    )
    events = market.events()
    if not events:
        return None
    excess = rows["sigma"].to_numpy() / taus
    largest = max(events, key=lambda event: float(excess[market.in_event([event])].max()))
    first, last = pd.to_datetime([largest.start_ns, largest.end_ns], unit="ns", utc=True)
    return largest.product, first, last


def _between(
    frame: pd.DataFrame, product: str, start: pd.Timestamp, end: pd.Timestamp, bar_s: float
) -> pd.DataFrame:
    """Rows of a product on every bar of a span; absent ones are NaN, so that lines break at gaps."""
    own = frame[(frame["product"] == product) & frame["bar_start"].between(start, end)]
    own = own.drop(columns="product").set_index("bar_start")
    whole = pd.date_range(own.index.min(), own.index.max(), freq=pd.Timedelta(seconds=bar_s))
    return own.reindex(whole).rename_axis("bar_start").reset_index()


def _measured_on(evaluation: Evaluation) -> str:
    report = evaluation.report
    test, counts = report["split"]["test"], report["counts"]["test"]
    span = f"{clock(test['start_ns'])} – {clock(test['end_ns'])}"
    verdict = "" if evaluation.verdict == "ok" else "; INSUFFICIENT DATA"
    return (
        f"test {', '.join(report['data']['products'])}, {span} UTC\n"
        f"{counts['rows']:,} rows, {counts['positives']:,} spikes in {counts['events']} events{verdict}"
    )


def _colour(model: str) -> str:
    return _COLOURS.get(model, "#CC79A7")

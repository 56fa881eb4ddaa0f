"""The model card of walk-forward tests: what was measured, on what, and what must not be read into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryptovol_dagster.core.cards.markdown import number
from cryptovol_dagster.core.cards.sections import out_of_scope
from cryptovol_dagster.core.evaluation.backtest import best_single_feature

_TARGETS = {"gk": "Garman–Klass volatility", "rv": "close-to-close volatility"}


def render_backtest_card(reports: Sequence[Mapping[str, Any]]) -> str:
    """Write the card, a section a backtest.

    Args:
        reports: of `walk_forward`, at least one.
    """
    lines = [
        "# Model card: spikes of volatility from minute bars",
        "",
        "Made by `cryptovol backtest --card` from the JSON of the backtests below; none is written by hand.",
        "",
        "## Intended use",
        "",
        "P(spike): the probability that the volatility of the next H minutes is at or over the 0.9 quantile "
        "of the training span (60 days), per product. To warn people and to widen limits before a market "
        "turns violent; a probability, not a direction.",
        "",
        *out_of_scope(),
        "",
        "## How it was measured",
        "",
        "Walk-forward: train 60 days, wait H and an embargo, test the next 30 days, step on by 30. "
        "Thresholds, early stopping and scaling never see test rows. AP is pooled over all test rows; the "
        "mean over folds stands beside it, since pooling rewards knowing which month is violent. Intervals: "
        "circular block bootstrap over days. Onset: rows whose own last H minutes are not yet a spike. The "
        "models of a single feature (persistence, z-score, EWMA) are fitted to the threshold of each fold, "
        "so that their scores mean the same in a calm month and in a wild one; a bare column pooled over "
        "months is not, and ranks lower for it.",
        "",
    ]
    for report in reports:
        lines += _section(report)
    lines += [
        "## Limits",
        "",
        "* Two products of one exchange; another market needs its own training and its own test.",
        "* With a threshold frozen at training the base rate of a month ranges widely (see the folds).",
        "* Most of the AP is persistence: a violent market stays violent. The onset numbers are what a model "
        "adds.",
        "* Candles know nothing of quotes; a minute without a trade carries the last price.",
        "",
    ]
    return "\n".join(lines)


def _section(report: Mapping[str, Any]) -> Iterator[str]:
    test, data = report["test"], report["data"]
    products = ", ".join(data["products"])
    heading = f"## {products}, next {report['horizon_bars']} minutes, {_TARGETS[report['target']]}"
    yield from [heading if not report["holdout"] else f"{heading}: hold-out", ""]
    yield (
        f"{len(report['folds'])} folds, test {test['first']} … {test['end']}: {test['rows']:,} rows, base "
        f"rate {test['base_rate']:.3f} (at onset {number(test['onset_base_rate'])}); {report['features']} "
        f"features of version `{report['feature_hash']}`. " + _holdout(report)
    )
    yield ""
    yield "| model | AP [95 %] | mean over folds | lift | onset AP | Brier | ECE |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in report["models"].items():
        bounds = found["interval"] or {"low": None, "high": None}
        yield (
            f"| {name} | {number(found['average_precision'])} [{number(bounds['low'])}, "
            f"{number(bounds['high'])}] | {number(found['mean_over_folds'])} | {number(found['lift'], 2)} | "
            f"{number(found['onset_average_precision'])} | {number(found['brier'], 4)} | "
            f"{number(found['expected_calibration_error'], 4)} |"
        )
    yield ""
    single = best_single_feature(report)
    for entry in report["comparisons"]:
        if entry["model"] == "xgboost" and entry["baseline"] in (single, "har_logit", "logreg"):
            best = " (the best model of a single feature)" if entry["baseline"] == single else ""
            yield f"* XGBoost over {entry['baseline']}{best}: {comparison_text(entry)}"
    for entry in report["over_best_column"]:
        if entry["model"] in ("xgboost", single):
            yield (
                f"* {entry['model']} over the column `{entry['baseline']}` as it is, the best of all, "
                f"found on these very rows: {comparison_text(entry)}"
            )
    yield from ["", "| as of | base rate | " + " | ".join(report["models"]) + " |"]
    yield "|---|---|" + "---|" * len(report["models"])
    for fold in report["folds"]:
        cells = " | ".join(number(own["average_precision"]) for own in fold["models"].values())
        yield f"| {fold['as_of']} | {fold['base_rate']:.3f} | {cells} |"
    for skipped in report["skipped"]:
        yield f"| {skipped['as_of']} | not tested: {skipped['reason']} |" + " |" * len(report["models"])
    yield ""


def comparison_text(entry: Mapping[str, Any]) -> str:
    """Write what a comparison of a walk-forward test found."""
    bounds = entry["interval"] or {"low": None, "high": None}
    return (
        f"AP {entry['ap_difference']:+.4f} [{number(bounds['low'], 4)}, {number(bounds['high'], 4)}], mean "
        f"over folds {entry['mean_over_folds_difference']:+.4f}, onset AP × {number(entry['onset_ratio'], 2)}"
        f", ahead in {entry['folds_ahead']} of {entry['folds_compared']} folds"
    )


def _holdout(report: Mapping[str, Any]) -> str:
    if not report["holdout"]:
        return "Features and parameters were chosen on these folds, and nothing on later days."
    looks = report["holdout_looks"]
    return "Nothing was chosen on these days; " + (
        "this was the first look at them." if looks == 1 else f"this was look number {looks} at them."
    )

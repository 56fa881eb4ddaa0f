"""The model card of walk-forward tests: what was measured, on what, and what must not be read into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cryptovol_dagster.core.cards.markdown import number, table
from cryptovol_dagster.core.cards.sections import out_of_scope
from cryptovol_dagster.core.evaluation.backtest import best_single_feature
from cryptovol_dagster.core.models.kinds import LEARNED, SINGLE_COLUMN
from cryptovol_dagster.core.specs import DAY_S

_TARGETS = {"gk": "Garman–Klass volatility", "rv": "close-to-close volatility"}


def render_backtest_card(reports: Sequence[Mapping[str, Any]]) -> str:
    """Render the card, with one section per backtest.

    Args:
        reports: of `walk_forward`, at least one.
    """
    lines = [
        "# Model card: spikes of volatility from minute bars",
        "",
        "Made by `cryptovol backtest --card` from the JSON of the backtests below; none is written by hand.",
        "",
        *_intended_use(reports),
        *out_of_scope(),
        "",
        *_method(reports),
    ]
    for report in reports:
        lines += _section(report)
    return "\n".join([*lines, *_limits(reports)])


def _intended_use(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    quantile = _each(f"{report['quantile']:g}" for report in reports)
    return [
        "## Intended use",
        "",
        "P(spike): the probability that the volatility of the next H minutes is at or over the "
        f"{quantile} quantile of the training span ({_days(reports, 'train_span_s')} days), per product. "
        "To warn people and to widen limits before a market turns violent; a probability, not a direction.",
        "",
    ]


def _method(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    plain = [name for name in SINGLE_COLUMN if any(name in report["models"] for report in reports)]
    single = (
        f" The models of a single feature ({', '.join(plain)}) are fitted to the threshold of each fold, so "
        "that their scores mean the same in a calm month and in a wild one; a bare column pooled over months "
        "is not, and ranks lower for it."
    )
    return [
        "## How it was measured",
        "",
        f"Walk-forward: train {_days(reports, 'train_span_s')} days, wait H and an embargo, test the next "
        f"{_days(reports, 'test_span_s')} days, step on to the next fold. "
        "Thresholds, early stopping and scaling never see test rows. AP is pooled over all test rows; the "
        "mean over folds stands beside it, since pooling rewards knowing which month is violent. Intervals: "
        "circular block bootstrap over days. Onset: rows whose own last H minutes are not yet a spike."
        + (single if plain else ""),
        "",
    ]


def _limits(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    products = ", ".join(sorted({name for report in reports for name in report["data"]["products"]}))
    return [
        "## Limits",
        "",
        f"* Tested on {products} alone; another market needs its own training and its own test.",
        "* With a threshold frozen at training the base rate of a month ranges widely (see the folds).",
        "* Most of the AP is persistence: a violent market stays violent. The onset numbers are what a model "
        "adds.",
        "* Candles know nothing of quotes; a minute without a trade carries the last price.",
        "",
    ]


def _each(texts: Iterable[str]) -> str:
    """Join what the backtests have, each value once."""
    return " or ".join(dict.fromkeys(texts))


def _days(reports: Sequence[Mapping[str, Any]], key: str) -> str:
    return _each(f"{report[key] / DAY_S:g}" for report in reports)


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
    yield from _results(report)
    yield ""
    yield from _differences(report)
    yield ""
    yield from _folds(report)
    yield ""


def _results(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, found in report["models"].items():
        bounds = found["interval"] or {"low": None, "high": None}
        rows.append(
            [
                name,
                f"{number(found['average_precision'])} [{number(bounds['low'])}, {number(bounds['high'])}]",
                number(found["mean_over_folds"]),
                number(found["lift"], 2),
                number(found["onset_average_precision"]),
                number(found["brier"], 4),
                number(found["expected_calibration_error"], 4),
            ]
        )
    return table(["model", "AP [95 %]", "mean over folds", "lift", "onset AP", "Brier", "ECE"], rows)


def _differences(report: Mapping[str, Any]) -> Iterator[str]:
    """Compare the richest learned model with the others and with the best column."""
    single = best_single_feature(report)
    richest = next((name for name in reversed(LEARNED) if name in report["models"]), None)
    for entry in report["comparisons"]:
        if entry["model"] == richest and entry["baseline"] in (single, *LEARNED):
            best = " (the best model of a single feature)" if entry["baseline"] == single else ""
            yield f"* {richest} over {entry['baseline']}{best}: {comparison_text(entry)}"
    for entry in report["over_best_column"]:
        if entry["model"] in (richest, single):
            yield (
                f"* {entry['model']} over the column `{entry['baseline']}` as it is, the best of all, "
                f"found on these very rows: {comparison_text(entry)}"
            )


def _folds(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            fold["as_of"],
            f"{fold['base_rate']:.3f}",
            *(number(own["average_precision"]) for own in fold["models"].values()),
        ]
        for fold in report["folds"]
    ]
    rows += [
        [one["as_of"], f"not tested: {one['reason']}", *[""] * len(report["models"])]
        for one in report["skipped"]
    ]
    return table(["as of", "base rate", *report["models"]], rows)


def comparison_text(entry: Mapping[str, Any]) -> str:
    """Render one comparison of a walk-forward test."""
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

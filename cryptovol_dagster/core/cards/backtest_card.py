"""The model card of walk-forward tests: metrics, data, and limits of interpretation."""

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
        reports: reports of `walk_forward`, at least one.

    Examples:
        >>> from cryptovol_dagster.core.samples import backtest
        >>> card = render_backtest_card([{**backtest().report, "holdout": None}])
        >>> [line for line in card.splitlines() if line.startswith("## ")][:2]
        ['## Intended use', '## Out of scope']
    """
    lines = [
        "# Model card: spikes of volatility from minute bars",
        "",
        "Written by `cryptovol backtest --card` from the JSON of the backtests below; nothing is by hand.",
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
        "For warnings, and for wider limits before volatility rises; a probability, not a direction.",
        "",
    ]


def _method(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    plain = [name for name in SINGLE_COLUMN if any(name in report["models"] for report in reports)]
    single = (
        f" The models of a single feature ({', '.join(plain)}) are fitted to the threshold of each fold, so "
        "that their scores mean the same in a calm and in a volatile month; a bare column pooled over "
        "months is not, and therefore ranks lower."
    )
    return [
        "## How it was measured",
        "",
        f"Walk-forward: train on {_days(reports, 'train_span_s')} days, leave out H and an embargo, test on "
        f"the next {_days(reports, 'test_span_s')} days, advance to the next fold. "
        "Thresholds, early stopping and scaling never use test rows. AP is pooled over all test rows; the "
        "mean over folds is given too: pooling rewards knowing which month is volatile. Intervals: "
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
        "* With a threshold fixed at training the base rate varies widely between months (see the folds).",
        "* Most of the AP is persistence: a volatile market stays volatile. The onset numbers show what a "
        "model adds.",
        "* Candles contain no quotes; a minute without a trade carries the last price.",
        "",
    ]


def _each(texts: Iterable[str]) -> str:
    """Join the values of the backtests, each value once."""
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
    """Compare the most complex learned model with the others and with the best column."""
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
    """Render one comparison of a walk-forward test.

    Examples:
        >>> bounds = {"low": 0.01, "high": 0.03}
        >>> numbers = {"ap_difference": 0.02, "mean_over_folds_difference": 0.018, "onset_ratio": 1.1}
        >>> comparison_text({"interval": bounds, **numbers, "folds_ahead": 9, "folds_compared": 10})
        'AP +0.0200 [0.0100, 0.0300], mean over folds +0.0180, onset AP × 1.10, ahead in 9 of 10 folds'
    """
    bounds = entry["interval"] or {"low": None, "high": None}
    return (
        f"AP {entry['ap_difference']:+.4f} [{number(bounds['low'], 4)}, {number(bounds['high'], 4)}], mean "
        f"over folds {entry['mean_over_folds_difference']:+.4f}, onset AP × {number(entry['onset_ratio'], 2)}"
        f", ahead in {entry['folds_ahead']} of {entry['folds_compared']} folds"
    )


def _holdout(report: Mapping[str, Any]) -> str:
    if not report["holdout"]:
        return "Features and parameters were chosen on these folds; later days were not used for any choice."
    looks = report["holdout_looks"]
    return "No choice depends on these days; " + (
        "this was their first evaluation." if looks == 1 else f"this was evaluation number {looks} of them."
    )

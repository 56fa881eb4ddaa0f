"""The sections of a model card, each a function from a report to lines of Markdown.

Belongs here: the text of sections. Which sections a card has, and in which order: `model_card.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import UNSET

from cryptovol_dagster.core.cards.markdown import NONE, number, table, with_interval
from cryptovol_dagster.core.evaluation.evaluate import OK, summary_rows
from cryptovol_dagster.core.evaluation.report import Bounds, ModelEvaluation
from cryptovol_dagster.core.promotion.decision import Decision
from cryptovol_dagster.core.units import BPS

#: A card of a training span shorter than this many days has the warning below.
_FEW_DAYS = 3
_HOURS_OF_TICKS = (
    "- Hours of ticks cannot train a model that beats persistence; on about nine real hours no model did. A "
    "lift far above that of the baselines on such data is a leak until proven otherwise."
)


@dataclass(frozen=True)
class CardContext:
    """Content of a card beyond evaluation and decision.

    Attributes:
        features: names of the columns that the models are given.
        features_url: address of their description.
        versions: of the libraries that the models were trained with.
    """

    features: tuple[str, ...]
    features_url: str
    versions: Mapping[str, str]


def as_of(report: ModelEvaluation) -> list[str]:
    """Return the lines on the card's partition; none where the report has no partition."""
    if report.as_of is UNSET:
        return []
    return [
        f"Version 1 of the card; timescale `{report.timescale}`, as of the end of {report.as_of} UTC.",
        "",
    ]


def intended_use(report: ModelEvaluation) -> list[str]:
    """Return the lines on the prediction and its users.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> intended_use(evaluation().report)[0]
        '## Intended use'
    """
    horizon = report.horizon_s
    return [
        "## Intended use",
        "",
        f"For each product and each bar of {report.bar_interval_s} s, the probability that the realised "
        f"volatility of the **next {horizon} s** is at or over the product's threshold τ (a *spike*). τ is "
        f"the {report.quantile:g} quantile of that volatility over the training span.",
        "",
        "For monitoring and alerting on market conditions, by people who look at what is flagged.",
        "",
    ]


def out_of_scope() -> list[str]:
    """Return the lines on uses that are out of scope."""
    return [
        "## Out of scope",
        "",
        "- The direction of prices, returns, or any advice to trade.",
        "- Unattended trading, margin or liquidation decisions.",
        "- Products, venues, bar lengths or horizons that it was not trained on.",
        "- Rows that its features call invalid: after gaps and restarts there is no prediction.",
        "",
    ]


def champion(decision: Decision) -> list[str]:
    """Return the lines on the champion, with reasons."""
    champion, challenge = decision.champion, decision.challenge
    if champion is None:
        head = "No model is champion."
    else:
        version = (
            "" if champion.registry_version is None else f", registry version {champion.registry_version}"
        )
        proven = " It is **unproven**: it has not won a comparison yet." if champion.unproven else ""
        head = (
            f"Champion is **{champion.model}**, trained as of {champion.as_of}{version} (MLflow run "
            f"`{champion.mlflow_run_id}`).{proven}"
        )
    lines = ["## Champion", "", head, "", f"Decision: **{decision.verdict}**.", ""]
    lines += [*(f"- {reason}" for reason in decision.reasons), ""]
    if champion is None or challenge is None:
        return lines
    difference = challenge.difference
    return [
        *lines,
        *table(
            ["", "model", "PR-AUC", "Brier"],
            [
                [
                    "challenger",
                    str(challenge.challenger),
                    number(challenge.average_precision),
                    number(challenge.brier, 4),
                ],
                [
                    "champion, on the same rows",
                    str(challenge.champion),
                    number(challenge.champion_average_precision),
                    number(challenge.champion_brier, 4),
                ],
            ],
        ),
        "",
        f"{challenge.rows:,} rows that neither learned from, {challenge.positives:,} spikes. Challenger "
        "minus champion, PR-AUC [one-sided bounds]: "
        + (
            NONE
            if difference is None
            else with_interval(difference.estimate, difference.low, difference.high, signed=True)
            + f", the lower one at level {difference.level:.2%}"
        )
        + ".",
        "",
    ]


def features(report: ModelEvaluation, context: CardContext) -> list[str]:
    """Return the lines on the number of features and their description."""
    return [
        "## Features",
        "",
        f"{len(context.features)} features, version `{report.data.feature_hash}`, all known at the end "
        f"of the bar; names, units, windows and sources: [the asset's columns]({context.features_url}).",
        "",
    ]


def verdict(report: ModelEvaluation) -> list[str]:
    """Return the lines on the reliability of the numbers, and on peculiarities of the rows."""
    head = ["## Reliability", ""]
    notes = [f"- {note}" for note in report.notes]
    if notes:
        notes = ["Peculiarities of the rows:", "", *notes, ""]
    if report.verdict == OK:
        enough = "**Verdict: ok.** There are enough independent spikes in the test for intervals."
        return [*head, enough, "", *notes]
    return [
        *head,
        f"**Verdict: {report.verdict}.** The numbers below hold for this test span only; they do not show "
        "that a model is better than another.",
        "",
        *[f"- {reason}" for reason in report.reasons],
        "",
        *notes,
    ]


def sufficiency(report: ModelEvaluation) -> list[str]:
    """Return the lines on the models that the training span supports, and what the next class lacks."""
    found = report.sufficiency
    lines = [
        "## What the training span supports",
        "",
        f"It supports **{found.supports}** of `none` → `single` (one volatility: persistence, EWMA) → "
        "`har` → `logit` (all features) → `trees`. More complex models are trained too; their results are "
        "unreliable.",
        "",
        *table(
            ["", "found"],
            [
                ["days observed", f"{found.days:.3g}"],
                ["rows, spikes", f"{found.rows:,}, {found.positives:,}"],
                ["spike events", f"{found.events:,}"],
                [f"spikes at least {found.least_block_s / 60:g} min apart", f"{found.spikes_apart:,}"],
                [
                    f"the same for each of {found.features} features",
                    number(found.spikes_per_feature, 2),
                ],
                ["memory of the spikes (integrated autocorrelation)", f"{found.memory_s / 60:,.0f} min"],
                [
                    f"independent blocks of {found.block_s / 60:,.0f} min, with a spike",
                    f"{found.blocks:,}, {found.positive_blocks:,}",
                ],
                [
                    "effective sample size: rows by ln σ, spikes",
                    f"{found.effective_rows:,.0f}, {found.effective_positives:,.0f}",
                ],
            ],
        ),
        "",
    ]
    if found.next_class is None:
        return lines
    when = "no rate yet" if found.more_days is None else f"{found.more_days:.2g} more days at this rate"
    return [
        *lines,
        f"For `{found.next_class}` ({when}):",
        "",
        *[f"- {lack}" for lack in found.missing],
        "",
    ]


def data(report: ModelEvaluation) -> list[str]:
    """Return the lines on the rows and their use."""
    data, counts = report.data, report.counts
    rows = []
    for part in ("train", "validation", "test"):
        span, count = getattr(report.split, part), getattr(counts, part)
        rows.append(
            [
                part,
                span.start,
                span.end,
                f"{count.rows:,}",
                f"{count.positives:,}",
                number(count.base_rate),
            ]
        )
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in data.dropped.items()) or "none"
    test = counts.test
    return [
        "## Data",
        "",
        f"{', '.join(data.products)}, {data.first} … {data.last}, {data.rows:,} labelled "
        f"rows (data `{data.hash}`, features `{data.feature_hash}`). Rows left out: {dropped}.",
        "",
        *table(["part", "from", "to (exclusive)", "rows", "spikes", "base rate"], rows),
        "",
        f"The test holds {test.events} spike events; spikes lie in {test.positive_blocks} independent "
        f"blocks of {report.bootstrap.block_s / 60:g} min.",
        "",
    ]


def thresholds(report: ModelEvaluation) -> list[str]:
    """Return the lines on the definition of a spike."""
    test = report.counts.test.by_product
    rows = [
        [name, f"{tau:.4g}", f"{tau * BPS:.3g}", number(test[name].base_rate if name in test else None)]
        for name, tau in report.thresholds.items()
    ]
    return [
        "## Thresholds",
        "",
        *table(["product", "τ (log return per bar)", "τ in bps", "base rate in test"], rows),
        "",
    ]


def result_table(report: ModelEvaluation) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table of the models on all test rows, the best average precision first."""
    rows = [
        [
            row["model"],
            with_interval(row["average_precision"], row["ap_low"], row["ap_high"]),
            number(row["lift"], 2),
            f"{number(row['chance_mean'])}, {number(row['chance_q95'])}",
            number(row["chance_share"], 2),
            number(row["roc_auc"]),
            number(row["brier"], 4),
            number(row["log_loss"], 4),
            number(row["ece"]),
        ]
        for row in summary_rows(report)
    ]
    head = [
        "model",
        "PR-AUC [95 %]",
        "lift",
        "by chance: mean, 95 % quantile",
        "share of chance at or above",
        "ROC-AUC",
        "Brier",
        "log loss",
        "ECE",
    ]
    return head, rows


def results(report: ModelEvaluation) -> list[str]:
    """Return the lines on every model's ranking of all test rows, and on its probabilities."""
    bootstrap, test = report.bootstrap, report.counts.test
    return [
        "## Results on the test span",
        "",
        f"{test_span(report)}: {test.rows:,} rows, {test.positives:,} spikes. Base rate "
        f"{number(test.base_rate)}: the PR-AUC of a model without skill. Lift is PR-AUC over base "
        "rate. *By chance*: the same scores on labels shifted in time, which keeps the clustering of spikes "
        "and destroys any relation; a model has skill only where hardly any shift reaches its PR-AUC.",
        "",
        *table(*result_table(report)),
        "",
        f"Intervals: {bootstrap.method}, {bootstrap.resamples} resamples of "
        f"{bootstrap.block_s / 60:g} min blocks, seed {bootstrap.seed}; {NONE} where the data are "
        "too few for one.",
        "",
    ]


def comparisons(report: ModelEvaluation) -> list[str]:
    """Return the lines on paired differences, each pair once; none with a single model."""
    rows, shown = [], set()
    for entry in report.comparisons:
        pair = entry.model, entry.baseline
        if pair[::-1] in shown:
            continue
        shown.add(pair)
        rows.append(
            [
                *pair,
                _difference(entry.ap_difference, entry.interval),
                _difference(entry.onset_difference, entry.onset_interval),
            ]
        )
    if not rows:
        return []
    return [
        "## Comparison of the models",
        "",
        "Difference of PR-AUC on the same rows and resamples; an interval with 0 shows no difference.",
        "",
        *table(["model", "other model", "difference [95 %]", "at onset [95 %]"], rows),
        "",
    ]


def onset(report: ModelEvaluation) -> list[str]:
    """Return the lines on the ranking of rows that are not a spike yet: the ones a warning is for."""
    rows = sorted(summary_rows(report), key=lambda row: -(row["onset_average_precision"] or 0.0))
    of_any = next(iter(report.models.values())).onset
    return [
        "## Onset",
        "",
        f"Only rows whose own trailing volatility is not yet a spike, which are those a warning is for: "
        f"{of_any.rows:,} rows, {of_any.positives:,} spikes, base rate {number(of_any.base_rate)}.",
        "",
        *table(
            ["model", "PR-AUC at onset [95 %]", "lift"],
            [
                [
                    row["model"],
                    with_interval(row["onset_average_precision"], row["onset_low"], row["onset_high"]),
                    number(report.models[row["model"]].onset.lift, 2),
                ]
                for row in rows
            ],
        ),
        "",
    ]


def by_product(report: ModelEvaluation) -> list[str]:
    """Return the lines on each product: PR-AUC of every model."""
    models = [row["model"] for row in summary_rows(report)]
    counts = report.counts.test.by_product
    return [
        "## By product",
        "",
        *table(
            ["product", "rows", "base rate", *models],
            [
                [
                    name,
                    f"{count.rows:,}",
                    number(count.base_rate),
                    *[number(report.models[model].by_product[name].average_precision) for model in models],
                ]
                for name, count in counts.items()
            ],
        ),
        "",
    ]


def by_period(report: ModelEvaluation) -> list[str]:
    """Return the lines on each calendar month (or day): PR-AUC of every model beside the base rate."""
    models = [row["model"] for row in summary_rows(report)]
    found = {model: report.models[model].by_period for model in models}
    return [
        f"## By {report.period_unit}",
        "",
        "PR-AUC rises and falls with the base rate; a number alone does not describe the model.",
        "",
        *table(
            [report.period_unit, "rows", "spikes", "base rate", *models],
            [
                [
                    of_one.period,
                    f"{of_one.rows:,}",
                    f"{of_one.positives:,}",
                    number(of_one.base_rate),
                    *[number(found[model][k].average_precision) for model in models],
                ]
                for k, of_one in enumerate(found[models[0]])
            ],
        ),
        "",
    ]


def calibration(report: ModelEvaluation, decision: Decision | None) -> list[str]:
    """Return the lines on predicted and observed shares, of the champion's kind, else of the best model."""
    name = summary_rows(report)[0]["model"]
    if decision is not None and decision.champion is not None and decision.champion.model in report.models:
        name = decision.champion.model
    lines = [
        [
            row["model"],
            number(row["ece"]),
            number(row["calibration_slope"], 2),
            number(row["calibration_intercept"], 2),
            number(row["brier"], 4),
        ]
        for row in summary_rows(report)
    ]
    bins = [
        [
            f"{part.low:.3f} – {part.high:.3f}",
            f"{part.rows:,}",
            number(part.predicted),
            number(part.observed),
        ]
        for part in report.models[name].reliability
    ]
    return [
        "## Calibration",
        "",
        "Does 30 % mean 30 %? Slope 1 and intercept 0 would be perfect; a slope below 1 means probabilities "
        "too far apart, an intercept below 0 too many alarms.",
        "",
        *table(["model", "expected calibration error", "slope", "intercept", "Brier"], lines),
        "",
        f"`{name}` on the test span, by predicted probability:",
        "",
        *table(["predicted between", "rows", "mean predicted", "share of spikes"], bins),
        "",
    ]


def events(report: ModelEvaluation) -> list[str]:
    """Return the lines on the use of each operating point for an operator."""
    test = report.counts.test
    rows = []
    for model, result in report.models.items():
        points = result.operating_points
        for name, point in (("max_f1", points.max_f1), ("alert_budget", points.alert_budget)):
            if point is None:
                rows.append([model, name, *[NONE] * 8])
                continue
            rows.append(
                [
                    model,
                    name,
                    number(point.threshold),
                    number(point.precision),
                    number(point.recall),
                    number(point.f1),
                    f"{point.events_found} of {point.events}",
                    number(point.false_alarms_per_hour, 2),
                    number(point.median_delay_s, 0),
                    number(point.median_lead_s, 0),
                ]
            )
    head = [
        "model",
        "chosen for",
        "threshold",
        "precision",
        "recall",
        "F1",
        "events found",
        "false alarms/h",
        "median delay, s",
        "median lead, s",
    ]
    return [
        "## Events and operating points",
        "",
        f"Chosen on validation ({report.counts.validation.rows:,} rows), measured on "
        f"{test.events} spike events in {test.hours:,.1f} hours of test. Alarms of a product are at least "
        "5 min apart; delay counts from an event's first row to its first flag, lead from there to when the "
        "trailing volatility itself shows the spike.",
        "",
        *table(head, rows),
        "",
    ]


def limits(report: ModelEvaluation) -> list[str]:
    """Return the lines on the limits of the numbers."""
    lines = [
        "## Limits",
        "",
        "- Measured on one span of one venue; the next one has another level of volatility.",
        *([_HOURS_OF_TICKS] if report.sufficiency.days < _FEW_DAYS else []),
        "- τ is fixed at training. When the market's volatility moves, the base rate moves with it: "
        "compare lift and base rate, not PR-AUC alone, between spans.",
        "- One model serves all products; τ differs by product, the features' scale is not adjusted for it.",
        "- Neighbouring rows share most of their label. Rows and positives say little about certainty; "
        "events and blocks do.",
        "- Rows inside gaps, after restarts and with old quotes have no label and no prediction; nothing "
        "is known about spikes that coincide with them.",
    ]
    if report.verdict != OK:
        lines.append(
            "- **This test is too small to tell the models apart**; it shows that the machinery works, not "
            "that a model does."
        )
    return [*lines, ""]


def operation(report: ModelEvaluation) -> list[str]:
    """Return the lines on monitoring."""
    return [
        "## In operation",
        "",
        "- There is no prediction where features are invalid. The label of a row is known "
        f"{report.horizon_s} s after it, so every number here can be measured again on later rows.",
        "- Watch the base rate, the calibration of recent rows and the drift numbers. A base rate far from "
        "the one above requires new thresholds first, and a new model only then.",
        "- Thresholds of alarms are chosen on validation; the false alarms an hour that were measured in the "
        "test are what to expect, not the budget.",
        "- A champion changes by a decision with reasons, never because a newer model exists; the one before "
        "it stays named `previous`.",
        "",
    ]


def caveats() -> list[str]:
    """Return the lines on ethics and money."""
    return [
        "## Ethics and money",
        "",
        "- Public market data only; there are no personal data in it.",
        "- This is not advice to trade. A flag says that a market may move, not which way, and most flags "
        "at an operating point may be false: read the precision beside them.",
        "- Users who act on flags act together. Acting late, all at once and in the same "
        "direction increases volatility.",
        "- Exchanges, fees and liquidity are outside of the model; a right prediction can still cost money.",
        "",
    ]


def reproduce(report: ModelEvaluation, context: CardContext | None) -> list[str]:
    """Return the lines on the commands that reproduce these numbers."""
    key = "HOUR" if report.as_of is UNSET else report.as_of
    lines = [
        "## How to reproduce",
        "",
        f"The same raw storage and `config.yaml` give the data hash `{report.data.hash}` and these "
        f"numbers (seed {report.bootstrap.seed}):",
        "",
        "```sh",
        f"cryptovol train --partition {key}",
        f"cryptovol evaluate --partition {key} --json",
        "```",
        "",
        f"Schema version of the evaluation: {report.schema_version}.",
    ]
    if context is not None:
        versions = ", ".join(f"{name} {found}" for name, found in sorted(context.versions.items()))
        lines.append(f"Trained with {versions}.")
    return [*lines, ""]


def test_span(report: ModelEvaluation) -> str:
    """Return products, start and end of the test rows as text.

    Examples:
        >>> from cryptovol_dagster.core.samples import evaluation
        >>> test_span(evaluation().report)
        'BTC-USD, ETH-USD, 2026-04-02T03:58:50Z … 2026-04-02T04:58:50Z'
    """
    span = report.split.test
    return f"{', '.join(report.data.products)}, {span.start} … {span.end}"


def _difference(value: float | None, bounds: Bounds | None) -> str:
    return with_interval(value, bounds and bounds.low, bounds and bounds.high, signed=True)

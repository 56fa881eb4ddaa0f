"""The model card: what the models are for, what they were measured on, and what they cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptovol_dagster.core.evaluation import OK, summary_rows
from cryptovol_dagster.core.promotion import Decision

_NONE = "–"


@dataclass(frozen=True)
class CardContext:
    """What a card says beyond evaluation and decision.

    Attributes:
        features: names of the columns that the models are given.
        features_url: where they are described.
        versions: of the libraries that the models were trained with.
    """

    features: tuple[str, ...]
    features_url: str
    versions: Mapping[str, str]


def render_model_card(
    evaluation: Mapping[str, Any],
    *,
    decision: Decision | None = None,
    context: CardContext | None = None,
    title: str = "cryptovol spike models",
) -> str:
    """Render an evaluation, and what was decided after it, as Markdown.

    Args:
        evaluation: what `Evaluation.to_dict` returned (or what was read from ``model_eval.json``).
        decision: who is champion; left out of the card where nobody decided.
        context: features and versions; left out where unknown.
        title: heading of the card.

    Raises:
        KeyError: the report lacks a part; it is not of this schema version.
    """
    parts = (
        [f"# Model card: {title}", "", *_as_of(evaluation)],
        _intended_use(evaluation),
        _verdict(evaluation),
        [] if decision is None else _champion(decision),
        _data(evaluation),
        _thresholds(evaluation),
        [] if context is None else _features(evaluation, context),
        _results(evaluation),
        _comparisons(evaluation),
        _calibration(evaluation, decision),
        _operating_points(evaluation),
        _limits(evaluation),
        _caveats(),
        _reproduce(evaluation, context),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _as_of(report: Mapping[str, Any]) -> list[str]:
    if "as_of" not in report:
        return []
    return [
        f"Version 1 of the card; timescale `{report['timescale']}`, as of the end of the hour "
        f"{report['as_of']} UTC.",
        "",
    ]


def _intended_use(report: Mapping[str, Any]) -> list[str]:
    horizon = report["horizon_s"]
    return [
        "## Intended use",
        "",
        f"For each product and each bar of {report['bar_interval_s']} s, the probability that the realised "
        f"volatility of the **next {horizon} s** is at or over the product's threshold τ (a *spike*). τ is "
        f"the {report['quantile']:g} quantile of that volatility over the training span.",
        "",
        "For monitoring and alerting on market conditions, by people who look at what is flagged.",
        "",
        "## Out of scope",
        "",
        "- The direction of prices, returns, or any advice to trade.",
        "- Unattended trading, margin or liquidation decisions.",
        "- Products, venues, bar lengths or horizons that it was not trained on.",
        "- Rows that its features call invalid: after gaps and restarts there is no prediction.",
        "",
    ]


def _champion(decision: Decision) -> list[str]:
    champion, challenge = decision.champion, decision.challenge
    if champion is None:
        head = "No model is champion."
    else:
        version = (
            "" if champion.registry_version is None else f", registry version {champion.registry_version}"
        )
        proven = (
            " It is **unproven**: it was put in place, it has beaten nobody." if champion.unproven else ""
        )
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
        *_table(
            ["", "kind", "PR-AUC", "Brier"],
            [
                [
                    "challenger",
                    challenge.model,
                    _number(challenge.average_precision),
                    _number(challenge.brier, 4),
                ],
                [
                    "the champion's kind, on the same rows",
                    challenge.champion_model,
                    _number(challenge.champion_average_precision),
                    _number(challenge.champion_brier, 4),
                ],
            ],
        ),
        "",
        "Challenger minus champion's kind, PR-AUC [95 %]: "
        + (
            _NONE
            if difference is None
            else _with_interval(difference.estimate, difference.low, difference.high, signed=True)
        ),
        "",
    ]


def _features(report: Mapping[str, Any], context: CardContext) -> list[str]:
    return [
        "## Features",
        "",
        f"{len(context.features)} features, version `{report['data']['feature_hash']}`, all known at the end "
        f"of the bar; names, units, windows and sources: [the asset's columns]({context.features_url}).",
        "",
    ]


def _verdict(report: Mapping[str, Any]) -> list[str]:
    head = ["## How far to believe it", ""]
    if report["verdict"] == OK:
        return [*head, "**Verdict: ok.** There are enough independent spikes in the test for intervals.", ""]
    return [
        *head,
        f"**Verdict: {report['verdict']}.** The numbers below stand for this test span only; no model may "
        "be preferred to another on their strength.",
        "",
        *[f"- {reason}" for reason in report["reasons"]],
        "",
    ]


def _data(report: Mapping[str, Any]) -> list[str]:
    data, counts = report["data"], report["counts"]
    rows = []
    for part in ("train", "validation", "test"):
        span, count = report["split"][part], counts[part]
        rows.append(
            [
                part,
                span["start"],
                span["end"],
                f"{count['rows']:,}",
                f"{count['positives']:,}",
                _number(count["base_rate"]),
            ]
        )
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in data["dropped"].items()) or "none"
    test = counts["test"]
    return [
        "## Data",
        "",
        f"{', '.join(data['products'])}, {data['first']} … {data['last']}, {data['rows']:,} labelled "
        f"rows (data `{data['hash']}`, features `{data['feature_hash']}`). Rows left out: {dropped}.",
        "",
        *_table(["part", "from", "to (exclusive)", "rows", "spikes", "base rate"], rows),
        "",
        f"The test holds {test['events']} spike events; spikes lie in {test['positive_blocks']} independent "
        f"blocks of {report['bootstrap']['block_s'] / 60:g} min.",
        "",
    ]


def _thresholds(report: Mapping[str, Any]) -> list[str]:
    test = report["counts"]["test"]["by_product"]
    rows = [
        [name, f"{tau:.4g}", f"{tau * 1e4:.3g}", _number(test.get(name, {}).get("base_rate"))]
        for name, tau in report["thresholds"].items()
    ]
    return [
        "## Thresholds",
        "",
        *_table(["product", "τ (log return per bar)", "τ in bps", "base rate in test"], rows),
        "",
    ]


def _results(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            row["model"],
            _with_interval(row["average_precision"], row["ap_low"], row["ap_high"]),
            _number(row["lift"], 2),
            f"{_number(row['chance_mean'])}, {_number(row['chance_q95'])}",
            _number(row["chance_share"], 2),
            _number(row["onset_average_precision"]),
            _number(row["roc_auc"]),
            _number(row["brier"], 4),
            _number(row["log_loss"], 4),
            _number(row["ece"]),
        ]
        for row in summary_rows(report)
    ]
    onset = next(iter(report["models"].values()))["onset"]
    head = [
        "model",
        "PR-AUC [95 %]",
        "lift",
        "by chance: mean, 95 % quantile",
        "share of chance at or above",
        f"PR-AUC at onset (base {_number(onset['base_rate'])})",
        "ROC-AUC",
        "Brier",
        "log loss",
        "ECE",
    ]
    bootstrap = report["bootstrap"]
    return [
        "## Results on the test span",
        "",
        f"Base rate {_number(report['counts']['test']['base_rate'])}: a model that knows nothing has that "
        "PR-AUC. Lift is PR-AUC over base rate. *Onset* counts only rows whose own trailing volatility is "
        "not yet a spike. *By chance*: the same scores on labels shifted in time, which keeps the clustering "
        "of spikes and destroys any relation; a model has shown skill only where hardly a shift reaches it.",
        "",
        *_table(head, rows),
        "",
        f"Intervals: {bootstrap['method']}, {bootstrap['resamples']} resamples of "
        f"{bootstrap['block_s'] / 60:g} min blocks, seed {bootstrap['seed']}; {_NONE} where the data are "
        "too few for one.",
        "",
    ]


def _comparisons(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            entry["model"],
            entry["baseline"],
            _with_interval(
                entry["ap_difference"],
                (entry["interval"] or {}).get("low"),
                (entry["interval"] or {}).get("high"),
                signed=True,
            ),
        ]
        for entry in report["comparisons"]
    ]
    if not rows:
        return []
    return [
        "## Against one another",
        "",
        "Difference of PR-AUC on the same rows and resamples; an interval that holds 0 shows no difference.",
        "",
        *_table(["model", "other model", "difference [95 %]"], rows),
        "",
    ]


def _calibration(report: Mapping[str, Any], decision: Decision | None) -> list[str]:
    """Show predicted against observed, of the champion's kind, else of the best model."""
    name = summary_rows(report)[0]["model"]
    if decision is not None and decision.champion is not None and decision.champion.model in report["models"]:
        name = decision.champion.model
    rows = [
        [
            f"{part['low']:.3f} – {part['high']:.3f}",
            f"{part['rows']:,}",
            _number(part["predicted"]),
            _number(part["observed"]),
        ]
        for part in report["models"][name]["reliability"]
    ]
    return [
        "## Calibration",
        "",
        f"`{name}` on the test span, by predicted probability. Expected calibration error "
        f"{_number(report['models'][name]['expected_calibration_error'])}.",
        "",
        *_table(["predicted between", "rows", "mean predicted", "share of spikes"], rows),
        "",
    ]


def _operating_points(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for model, result in report["models"].items():
        for name, point in result["operating_points"].items():
            if point is None:
                rows.append([model, name, *[_NONE] * 7])
                continue
            rows.append(
                [
                    model,
                    name,
                    _number(point["threshold"]),
                    _number(point["precision"]),
                    _number(point["recall"]),
                    _number(point["f1"]),
                    f"{point['events_found']} of {point['events']}",
                    _number(point["false_alarms_per_hour"], 2),
                    _number(point["median_lead_s"], 0),
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
        "median lead, s",
    ]
    return [
        "## Operating points",
        "",
        "Chosen on validation, measured on test. Alarms of a product rest 5 min; lead counts from the "
        "first flag to the moment the trailing volatility itself shows the spike.",
        "",
        *_table(head, rows),
        "",
    ]


def _limits(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Limits",
        "",
        "- Hours of ticks cannot train a model that beats persistence; on about nine real hours nothing "
        "did. A lift far above that of the baselines on such data is a leak until proven otherwise.",
        "- τ is frozen at training. When the market's volatility moves, the base rate moves with it: "
        "compare lift and base rate, not PR-AUC alone, between spans.",
        "- One model serves all products; τ differs by product, the features' scale is not adjusted for it.",
        "- Neighbouring rows share most of their label. Rows and positives say little about certainty; "
        "events and blocks do.",
        "- Rows inside gaps, after restarts and with old quotes have no label and no prediction; nothing "
        "is known about spikes that coincide with them.",
    ]
    if report["verdict"] != OK:
        lines.append(
            "- **This test is too small to tell the models apart**; it shows that the machinery works, not "
            "that a model does."
        )
    return [*lines, ""]


def _caveats() -> list[str]:
    return [
        "## Ethics and money",
        "",
        "- Public market data only; nothing in it is about persons.",
        "- This is no advice to trade. A flag says that a market may move, not which way, and most flags "
        "at an operating point may be false: read the precision beside them.",
        "- Whoever acts on flags moves with others who do. Acting late, all at once and in the same "
        "direction makes violent minutes worse.",
        "- Exchanges, fees and liquidity are outside of the model; a right prediction can still cost money.",
        "",
    ]


def _reproduce(report: Mapping[str, Any], context: CardContext | None) -> list[str]:
    key = report.get("as_of", "HOUR")
    lines = [
        "## How to reproduce",
        "",
        f"The same raw storage and `config.yaml` give the data hash `{report['data']['hash']}` and these "
        f"numbers (seed {report['bootstrap']['seed']}):",
        "",
        "```sh",
        f"cryptovol train --partition {key}",
        f"cryptovol evaluate --partition {key} --json",
        "```",
        "",
        f"Schema version of the evaluation: {report['schema_version']}.",
    ]
    if context is not None:
        versions = ", ".join(f"{name} {found}" for name, found in sorted(context.versions.items()))
        lines.append(f"Trained with {versions}.")
    return [*lines, ""]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *["| " + " | ".join(row) + " |" for row in rows],
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _with_interval(
    value: float | None, low: float | None, high: float | None, *, signed: bool = False
) -> str:
    sign = "+" if signed else ""
    if value is None:
        return _NONE
    bounds = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{bounds}"

"""The model card: what the models are for, what they were measured on, and what they cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptovol_dagster.core.evaluation import OK, summary_rows

_NONE = "–"


def render_model_card(evaluation: Mapping[str, Any], *, title: str = "cryptovol spike models") -> str:
    """Render the content of ``model_eval.json`` as Markdown.

    Args:
        evaluation: what `Evaluation.to_dict` returned (or what was read from the file).
        title: heading of the card.

    Raises:
        KeyError: the report lacks a part; it is not of this schema version.
    """
    parts = (
        [f"# Model card: {title}", ""],
        _intended_use(evaluation),
        _verdict(evaluation),
        _data(evaluation),
        _thresholds(evaluation),
        _results(evaluation),
        _comparisons(evaluation),
        _operating_points(evaluation),
        _limits(evaluation),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _intended_use(report: Mapping[str, Any]) -> list[str]:
    horizon = report["horizon_s"]
    return [
        "## Intended use",
        "",
        f"For each product and each bar of {report['bar_interval_s']} s, the probability that the realised "
        f"volatility of the **next {horizon} s** is at or over the product's threshold τ (a *spike*). τ is "
        f"the {report['quantile']:g} quantile of that volatility over the training span.",
        "",
        "For monitoring and alerting on market conditions. Not for: the direction of prices, unattended "
        "trading, products or venues it was not trained on, or rows its features call invalid (no "
        "prediction is given).",
        "",
    ]


def _verdict(report: Mapping[str, Any]) -> list[str]:
    if report["verdict"] == OK:
        return ["**Verdict: ok.** There are enough independent spikes in the test for intervals.", ""]
    return [
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
        "## Against the baselines",
        "",
        "Difference of PR-AUC on the same rows and resamples; an interval that holds 0 shows no difference.",
        "",
        *_table(["model", "baseline", "difference [95 %]"], rows),
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

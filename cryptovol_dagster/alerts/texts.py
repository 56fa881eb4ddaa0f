"""Texts of alerts: a short title, a body of a few lines, and the same values for programs.

Plain text. What comes from data (products, reasons, errors) cannot be markup for any receiver.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from cryptovol_dagster.core.specs import HOUR_S, NS
from ingestor.envelope import LiveEvent, ScoreMessage

#: Characters of a value from data that are shown.
_SHOWN = 400
#: Features shown of a score.
_CONTRIBUTIONS = 5
#: A score that was published later than this after its bar says so.
_LATE_S = 60.0
_MARKUP = str.maketrans(
    {"<": "‹", ">": "›", "@": "(at)", "`": "'", "*": "∗", "~": "∼", "|": "¦", "[": "(", "]": ")"}
)
#: Underscores inside of a word are not markup anywhere.
_EDGE_UNDERSCORES = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")


class Text(NamedTuple):
    """What an alert says.

    Attributes:
        title: one line.
        body: lines.
        detail: for programs; `kind` and `text` are among its keys.
    """

    title: str
    body: str
    detail: dict[str, Any]


def plain(value: object) -> str:
    """Return a value from data as one line that is not markup, shortened."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    line = _EDGE_UNDERSCORES.sub("-", line.translate(_MARKUP))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def time_of(time_ns: int) -> str:
    """Return a time as text, UTC, to the second."""
    return f"{datetime.fromtimestamp(time_ns // NS, UTC):%Y-%m-%d %H:%M:%S} UTC"


def of_score(score: ScoreMessage, meaning: Callable[[str], str]) -> Text:
    """Return the text about a probability.

    Args:
        score: one with a probability.
        meaning: of a feature's name, in words.
    """
    title = f"{plain(score.product_id)}: probability {score.probability:.2f}"
    return _text("probability", title, score_lines(score, meaning), {"score": _values(score)})


def of_episode(event: LiveEvent, score: ScoreMessage | None, meaning: Callable[[str], str]) -> Text:
    """Return the text about the begin or the end of an episode.

    Args:
        event: `episode_opened` or `episode_closed`.
        score: the product's newest score, where one is known.
        meaning: of a feature's name, in words.
    """
    word = "opened" if event.kind == "episode_opened" else "closed"
    title = f"{plain(event.product_id)}: episode {word}"
    lines = [f"product: {plain(event.product_id)}, chain {plain(event.chain)}"]
    if event.bar_end_ns is not None:
        lines.append(f"time: {time_of(event.bar_end_ns)}{_late(event.at_ns, event.bar_end_ns)}")
    lines += _details(event)
    if score is not None and score.probability is not None:
        lines += score_lines(score, meaning)[0 if event.bar_end_ns is None else 2 :]
    values = {"event": msgspec.to_builtins(event), "score": score and _values(score)}
    return _text(event.kind, title, lines, values)


def of_refusal(event: LiveEvent) -> Text:
    """Return the text about a model that cannot be used; the one before goes on."""
    title = f"{plain(event.chain)}: a model was refused"
    lines = [
        f"time: {time_of(event.at_ns)}",
        "The model before it goes on scoring. 'cryptovol champion' shows the champion.",
        *_details(event),
    ]
    return _text(event.kind, title, lines, {"event": msgspec.to_builtins(event)})


def of_silence(now_ns: int, heard_at_ns: int) -> Text:
    """Return the text about a silent feed."""
    silent_s = (now_ns - heard_at_ns) / NS
    title = f"no message of the feed for {silent_s:.0f} s"
    lines = [
        f"last message: {time_of(heard_at_ns)}",
        "No second is scored until the feed is back. 'cryptovol status' shows the recorder.",
    ]
    return _text("feed_silent", title, lines, {"heard_at_ns": heard_at_ns, "at_ns": now_ns})


def of_old_champion(now_ns: int, chain: str, trained_until_ns: int, retrain_every_s: float) -> Text:
    """Return the text about a champion that is older than twice the time between two trainings."""
    age_h = (now_ns - trained_until_ns) / NS / HOUR_S
    title = f"{plain(chain)}: the champion is {age_h:.0f} h old"
    lines = [
        f"end of its training: {time_of(trained_until_ns)}",
        f"A training is due every {retrain_every_s / HOUR_S:g} h. 'cryptovol champion' shows the decisions.",
    ]
    values = {"chain": chain, "trained_until_ns": trained_until_ns, "at_ns": now_ns}
    return _text("champion_old", title, lines, values)


def of_failed_run(failure: Mapping[str, Any]) -> Text:
    """Return the text about a failed run.

    Args:
        failure: as `defs.automation.alerts.describe_failure` returns it.
    """
    where = " ".join(plain(failure[key]) for key in ("job", "partitions") if failure[key])
    lines = [f"failed at {plain(failure['failed_step'])}"] if failure["failed_step"] else []
    lines.append(plain(failure["error"]))
    for check in failure["failed_checks"]:
        lines += [plain(check["check"]), *(f"  {plain(line)}" for line in check["sentences"])]
    return Text(f"run failed: {where}", "\n".join([*lines, failure["url"]]), dict(failure))


def of_test(target: str, now_ns: int, host: str) -> Text:
    """Return the text of a test."""
    lines = [
        f"A test of the target {target}, sent by 'cryptovol alert --test' on {plain(host)}.",
        f"time: {time_of(now_ns)}",
    ]
    return _text("test", "cryptovol: test alert", lines, {"at_ns": now_ns})


def score_lines(score: ScoreMessage, meaning: Callable[[str], str]) -> list[str]:
    """Return a score as lines: product, time, probability, what moved it, model."""
    late = _late(score.published_at_ns, score.bar_end_ns)
    point = "no operating point" if score.threshold is None else f"operating point {score.threshold:.3f}"
    lines = [
        f"product: {plain(score.product_id)}, chain {plain(score.chain)}",
        f"time: {time_of(score.bar_end_ns)}{late}",
        f"probability: {score.probability:.3f}, {point}",
    ]
    for one in score.contributions[:_CONTRIBUTIONS]:
        value = "no value" if one.value is None else f"{one.value:.4g}"
        lines.append(f"{one.log_odds:+.2f} log-odds: {plain(meaning(one.feature))} ({value})")
    if score.model is not None:
        age = "" if score.model_age_s is None else f", {score.model_age_s / HOUR_S:.1f} h old"
        version = "" if score.model_version is None else f", version {plain(score.model_version)}"
        lines.append(f"model: {plain(score.model)} as of {plain(score.model_as_of)}{version}{age}")
    return lines


def _late(published_at_ns: int, bar_end_ns: int) -> str:
    late_s = (published_at_ns - bar_end_ns) / NS
    return f", published {late_s:.0f} s later" if late_s > _LATE_S else ""


def _details(event: LiveEvent) -> list[str]:
    return [f"{plain(key)}: {plain(value)}" for key, value in event.detail.items()]


def _values(score: ScoreMessage) -> dict[str, Any]:
    return msgspec.to_builtins(score)


def _text(kind: str, title: str, lines: list[str], values: dict[str, Any]) -> Text:
    return Text(title, "\n".join(lines), {"kind": kind, "text": title, **values})

"""Alerts, scores and events for tests."""

from __future__ import annotations

from pathlib import Path

from cryptovol_dagster.alerts.outbox import Alert
from cryptovol_dagster.core.specs import NS
from ingestor.envelope import Contribution, LiveEvent, LiveEventKind, ScoreMessage
from ingestor.settings import Settings

#: Part of each URL here that must not be seen anywhere.
SECRET = "s3cretT0ken"
T0_NS = 1_796_090_000 * NS


def configured(folder: Path, targets: dict[str, str], **changes: object) -> Settings:
    """Return settings with targets, that are patient for no longer than a test."""
    monitoring = {"alert_timeout_s": 5.0, "alert_tries": 2, "alert_pause_s": 0.01}
    alerts: dict[str, object] = {"targets": targets, "give_up_after_s": 0.001}
    for key, value in changes.items():
        (monitoring if key.startswith("alert_") else alerts)[key] = value  # type: ignore[assignment]
    return Settings.model_validate(
        {"storage": {"data_dir": folder}, "monitoring": monitoring, "alerts": alerts}
    )


def alert(number: int = 1, *, recorded_at_ns: int = T0_NS) -> Alert:
    """Return an alert of an episode; another number is another alert."""
    subject = f"seconds/P{number}-USD"
    return Alert(
        *(f"opened/{subject}/{number}", "opened", "episode_opened", subject, T0_NS + number, recorded_at_ns),
        *(f"P{number}-USD: episode opened", "two\nlines", {"kind": "episode_opened", "text": "opened"}),
    )


def score(second: int = 1, probability: float | None = 0.93, product: str = "BTC-USD") -> ScoreMessage:
    """Return a flagged score with six contributions."""
    bar_end_ns = T0_NS + second * NS
    return ScoreMessage(
        chain="seconds",
        product_id=product,
        bar_end_ns=bar_end_ns,
        revision=0,
        published_at_ns=bar_end_ns + 2 * NS,
        provisional=False,
        probability=probability,
        reason="ok" if probability is not None else "stale",
        flag=probability is not None,
        threshold=0.71,
        model="xgboost",
        model_as_of="2026-11-30-23:00",
        model_version="7",
        model_age_s=9_000.0,
        feature_version="abc",
        row_hash="1",
        contributions=[Contribution(f"ln_rv_{w}", -7.25, 2.0 - 0.1 * w) for w in (5, 15, 30)]
        + [Contribution("of_tomorrow", None, -0.5), Contribution("a", 1.0, 0.2), Contribution("b", 1.0, 0.1)],
    )


def event(
    kind: LiveEventKind = "episode_opened", second: int = 1, product: str | None = "BTC-USD", **detail: object
) -> LiveEvent:
    """Return an event of the chain of the seconds."""
    bar_end_ns = T0_NS + second * NS
    return LiveEvent(
        kind=kind,
        at_ns=bar_end_ns + 2 * NS,
        chain="seconds",
        product_id=product,
        bar_end_ns=None if product is None else bar_end_ns,
        episode=None if product is None else f"seconds/{product}/{bar_end_ns}",
        detail=detail,
    )

"""`cryptovol score`: a probability for every second, live."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import json_option
from cryptovol_dagster.verbs.stopping import stopping_at_signals
from ingestor.settings import load_settings
from ingestor.verbs.bootstrap import bootstrap_option, outside_kafka
from ingestor.verbs.output import log_to_stderr

if TYPE_CHECKING:
    from cryptovol_dagster.alerts.service import AlertService
    from cryptovol_dagster.live.scoring.progress import ScorerProgress, ScorerStarted, ScorerSummary
    from ingestor.envelope import LiveEvent, ScoreMessage

LOG = logging.getLogger(__name__)


@click.command()
@bootstrap_option
@click.option(
    "--duration", type=click.FloatRange(0, min_open=True), metavar="S", help="Stop after S seconds."
)
@click.option(
    "--until-idle",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Stop after S seconds without a row.",
)
@json_option
def score(bootstrap: str | None, duration: float | None, until_idle: float | None, as_json: bool) -> None:
    """Score live features: ticks.features → ticks.scores, with the champion.

    Every second of every product is published once: with the probability that the next minute is a spike, or
    with the reason why there is none. A second is published again, as its next revision, when a late tick
    changes its row. When another model becomes champion, it is tried beside the present one, and scores from
    the next second on.

    Beside them it scores the minutes, from candles of trades.raw, where candles are imported
    (`cryptovol import-bars`).

    It needs `cryptovol featurize` beside it, and stores ticks.scores in raw storage. One instance scores,
    others stand by and take over. After any stop, also a kill, it resumes after the newest published scores.

    Alerts are sent by the rules of the configuration (`cryptovol alert --list`).

    Ctrl-C (or SIGTERM) stops cleanly: every published score is acknowledged, exit code 0.

    \b
    The configured broker:           cryptovol score
    The embedded one of `ingest`:    cryptovol score --bootstrap 127.0.0.1:39511
    A recording, to its end:         cryptovol score --until-idle 10 --json
    """
    settings = load_settings().settings
    kafka = outside_kafka(settings.kafka, bootstrap)
    log_to_stderr()
    from cryptovol_dagster.alerts.service import AlertService
    from cryptovol_dagster.chains import minutes_specs, spec_of
    from cryptovol_dagster.core.specs import SECONDS
    from cryptovol_dagster.history.store import History
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.raw_ticks import RawStore
    from cryptovol_dagster.live.scoring.minutes import MinutesTask
    from cryptovol_dagster.live.scoring.scorer import Scorer
    from ingestor.archive.scores import scores_archive
    from ingestor.kafka.broker import connect

    timescales = settings.timescales
    minutes = MinutesTask(
        minutes_specs(timescales.minutes, timescales.reference_set),
        History(settings.storage.history_dir),
        RawStore(settings.storage.raw_dir),
        Lake(settings.storage.lake_dir),
        settings.mlflow_tracking_uri,
    )
    with connect(kafka) as broker, AlertService(settings) as alerts, stopping_at_signals() as stop:
        scorer = Scorer(
            broker,
            spec_of(settings, SECONDS),
            settings.live,
            lake=minutes.lake,
            tracking_uri=minutes.tracking_uri,
            products=settings.coinbase.products,
            minutes=minutes if timescales.minutes.enabled else None,
            new_archive=lambda: scores_archive(
                broker,
                settings.storage,
                closed_after_s=settings.dagster.closed_after_s,
                revised_after_s=settings.dagster.revised_after_s,
            ),
            on_scores=_observing(alerts, None if as_json else _first_score_printer()),
            on_event=lambda event: _observe_event(alerts, None if as_json else _print_event, event),
            on_second=lambda pulse: alerts.tick(
                pulse.now_ns, pulse.heard_at_ns, {pulse.chain: pulse.trained_until_ns}
            ),
            on_progress=_log_progress,
        )
        summary = scorer.run(
            stop, duration_s=duration, until_idle_s=until_idle, on_started=_start_printer(as_json)
        )
    click.echo(json.dumps(summary.as_dict()) if as_json else _text(summary))


def _observing(
    alerts: AlertService, show: Callable[[list[ScoreMessage]], None] | None
) -> Callable[[list[ScoreMessage]], None]:
    def observe(messages: list[ScoreMessage]) -> None:
        for message in messages:
            alerts.observe(message)
        if show is not None:
            show(messages)

    return observe


def _observe_event(alerts: AlertService, show: Callable[[LiveEvent], None] | None, event: LiveEvent) -> None:
    alerts.observe(event)
    if show is not None:
        show(event)


def _start_printer(as_json: bool) -> Callable[[ScorerStarted], None]:
    def show(started: ScorerStarted) -> None:
        if as_json:
            print(json.dumps(started.as_dict()), flush=True)
        else:
            click.echo(f"Kafka at {started.bootstrap_servers}: scores of {started.chain} → {started.topic}")

    return show


def _first_score_printer() -> Callable[[list[ScoreMessage]], None]:
    """Return a function that prints the first score of each product, and the first with a probability."""
    shown: set[tuple[str, str, bool]] = set()

    def show(messages: list[ScoreMessage]) -> None:
        from ingestor.exchange.clock import ns_to_rfc3339

        for message in messages:
            key = message.chain, message.product_id, message.probability is not None
            if key in shown:
                continue
            shown.add(key)
            result = message.reason if message.probability is None else f"{message.probability:.4f}"
            name, end = f"{message.product_id} ({message.chain})", ns_to_rfc3339(message.bar_end_ns)
            click.echo(f"first of {name}: {end}, {result}")

    return show


def _print_event(event: LiveEvent) -> None:
    detail = ", ".join(f"{key} {value}" for key, value in event.detail.items() if value is not None)
    click.echo(f"{event.kind.replace('_', ' ')}: {detail}")


def _log_progress(progress: ScorerProgress) -> None:
    LOG.info(
        "%d bars, %d with a probability, %d flagged, %d revised; champion: %s",
        progress.bars,
        progress.by_reason["ok"],
        progress.flagged,
        progress.revisions,
        progress.champion or "none",
    )


def _text(summary: ScorerSummary) -> str:
    progress = summary.progress
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in progress.by_reason.most_common())
    return "\n".join(
        [
            f"ended     {summary.ended} after {summary.seconds:.1f} s",
            f"bars      {progress.bars:,}: {reasons or 'none'}",
            f"revised   {progress.revisions:,}",
            f"flagged   {progress.flagged:,}",
            f"champion  {progress.champion or 'none'}, {progress.changes} changes, "
            f"{progress.refused} refused",
            *(
                f"{chain}  {each.bars:,} bars, {each.by_reason['ok']:,} with a probability, "
                f"{each.flagged:,} flagged, {each.revisions:,} revised"
                for chain, each in progress.others.items()
            ),
        ]
    )

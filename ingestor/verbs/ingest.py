"""``cryptovol ingest``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from ingestor.settings.load import load_settings
from ingestor.synthetic import require_real
from ingestor.verbs.output import log_to_stderr, print_json, print_table

if TYPE_CHECKING:
    from ingestor.feed.counters import FeedCounters
    from ingestor.kafka.publisher import PublishCounters
    from ingestor.recorder import IngestSummary, Started


@click.command()
@click.option("--products", help="Products instead of the configured ones, e.g. BTC-USD,ETH-USD.")
@click.option("--url", help="Feed instead of the configured one, e.g. ws://127.0.0.1:8765 of the simulator.")
@click.option(
    "--duration", type=click.FloatRange(0, min_open=True), metavar="S", help="Stop after S seconds."
)
@click.option(
    "--until-closed", is_flag=True, help="Stop when the server closes cleanly (end of a recording)."
)
@click.option(
    "--stay",
    is_flag=True,
    help="With --until-closed: keep the broker until a signal, so that other programs read it to its end.",
)
@click.option("--no-archive", is_flag=True, help="Publish only; another process archives. Real broker only.")
@click.option("--no-feed", is_flag=True, help="Archive only; another process publishes. Real broker only.")
@click.option(
    "--shared-archive",
    is_flag=True,
    help="Allow other archives with this option to write this raw storage and share a real broker's "
    "partitions. Without it a second archive is refused.",
)
@click.option("--no-kafka", is_flag=True, help="Use the embedded broker instead of the configured one.")
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="S",
    help="With --duration or --until-closed: fail after S seconds without a readable frame. "
    "Without them, try for ever.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="First line: the started parts. Last line: the summary."
)
def ingest(
    products: str | None,
    url: str | None,
    duration: float | None,
    until_closed: bool,
    stay: bool,
    no_archive: bool,
    no_feed: bool,
    shared_archive: bool,
    no_kafka: bool,
    connect_timeout: float,
    as_json: bool,
) -> None:
    """Record the feed into Kafka and raw storage until stopped.

    Ctrl-C (or SIGTERM) stops cleanly: everything read is acknowledged and stored, exit code 0.

    \b
    The real market:       cryptovol ingest
    One product, a minute: cryptovol ingest --products BTC-USD --duration 60
    A recording:           cryptovol ingest --url ws://127.0.0.1:8765 --until-closed
    For another program:   cryptovol ingest --json
    Two archives, by plan: cryptovol ingest --no-feed --shared-archive   (each of them)
    """
    settings = load_settings().settings
    if url is None:
        require_real(settings, "cryptovol ingest")
    chosen = _chosen_products(products)
    log_to_stderr()
    from ingestor.recorder import IngestOptions, run_ingest

    options = IngestOptions(
        products=chosen,
        url=url,
        duration_s=duration,
        until_closed=until_closed,
        stay=stay,
        with_archive=not no_archive,
        with_feed=not no_feed,
        connect_timeout_s=connect_timeout,
        embedded_broker=no_kafka,
        shared_archive=shared_archive,
    )
    summary = run_ingest(
        settings,
        options,
        on_started=_print_started(as_json),
        on_progress=_log_progress,
        on_feed_ended=lambda: print_json({"event": "feed_ended"}) if as_json else click.echo("feed ended"),
    )
    if as_json:
        print_json(summary.as_dict())
    else:
        _print_summary(summary)


def _chosen_products(text: str | None) -> list[str] | None:
    if text is None:
        return None
    products = [name.strip() for name in text.split(",")]
    if not all(products) or len(set(products)) != len(products):
        raise click.BadParameter("names no product, or one twice", param_hint="--products")
    return products


def _print_started(as_json: bool) -> Callable[[Started], None]:
    def print_started(started: Started) -> None:
        if as_json:
            print_json(started.as_dict())
            return
        kind = "embedded Kafka (ephemeral)" if started.embedded else "Kafka"
        click.echo(f"{kind} at {started.bootstrap_servers}")
        if started.url is not None:
            click.echo(f"feed {started.url}: {', '.join(started.products)}")
        if started.raw_dir is not None:
            click.echo(f"raw storage {started.raw_dir}")

    return print_started


def _log_progress(counters: FeedCounters, published: PublishCounters) -> None:
    from ingestor.exchange.clock import ns_to_rfc3339

    newest = ns_to_rfc3339(counters.last_event_time_ns)[:19] if counters.last_event_time_ns else "none yet"
    logging.getLogger(__name__).info(
        "%d frames, %d ticks, %d trades, %d gaps, %d repeats, %d dead letters%s, %d reconnects; newest %s%s",
        counters.frames,
        counters.ticks,
        counters.trades,
        counters.gaps,
        counters.repeats,
        counters.dead_letters,
        _mostly(counters.dead_reasons, " ({})"),
        counters.reconnects,
        newest,
        _mostly(counters.drift, f"; {sum(counters.drift.values())} × unlike the documented protocol ({{}})"),
    )
    if published.spilled_messages or published.outages:
        logging.getLogger(__name__).info(
            "Kafka was away %d times, %.0f s; %d messages (%.1f MiB) were spilled so far",
            published.outages,
            published.outage_s,
            published.spilled_messages,
            published.spilled_bytes / 1024**2,
        )


def _mostly(counted: Mapping[str, int], text: str) -> str:
    """Print `text` with the most frequent names; print nothing without counts."""
    from ingestor.feed.counters import commonest

    name = commonest(counted)
    return text.format(f"mostly {name}" if len(counted) > 1 else name) if counted else ""


def _print_summary(summary: IngestSummary) -> None:
    counted = summary.feed.as_dict() if summary.feed else {}
    rows = [
        (name.replace("_", " "), f"{value:,}")
        for name, value in counted.items()
        if isinstance(value, int) and not name.endswith("_ns")
    ]
    published = summary.kafka.as_dict() if summary.kafka else {}
    rows += [(f"Kafka: {name.replace('_', ' ')}", f"{value:,}") for name, value in published.items()]
    rows += [
        (f"{topic}: offsets stored so far", f"{sum(partitions.values()):,}")
        for topic, partitions in summary.archived_offsets.items()
    ]
    click.echo(f"recorded for {summary.seconds:.1f} s; ended: {summary.ended}")
    print_table(("what", "count"), rows, words=("what",))
    if summary.feed is not None:
        _print_counted("dead letters by reason (cryptovol dead-letters)", summary.feed.dead_reasons)
        _print_counted("different from the documented protocol, kept", summary.feed.drift)


def _print_counted(title: str, counted: Mapping[str, int]) -> None:
    if counted:
        commonest_first = sorted(counted.items(), key=lambda item: -item[1])
        print_table((title, "count"), [(name, f"{count:,}") for name, count in commonest_first])

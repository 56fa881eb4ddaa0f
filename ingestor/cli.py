"""The recorder's verbs (``ingest``, ``check-stream``, ``config`` and those of other rooms); imports wait."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ingestor.cli_group import VerbGroup
from ingestor.settings.load import LoadedSettings, load_settings

if TYPE_CHECKING:
    from ingestor.feed.counters import FeedCounters
    from ingestor.ingest import IngestSummary, Started
    from ingestor.kafka.check_stream import StreamReport

_WIDTH_WITHOUT_TERMINAL = 160


@click.group(
    cls=VerbGroup,
    elsewhere={
        "simulate": "ingestor.simulator.command:simulate",
        "convert-raw": "ingestor.archive.command:convert_raw",
    },
)
def cli() -> None:
    """Record a crypto market: exchange → Kafka → raw storage."""


@cli.command()
@click.option("--products", help="Products instead of the configured ones, e.g. BTC-USD,ETH-USD.")
@click.option("--url", help="Feed instead of the configured one, e.g. ws://127.0.0.1:8765 of the simulator.")
@click.option(
    "--duration", type=click.FloatRange(0, min_open=True), metavar="S", help="Stop after S seconds."
)
@click.option(
    "--until-closed", is_flag=True, help="Stop when the server closes cleanly (end of a recording)."
)
@click.option("--no-archive", is_flag=True, help="Publish only; another process archives. Real broker only.")
@click.option("--no-feed", is_flag=True, help="Archive only; another process publishes. Real broker only.")
@click.option(
    "--shared-archive",
    is_flag=True,
    help="Let other archives that say so too write this raw storage, sharing a real broker's partitions. "
    "Without it a second archive is refused.",
)
@click.option("--no-kafka", is_flag=True, help="Leave the configured broker alone: use the embedded one.")
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="S",
    help="With --duration or --until-closed: fail when nothing readable comes for S seconds. "
    "Without them, keep trying for ever.",
)
@click.option("--json", "as_json", is_flag=True, help="First line: what was started. Last line: the summary.")
def ingest(
    products: str | None,
    url: str | None,
    duration: float | None,
    until_closed: bool,
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
    chosen = _chosen_products(products)
    _log_to_stderr()
    from ingestor.ingest import run_ingest

    summary = run_ingest(
        settings,
        products=chosen,
        url=url,
        duration_s=duration,
        until_closed=until_closed,
        with_archive=not no_archive,
        with_feed=not no_feed,
        connect_timeout_s=connect_timeout,
        embedded_broker=no_kafka,
        shared_archive=shared_archive,
        on_started=_tell_started(as_json),
        on_progress=_log_progress,
    )
    if as_json:
        _print_json(summary.as_dict())
    else:
        _print_summary(summary)


@cli.command("check-stream")
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="How long to look.",
)
@click.option("--bootstrap", metavar="HOST:PORT", help="Broker instead of the configured one.")
@click.option("--from-beginning", is_flag=True, help="Also look at what the topic holds already.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def check_stream(duration: float, bootstrap: str | None, from_beginning: bool, as_json: bool) -> None:
    """Look at ticks.raw for a while: what arrives, how fresh, whether valid.

    Exit code 1 when nothing arrives or a message is invalid. Nothing is committed: looking changes nothing.

    \b
    The configured broker:          cryptovol check-stream --duration 60
    The embedded one of `ingest`:   cryptovol check-stream --bootstrap 127.0.0.1:39511
    """
    from ingestor.kafka.broker import BrokerError, connect
    from ingestor.kafka.check_stream import check_stream as look

    settings = load_settings().settings
    kafka = settings.kafka
    if bootstrap is not None:
        kafka = kafka.model_copy(update={"bootstrap_servers": bootstrap})
    if kafka.is_embedded:
        raise click.UsageError(
            "kafka.bootstrap_servers is 'embedded': that broker lives inside `cryptovol ingest`, "
            "which prints its address; pass it with --bootstrap HOST:PORT"
        )
    with connect(kafka) as broker:
        report = look(broker, duration, from_beginning=from_beginning)
    if as_json:
        _print_json(report.as_dict())
    else:
        _print_report(report)
    if report.problem is not None:
        raise BrokerError(report.problem)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print {key: {value, source}} as JSON.")
def config(as_json: bool) -> None:
    """Show the configuration in force, and where each value came from.

    Order of precedence: environment (CRYPTOVOL__SECTION__KEY), .env beside the file, the file, the default.

    \b
    All of it:            cryptovol config
    Of another file:      cryptovol --config other.yaml config
    Override one value:   CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9092 cryptovol config
    """
    loaded = load_settings()
    if as_json:
        _print_json({key: {"value": value, "source": source} for key, value, source in loaded.rows()})
    else:
        _print_config(loaded)


def _chosen_products(text: str | None) -> list[str] | None:
    if text is None:
        return None
    products = [name.strip() for name in text.split(",")]
    if not all(products) or len(set(products)) != len(products):
        raise click.BadParameter("names no product, or one twice", param_hint="--products")
    return products


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    # librdkafka repeats each failed attempt; what matters reaches us as errors and is said once.
    logging.getLogger("ingestor.kafka.librdkafka").setLevel(logging.CRITICAL)


def _tell_started(as_json: bool) -> Callable[[Started], None]:
    def tell(started: Started) -> None:
        if as_json:
            _print_json(started.as_dict())
            return
        kind = "embedded Kafka (ephemeral)" if started.embedded else "Kafka"
        click.echo(f"{kind} at {started.bootstrap_servers}")
        if started.url is not None:
            click.echo(f"feed {started.url}: {', '.join(started.products)}")
        if started.raw_dir is not None:
            click.echo(f"raw storage {started.raw_dir}")

    return tell


def _log_progress(counters: FeedCounters) -> None:
    from ingestor.exchange.clock import ns_to_rfc3339

    newest = ns_to_rfc3339(counters.last_event_time_ns)[:19] if counters.last_event_time_ns else "none yet"
    logging.getLogger(__name__).info(
        "%d frames, %d ticks, %d trades, %d gaps, %d repeats, %d dead letters, %d reconnects; newest %s",
        counters.frames,
        counters.ticks,
        counters.trades,
        counters.gaps,
        counters.repeats,
        counters.dead_letters,
        counters.reconnects,
        newest,
    )


def _print_summary(summary: IngestSummary) -> None:
    counted = summary.feed.as_dict() if summary.feed else {}
    rows = [
        (name.replace("_", " "), f"{value:,}")
        for name, value in counted.items()
        if isinstance(value, int) and not name.endswith("_ns")
    ]
    rows += [
        (f"{topic}: offsets stored so far", f"{sum(partitions.values()):,}")
        for topic, partitions in summary.archived_offsets.items()
    ]
    click.echo(f"recorded for {summary.seconds:.1f} s; ended: {summary.ended}")
    _print_table(("what", "count"), rows)


def _print_report(report: StreamReport) -> None:
    numbers = report.as_dict()
    click.echo(f"{report.topic} at {report.bootstrap_servers}, {report.seconds:.0f} s")
    _print_table(
        ("product", "messages", "a second", "newest event", "latency p50 ms", "p99 ms"),
        [(name, *(str(value) for value in seen.values())) for name, seen in numbers["products"].items()],
    )
    events = ", ".join(f"{count} {kind}" for kind, count in numbers["events"].items()) or "none"
    click.echo(f"feed.events: {events}; frames missing in gaps: {report.missing_frames}")
    click.echo(f"invalid messages: {report.invalid}")


def _print_config(loaded: LoadedSettings) -> None:
    click.echo(f"configuration of {loaded.config_file or 'no file: defaults and environment'}")
    _print_table(("key", "value", "source"), list(loaded.rows()))


def _print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    # Into a file or a pipe nothing should be folded at the 80 columns of no terminal.
    Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL).print(table)


def _print_json(value: Any) -> None:
    # A pipe must see the first line at once.
    print(json.dumps(value), flush=True)

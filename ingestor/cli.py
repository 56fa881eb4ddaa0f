"""The recorder's verbs (``ingest``, ``check-stream``, ``audit``, ``config``, …); their imports wait."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestor.cli_group import VerbGroup
from ingestor.settings.load import LoadedSettings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from ingestor.audit.model import Audit, Loss
    from ingestor.dead_letters.report import DeadLetterReport
    from ingestor.feed.counters import FeedCounters
    from ingestor.ingest import IngestSummary, Started
    from ingestor.kafka.broker import Broker
    from ingestor.kafka.publisher import PublishCounters
    from ingestor.kafka.stream_statistics import StreamReport

_WIDTH_WITHOUT_TERMINAL = 160
#: How often `check-stream` writes a line where there is no terminal to draw on.
_LINE_EVERY_S = 5.0
_SHOWN_CHARACTERS = 200
_EVER_NS = 2**63 - 1


@click.group(
    cls=VerbGroup,
    elsewhere={
        "simulate": "ingestor.simulator.command:simulate",
        "convert-raw": "ingestor.archive.command:convert_raw",
    },
    unknown_verb="This is the recorder alone: the pipeline's verbs are in the pipeline's image.",
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
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object at the end.")
def check_stream(duration: float, bootstrap: str | None, from_beginning: bool, as_json: bool) -> None:
    """Watch the stream for a while: what arrives, how fresh, in what order, whether valid, how far archived.

    On a terminal the table is kept up to date and left standing at the end (Ctrl-C ends early). Otherwise a
    line goes to stderr every few seconds and the table to stdout at the end.

    \b
    exchange→read: from the exchange's timestamp to reading the socket; negative where
                   its clock is ahead of ours by more than the way takes
    read→here:     from reading the socket, through Kafka, to this command

    Exit code 1 when nothing arrives or a message is invalid. Nothing is committed: looking changes nothing.

    \b
    The configured broker:          cryptovol check-stream --duration 60
    The embedded one of `ingest`:   cryptovol check-stream --bootstrap 127.0.0.1:39511
    What is there already:          cryptovol check-stream --from-beginning --duration 10
    For another program:            cryptovol check-stream --duration 10 --json
    """
    from ingestor.kafka.broker import BrokerError, connect

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
        report = _looked(broker, duration, from_beginning=from_beginning, as_json=as_json)
    if report.problem is not None:
        raise BrokerError(report.problem)


class _Moment(click.ParamType):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        for form in ("%Y-%m-%d", "%Y-%m-%d-%H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"):
            try:
                moment = datetime.strptime(value.removesuffix("Z"), form).replace(tzinfo=UTC)
            except ValueError:
                continue
            return int(moment.timestamp()) * 1_000_000_000
        known = "2026-04-04, 2026-04-04-03:00 or 2026-04-04T03:15:00Z"
        raise click.BadParameter(f"{value!r} is no UTC time such as {known}", ctx, param)


@cli.command("dead-letters")
@click.option(
    "--from", "from_ns", type=_Moment(), default="1970-01-01", help="Received at this time or later, UTC."
)
@click.option("--to", "to_ns", type=_Moment(), help="Received before this time, UTC.")
@click.option("--reason", metavar="TEXT", help="Only letters whose reason contains TEXT, whatever its case.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Letters shown by --show."
)
@click.option(
    "--show", is_flag=True, help="Also each letter: time, connection, sequence, reason, first bytes."
)
@click.option(
    "--retry", is_flag=True, help="Read each again with the parser of today; count what it can read."
)
@click.option(
    "--export",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.ndjson",
    help="Write every letter found, one a line: JSON with its bytes in base64, and as text if UTF-8.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def dead_letters(
    from_ns: int,
    to_ns: int | None,
    reason: str | None,
    limit: int,
    show: bool,
    retry: bool,
    export: Path | None,
    as_json: bool,
) -> None:
    """List what the recorder could not read: a row for each class of reason, and the bytes.

    Reads raw storage, so it sees what `cryptovol ingest` has stored (a running one: up to the last minute).
    Times are of receiving. No letters is good news, exit code 0. docs/protocol.md says what becomes one.

    \b
    What there is, by reason:      cryptovol dead-letters
    Of one day, the bytes too:     cryptovol dead-letters --from 2026-04-04 --to 2026-04-05 --show
    After the parser was mended:   cryptovol dead-letters --retry
    For a bug report:              cryptovol dead-letters --reason product_id --export letters.ndjson
    """
    if to_ns is not None and to_ns <= from_ns:
        raise click.UsageError("--to is not after --from")
    settings = load_settings().settings
    from ingestor.dead_letters.letters import iter_letters
    from ingestor.dead_letters.report import exporting, survey

    letters = iter_letters(settings.storage.raw_dir, from_ns, _EVER_NS if to_ns is None else to_ns, reason)
    report = survey(
        settings.storage.raw_dir,
        letters if export is None else exporting(letters, export),
        keep=limit if show else 0,
        retry_at_ns=time.time_ns() if retry else None,
        future_limit_ns=int(settings.ingest.future_limit_s * 1_000_000_000),
    )
    if as_json:
        _print_json(report.as_dict(show=show))
    else:
        _print_letters(report, retry=retry, export=export)


@cli.command()
@click.option("--from", "from_key", metavar="HOUR", help="First hour, UTC (default: the first stored).")
@click.option("--to", "to_key", metavar="HOUR", help="Last hour, inclusive (default: the last stored).")
@click.option("--json", "as_json", is_flag=True, help="Print the audit as one JSON object.")
def audit(from_key: str | None, to_key: str | None, as_json: bool) -> None:
    """Account for every sequence number and offset in raw storage.

    Each number that the exchange sent is stored, a control frame (acknowledgement, heartbeat, empty frame), a
    dead letter, or in the gap ledger; every checkpoint of the feed is held against what is stored. Numbers
    after the last checkpoint of a connection that may still run are unconfirmed, which is no fault. Sealed
    hours must hold what they held when they closed.

    Exit code 1 when anything is unaccounted for; the last line says what.

    \b
    All that is stored:   cryptovol audit
    Some hours:           cryptovol audit --from 2026-04-04-03:00 --to 2026-04-04-05:00
    For another program:  cryptovol audit --json
    """
    from ingestor.audit.audit import audit as account_for
    from ingestor.audit.errors import UnaccountedError
    from ingestor.audit.span import stored_span

    reader, start_ns, end_ns, still_storing = stored_span(
        load_settings().settings.storage.raw_dir, from_key, to_key
    )
    result = account_for(reader, start_ns, end_ns, still_storing=still_storing)
    if as_json:
        _print_json(result.as_dict())
    else:
        _print_audit(result)
    if result.findings:
        raise UnaccountedError(result.verdict)
    if not as_json:
        click.echo(result.verdict)


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
    """`text` around what was counted most; nothing where nothing was."""
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
    _print_table(("what", "count"), rows)
    if summary.feed is not None:
        _print_counted("dead letters by reason (cryptovol dead-letters)", summary.feed.dead_reasons)
        _print_counted("unlike the documented protocol, kept all the same", summary.feed.drift)


def _print_counted(title: str, counted: Mapping[str, int]) -> None:
    if counted:
        commonest_first = sorted(counted.items(), key=lambda item: -item[1])
        _print_table((title, "count"), [(name, f"{count:,}") for name, count in commonest_first])


def _looked(broker: Broker, duration_s: float, *, from_beginning: bool, as_json: bool) -> StreamReport:
    """Watch the stream, showing it as whoever looks on can read it."""
    from rich.live import Live

    from ingestor.kafka.check_stream import check_stream as look
    from ingestor.kafka.stream_table import progress_line, render

    if as_json:
        report = look(broker, duration_s, from_beginning=from_beginning)
        _print_json(report.as_dict())
        return report
    console = _console()
    if not console.is_terminal:
        report = look(
            broker,
            duration_s,
            from_beginning=from_beginning,
            on_progress=lambda seen: click.echo(progress_line(seen), err=True),
            progress_every_s=_LINE_EVERY_S,
        )
        console.print(render(report))
        return report
    # The last picture gives way to the same table in full, which a small terminal could not hold.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        report = look(
            broker,
            duration_s,
            from_beginning=from_beginning,
            on_progress=lambda seen: live.update(
                render(seen, left_s=duration_s - seen.seconds), refresh=True
            ),
        )
    console.print(render(report))
    return report


def _print_audit(result: Audit) -> None:
    from ingestor.archive.layout import hour_key
    from ingestor.audit.model import COUNTS

    titles = [name.replace("_", " ") for name in COUNTS]
    rows = [
        (hour_key(line.hour_ns), line.connection_id, *(f"{getattr(line, name):,}" for name in COUNTS))
        for line in result.lines
    ]
    totals = ("all hours", "", *(f"{result.total(name):,}" for name in COUNTS))
    click.echo("sequence numbers, by hour of event time and connection")
    _print_table(("hour", "connection", *titles), [*rows, totals])
    click.echo(f"gap ledger: {len(result.losses) or 'nothing is known to be lost'}")
    if result.losses:
        columns = ("kind", "connection", "sequence", "lost", "after", "before", "detail")
        _print_table(columns, [_loss_row(loss) for loss in result.losses])
    click.echo("Kafka offsets, by topic, log and partition")
    names = ("topic", "log_id", "partition", "first_offset", "last_offset", "files", "lost", "missing")
    _print_table(
        [name.replace("_", " ") for name in names],
        [tuple(str(getattr(one, name)) for name in names) for one in result.offsets],
    )
    states = [one.state for one in result.seals]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    click.echo(f"closed hours: {told or 'none'}")
    for one in result.seals:
        if one.late_rows:
            click.echo(f"{one.hour}: {one.late_rows:,} rows came after it closed")
    for finding in result.findings:
        click.echo(f"unaccounted for: {finding.text}")


def _loss_row(loss: Loss) -> tuple[str, ...]:
    from ingestor.exchange.clock import ns_to_rfc3339

    numbers = "" if loss.from_sequence is None else f"{loss.from_sequence} to {loss.to_sequence}"
    detail = ", ".join(f"{name} {value}" for name, value in loss.detail.items())
    lost = "unknown" if loss.count is None else f"{loss.count:,}"
    times = (ns_to_rfc3339(loss.start_ns)[:23], ns_to_rfc3339(loss.end_ns)[:23])
    return (loss.kind, loss.connection_id, numbers, lost, *times, detail)


def _print_letters(report: DeadLetterReport, *, retry: bool, export: Path | None) -> None:
    from ingestor.exchange.clock import ns_to_rfc3339

    if not report.letters:
        click.echo(f"no dead letters in {report.raw_dir}" + (f"; {export} is empty" if export else ""))
        return
    click.echo(f"{report.letters:,} dead letters in {report.raw_dir}")
    columns = ("reason", "letters", "bytes", "first", "last", "connections")
    rows = []
    for name, seen in report.reasons.items():
        row = (name, f"{seen.letters:,}", f"{seen.bytes:,}", _to_the_second(seen.first_ns))
        row += (_to_the_second(seen.last_ns), f"{len(seen.connections):,}")
        rows.append((*row, f"{seen.readable_now:,}") if retry else row)
    _print_table((*columns, "readable now") if retry else columns, rows)
    for letter in report.shown:
        number = "no number" if letter.sequence_num is None else f"sequence {letter.sequence_num}"
        click.echo(f"{ns_to_rfc3339(letter.at_ns)} {letter.connection_id or 'unknown connection'} {number}")
        click.echo(
            f"  {letter.reason}\n  {letter.whole_bytes:,} bytes: {letter.beginning(_SHOWN_CHARACTERS)}"
        )
    if report.shown and len(report.shown) < report.letters:
        click.echo(f"… the first {len(report.shown)} of {report.letters:,}; --limit shows more")
    if retry:
        click.echo(f"{report.readable_now:,} of {report.letters:,} could be read now")
    if export is not None:
        click.echo(f"written to {export}")


def _to_the_second(time_ns: int) -> str:
    from ingestor.exchange.clock import ns_to_rfc3339

    return f"{ns_to_rfc3339(time_ns)[:19]}Z"


def _print_config(loaded: LoadedSettings) -> None:
    click.echo(f"configuration of {loaded.config_file or 'no file: defaults and environment'}")
    _print_table(("key", "value", "source"), list(loaded.rows()))


def _print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    # Into a file or a pipe nothing should be folded at the 80 columns of no terminal.
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)


def _print_json(value: Any) -> None:
    # A pipe must see the first line at once.
    print(json.dumps(value), flush=True)

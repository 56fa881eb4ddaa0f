"""``cryptovol check-stream``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ingestor.settings.load import load_settings
from ingestor.verbs.bootstrap import bootstrap_option, outside_kafka
from ingestor.verbs.output import open_console, print_json

if TYPE_CHECKING:
    from ingestor.check_stream.statistics import StreamReport
    from ingestor.kafka.broker import Broker

#: Interval of lines where the output is not a terminal.
_LINE_EVERY_S = 5.0


@click.command("check-stream")
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds to observe.",
)
@bootstrap_option
@click.option("--from-beginning", is_flag=True, help="Also read the existing records of the topics.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object at the end.")
def check_stream(duration: float, bootstrap: str | None, from_beginning: bool, as_json: bool) -> None:
    """Watch the stream for a while: rates, latencies, order, validity, and progress of the archive.

    On a terminal the table is updated and stays at the end (Ctrl-C ends early). Otherwise a line goes to
    stderr every few seconds, and the table to stdout at the end.

    \b
    exchange→read: from the exchange's timestamp to reading the socket; negative where
                   its clock is ahead of this machine's by more than the transport takes
    read→here:     from reading the socket, through Kafka, to this command

    Exit code 1 when nothing arrives or a message is invalid. Nothing is committed: other consumers are not
    affected.

    \b
    The configured broker:          cryptovol check-stream --duration 60
    The embedded one of `ingest`:   cryptovol check-stream --bootstrap 127.0.0.1:39511
    The existing records:           cryptovol check-stream --from-beginning --duration 10
    For another program:            cryptovol check-stream --duration 10 --json
    """
    from ingestor.kafka.broker import BrokerError, connect

    settings = load_settings().settings
    kafka = outside_kafka(settings.kafka, bootstrap)
    with connect(kafka) as broker:
        report = _observe(broker, duration, from_beginning=from_beginning, as_json=as_json)
    if report.problem is not None:
        raise BrokerError(report.problem)


def _observe(broker: Broker, duration_s: float, *, from_beginning: bool, as_json: bool) -> StreamReport:
    """Watch the stream, and show the statistics in the form that the output supports."""
    from rich.live import Live

    from ingestor.check_stream.reading import check_stream as look
    from ingestor.check_stream.table import progress_line, render

    if as_json:
        report = look(broker, duration_s, from_beginning=from_beginning)
        print_json(report.as_dict())
        return report
    console = open_console()
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
    # The full table replaces the last picture, which a small terminal cuts.
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

"""``cryptovol audit``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ingestor.settings.load import load_settings
from ingestor.verbs.output import print_json, print_table

if TYPE_CHECKING:
    from ingestor.audit.findings import Audit, Loss, SealState


@click.command()
@click.option("--from", "from_key", metavar="HOUR", help="First hour, UTC (default: the first stored).")
@click.option("--to", "to_key", metavar="HOUR", help="Last hour, inclusive (default: the last stored).")
@click.option("--json", "as_json", is_flag=True, help="Print the audit as one JSON object.")
def audit(from_key: str | None, to_key: str | None, as_json: bool) -> None:
    """Account for every sequence number and offset in raw storage.

    Each sequence number of the exchange is stored, a control frame (acknowledgement, heartbeat, empty frame),
    a dead letter, or in the gap ledger. Every checkpoint of the feed is compared with raw storage. Numbers
    after the last checkpoint of a connection that may still run are unconfirmed, which is not a fault. Sealed
    hours must have the same rows as when they closed. Archived scores, where there are any, must have every
    offset, and their own closed hours the same rows.

    Exit code 1 when a number or an offset is unaccounted for; the last line names it.

    \b
    All hours:            cryptovol audit
    Some hours:           cryptovol audit --from 2026-04-04-03:00 --to 2026-04-04-05:00
    For another program:  cryptovol audit --json
    """
    from ingestor.audit.errors import UnaccountedError
    from ingestor.audit.hours import audit as account_for
    from ingestor.audit.span import stored_span

    reader, start_ns, end_ns, still_storing = stored_span(
        load_settings().settings.storage.raw_dir, from_key, to_key
    )
    result = account_for(reader, start_ns, end_ns, still_storing=still_storing, with_scores=True)
    if as_json:
        print_json(result.as_dict())
    else:
        _print_audit(result)
    if result.findings:
        raise UnaccountedError(result.verdict)
    if not as_json:
        click.echo(result.verdict)


def _print_audit(result: Audit) -> None:
    from ingestor.audit.findings import COUNTS
    from ingestor.times import hour_key

    titles = [name.replace("_", " ") for name in COUNTS]
    rows = [
        (hour_key(line.hour_ns), line.connection_id, *(f"{getattr(line, name):,}" for name in COUNTS))
        for line in result.lines
    ]
    totals = ("all hours", "", *(f"{result.total(name):,}" for name in COUNTS))
    click.echo("sequence numbers, by hour of event time and connection")
    print_table(("hour", "connection", *titles), [*rows, totals], words=("hour", "connection"))
    click.echo(f"gap ledger: {len(result.losses) or 'no known losses'}")
    if result.losses:
        columns = ("kind", "connection", "sequence", "lost", "after", "before", "detail")
        print_table(columns, [_loss_row(loss) for loss in result.losses])
    click.echo("Kafka offsets, by topic, log and partition")
    names = ("topic", "log_id", "partition", "first_offset", "last_offset", "files", "lost", "missing")
    print_table(
        [name.replace("_", " ") for name in names],
        [tuple(str(getattr(one, name)) for name in names) for one in result.offsets],
        words=("topic", "log id"),
    )
    _print_seals("closed hours", [one for one in result.seals if one.collection == "feed"])
    if of_scores := [one for one in result.seals if one.collection == "scores"]:
        _print_seals("closed hours of scores", of_scores)
    for finding in result.findings:
        click.echo(f"unaccounted for: {finding.text}")


def _print_seals(title: str, seals: list[SealState]) -> None:
    states = [one.state for one in seals]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    click.echo(f"{title}: {counted or 'none'}")
    for one in seals:
        if one.late_rows:
            again = f"; closed again, revision {one.revision}" if one.revision else ""
            click.echo(f"{one.hour}: {one.late_rows:,} rows came after it closed{again}")


def _loss_row(loss: Loss) -> tuple[str, ...]:
    from ingestor.exchange.clock import ns_to_rfc3339

    numbers = "" if loss.from_sequence is None else f"{loss.from_sequence} to {loss.to_sequence}"
    detail = ", ".join(f"{name} {value}" for name, value in loss.detail.items())
    lost = "unknown" if loss.count is None else f"{loss.count:,}"
    times = (ns_to_rfc3339(loss.start_ns)[:23], ns_to_rfc3339(loss.end_ns)[:23])
    return (loss.kind, loss.connection_id, numbers, lost, *times, detail)

"""``cryptovol dead-letters``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestor.settings.load import load_settings
from ingestor.times import NS
from ingestor.verbs.output import print_json, print_table

if TYPE_CHECKING:
    from ingestor.dead_letters.report import DeadLetterReport

_SHOWN_CHARACTERS = 200
_EVER_NS = 2**63 - 1


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
            return int(moment.timestamp()) * NS
        known = "2026-04-04, 2026-04-04-03:00 or 2026-04-04T03:15:00Z"
        raise click.BadParameter(f"{value!r} is not a UTC time such as {known}", ctx, param)


@click.command("dead-letters")
@click.option(
    "--from", "from_ns", type=_Moment(), default="1970-01-01", help="Received at this time or later, UTC."
)
@click.option("--to", "to_ns", type=_Moment(), help="Received before this time, UTC.")
@click.option("--reason", metavar="TEXT", help="Only letters whose reason contains TEXT, ignoring case.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Letters shown by --show."
)
@click.option(
    "--show", is_flag=True, help="Also each letter: time, connection, sequence, reason, first bytes."
)
@click.option(
    "--retry", is_flag=True, help="Read each letter again with the present parser; count the readable ones."
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
    """List messages that the recorder could not read: a row for each class of reason, and the bytes.

    Reads raw storage, so a running `cryptovol ingest` is seen up to the last minute. Times are those of
    receiving. No letters is a good result, exit code 0. docs/reference/protocol.md lists
    the reasons.

    \b
    All letters, by reason:        cryptovol dead-letters
    One day, with the bytes:       cryptovol dead-letters --from 2026-04-04 --to 2026-04-05 --show
    After a fix of the parser:     cryptovol dead-letters --retry
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
        future_limit_ns=int(settings.ingest.future_limit_s * NS),
    )
    if as_json:
        print_json(report.as_dict(show=show))
    else:
        _print_letters(report, retry=retry, export=export)


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
    print_table((*columns, "readable now") if retry else columns, rows, words=("reason", "first", "last"))
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

"""`cryptovol convert-raw`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ingestor.settings.load import load_settings
from ingestor.settings.sections import RawFormat

if TYPE_CHECKING:
    from ingestor.archive.convert import Conversion

_PROGRESS_EVERY_S = 2.0


class _Hour(click.ParamType):
    name = "hour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from ingestor.times import hour_from_key

        if isinstance(value, int):
            return value
        try:
            return hour_from_key(value)
        except ValueError:
            self.fail(f"{value!r} is not an hour such as 2026-04-04-03:00", param, ctx)


@click.command("convert-raw")
@click.option(
    "--to", "to", type=click.Choice(get_args(RawFormat)), required=True, help="Format to convert to."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder to write: new, empty, or of an interrupted conversion.",
)
@click.option("--from", "first_hour_ns", type=_Hour(), metavar="HOUR", help="First hour, UTC (default: all).")
@click.option("--until", "last_hour_ns", type=_Hour(), metavar="HOUR", help="Last hour, inclusive.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def convert_raw(
    to: RawFormat, out: Path, first_hour_ns: int | None, last_hour_ns: int | None, as_json: bool
) -> None:
    """Convert raw storage to the other format, into another folder.

    Each file is read back and compared; the source is only read. The result is raw storage itself: it may be
    the `raw` of a data folder. Run it again to continue after an interruption, or to add newer files.

    \b
    All, for other tools:  cryptovol convert-raw --to ndjson --out export/raw
    One hour:              cryptovol convert-raw --to ndjson --out one/raw \\
                             --from 2026-04-04-03:00 --until 2026-04-04-03:00
    And back again:        CRYPTOVOL__STORAGE__DATA_DIR=export \\
                             cryptovol convert-raw --to parquet --out back/raw
    """
    from ingestor.archive.convert import convert_raw as convert

    source = load_settings().settings.storage.raw_dir
    done = convert(
        source,
        out,
        to,
        first_hour_ns=first_hour_ns,
        last_hour_ns=last_hour_ns,
        on_progress=_progress(),
    )
    if as_json:
        click.echo(json.dumps(done.as_dict()))
        return
    rows = ", ".join(f"{count:,} {topic}" for topic, count in done.rows.items())
    click.echo(f"{source} → {done.out} ({to}), every file read back and compared")
    click.echo(f"files: {done.done:,}, of them {done.kept:,} converted before; rows: {rows}")
    click.echo(f"closed hours: {done.closed_hours:,}; records of lost offsets: {done.gaps:,}")
    click.echo(f"bytes: {done.bytes_before:,} → {done.bytes_after:,}; {done.seconds:.1f} s")


def _progress() -> Callable[[Conversion], None]:
    reported_s = time.monotonic()

    def report(so_far: Conversion) -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= _PROGRESS_EVERY_S:
            reported_s = time.monotonic()
            click.echo(
                f"{so_far.done:,} of {so_far.files:,} files, {so_far.bytes_before:,} bytes read", err=True
            )

    return report

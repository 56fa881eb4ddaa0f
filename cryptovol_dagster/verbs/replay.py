"""`cryptovol replay`: a recording's features, without Dagster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import load_settings
from ingestor.verbs.output import print_json

if TYPE_CHECKING:
    from cryptovol_dagster.replay import ReplayResult


@click.command()
@click.option(
    "--data-file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A recording; may be repeated (default: the newest closed hour in raw storage).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the rows to this file: .parquet, which `cryptovol infer --features` reads, or .csv for other "
    "programs.",
)
@click.option("--products", help="Comma-separated product ids (default: all of the recording).")
@json_option
def replay(files: tuple[Path, ...], out: Path | None, products: str | None, as_json: bool) -> None:
    """Compute features from a recording, exactly as the hourly assets do, without Dagster.

    Reads verbatim frames, {received_at, frame} lines, flattened ticker lines, session logs and our own raw
    files, plain or gzipped. Frames have trades, and raw files have trades.raw beside them. Flattened ticker
    lines have none: their features of trades are null.

    \b
    Examples:
      cryptovol replay                                      the newest closed hour
      cryptovol replay --out features.parquet               its rows, for `cryptovol infer --features`
      cryptovol replay --data-file recording.ndjson --products BTC-USD --json
    """
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.specs import SECONDS
    from cryptovol_dagster.core.times import hour_window
    from cryptovol_dagster.replay import newest_closed_hour, product_ids
    from cryptovol_dagster.replay import replay as compute

    settings = load_settings().settings
    spec = spec_of(settings, SECONDS)
    hour, recordings = None, list(files)
    if not files:
        hour, recordings = newest_closed_hour(settings.storage.raw_dir, spec)
    result = compute(
        recordings,
        spec=spec,
        products=None if products is None else product_ids(products),
        out=out,
        span_ns=None if hour is None else hour_window(hour),
    )
    if as_json:
        print_json({"hour": hour, **asdict(result)})
        return
    if hour is not None:
        click.echo(
            f"hour     {hour}, the newest closed one in {settings.storage.raw_dir}; earlier rows "
            "fill its windows"
        )
    click.echo(_text(result))


def _text(result: ReplayResult) -> str:
    left_out = f"{result.duplicates:,} duplicates, {result.late:,} late, {result.rejected:,} rejected"
    reasons = ", ".join(f"{name} {rows:,}" for name, rows in result.reasons.items() if name != "ok")
    lines = [
        f"read     {result.lines:,} lines, {result.unreadable:,} unreadable ({', '.join(result.formats)})",
        f"ticks    {result.ticks:,}: {result.kept:,} kept, {left_out}",
        f"trades   {result.trades:,}" + ("" if result.trades else ": the features of trades are null"),
        f"span     {result.start} … {result.end}, {', '.join(result.products)}",
        f"rows     {result.rows:,}, {result.valid_rows:,} fit for scoring"
        + (f" ({reasons})" if reasons else ""),
        f"features {result.feature_hash}, {result.seconds:.2f} s",
    ]
    return "\n".join(lines if result.out is None else [*lines, f"written  {result.out}"])

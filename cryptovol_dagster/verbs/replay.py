"""`cryptovol replay`: a recording's features, without Dagster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import load_settings

if TYPE_CHECKING:
    from cryptovol_dagster.replay import ReplayResult


@click.command()
@click.option(
    "--data-file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A recording; may be given several times (default: the newest hour in raw storage).",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows to this .parquet or .csv file.")
@click.option("--products", help="Comma-separated product ids (default: all that the recording holds).")
@json_option
def replay(files: tuple[Path, ...], out: Path | None, products: str | None, as_json: bool) -> None:
    """Compute features from a recording, exactly as the hourly assets do, without Dagster.

    Reads verbatim frames, {received_at, frame} lines, flattened ticker lines, session logs and our own raw
    files, plain or gzipped.
    """
    from cryptovol_dagster.chains import timescale_spec
    from cryptovol_dagster.core.specs import SECONDS
    from cryptovol_dagster.replay import newest_raw_files, product_ids
    from cryptovol_dagster.replay import replay as compute

    settings = load_settings().settings
    result = compute(
        files or newest_raw_files(settings.storage.raw_dir),
        spec=timescale_spec(settings.timescales.seconds, SECONDS),
        products=None if products is None else product_ids(products),
        out=out,
    )
    click.echo(result.to_json() if as_json else _text(result))


def _text(result: ReplayResult) -> str:
    left_out = f"{result.duplicates:,} duplicates, {result.late:,} late, {result.rejected:,} rejected"
    reasons = ", ".join(f"{name} {rows:,}" for name, rows in result.reasons.items() if name != "ok")
    lines = [
        f"read     {result.lines:,} lines, {result.unreadable:,} unreadable ({', '.join(result.formats)})",
        f"ticks    {result.ticks:,}: {result.kept:,} kept, {left_out}",
        f"span     {result.start} … {result.end}, {', '.join(result.products)}",
        f"rows     {result.rows:,}, {result.valid_rows:,} fit for scoring"
        + (f" ({reasons})" if reasons else ""),
        f"features {result.feature_hash}, {result.seconds:.2f} s",
    ]
    return "\n".join(lines if result.out is None else [*lines, f"written  {result.out}"])

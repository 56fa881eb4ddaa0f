"""`cryptovol featurize`: features of every second, live."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.verbs.options import json_option
from cryptovol_dagster.verbs.stopping import stopping_at_signals
from ingestor.settings import load_settings
from ingestor.verbs.bootstrap import bootstrap_option, outside_kafka
from ingestor.verbs.output import log_to_stderr

if TYPE_CHECKING:
    from cryptovol_dagster.core.features.live_rows import LiveRows
    from cryptovol_dagster.live.progress import LiveProgress, LiveStarted, LiveSummary

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
    help="Stop after S seconds without a tick, once the last seconds are published.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the rows as Parquet (default: data/processed/features.parquet).",
)
@json_option
def featurize(
    bootstrap: str | None, duration: float | None, until_idle: float | None, out: Path | None, as_json: bool
) -> None:
    """Compute features live: ticks.raw → ticks.features and data/processed/features.parquet.

    The row of a second is published about two seconds after its end (live.lateness_s). If a tick or the
    report of a loss comes later, the row is published again as its next revision. The last revision equals
    the row that `cryptovol replay` computes. After any stop, also a kill, it resumes where it stopped.
    Several instances share the partitions.

    Ctrl-C (or SIGTERM) stops cleanly: every published row is acknowledged and written, exit code 0.

    \b
    The configured broker:           cryptovol featurize
    The embedded one of `ingest`:    cryptovol featurize --bootstrap 127.0.0.1:39511
    A recording, to its end:         cryptovol featurize --until-idle 5 --json
    Read the rows:                   duckdb -c "from 'data/processed/features.parquet/*.parquet'"
    """
    settings = load_settings().settings
    kafka = outside_kafka(settings.kafka, bootstrap)
    log_to_stderr()
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.specs import SECONDS
    from cryptovol_dagster.live.clients import GROUP
    from cryptovol_dagster.live.featurizer import Featurizer
    from ingestor.archive.member_name import FEATURIZERS, Slot
    from ingestor.kafka.broker import connect

    # `cryptovol status` recognizes a running one by its slot.
    slot = Slot(settings.storage.features_path.parent, GROUP, FEATURIZERS)
    with connect(kafka) as broker, stopping_at_signals() as stop, slot:
        featurizer = Featurizer(
            broker,
            spec_of(settings, SECONDS),
            settings.live,
            raw_dir=settings.storage.raw_dir,
            out=out or settings.storage.features_path,
            on_rows=None if as_json else _first_row_printer(),
            on_progress=_log_progress,
        )
        summary = featurizer.run(
            stop, duration_s=duration, until_idle_s=until_idle, on_started=_start_printer(as_json)
        )
    click.echo(json.dumps(summary.as_dict()) if as_json else _text(summary))


def _start_printer(as_json: bool) -> Callable[[LiveStarted], None]:
    def show(started: LiveStarted) -> None:
        if as_json:
            print(json.dumps(started.as_dict()), flush=True)
            return
        click.echo(f"Kafka at {started.bootstrap_servers}: ticks → {started.topic}")
        click.echo(f"rows {started.out}, features {started.feature_version}")

    return show


def _first_row_printer() -> Callable[[LiveRows], None]:
    """Return a function that prints the first row of each product."""
    shown: set[str] = set()

    def show(rows: LiveRows) -> None:
        from cryptovol_dagster.core.features.grid import Reason
        from ingestor.exchange.clock import ns_to_rfc3339

        for k, code in enumerate(rows.product.tolist()):
            product = rows.products[code]
            if product in shown:
                continue
            shown.add(product)
            known = int((rows.values[k] == rows.values[k]).sum())
            reason = Reason(int(rows.reason[k])).name.lower()
            end = ns_to_rfc3339(int(rows.bar_end_ns[k]))
            click.echo(f"first row of {product}: {end}, {known} of {len(rows.names)} features, {reason}")

    return show


def _log_progress(progress: LiveProgress) -> None:
    LOG.info(
        "%d rows, %d revised (%.2f %%), %d provisional; %s behind the feed; %s",
        progress.rows,
        progress.revisions,
        100 * progress.revised_share,
        progress.provisional,
        "none yet" if progress.behind_s is None else f"{progress.behind_s:.1f} s",
        ", ".join(progress.products) or "no product yet",
    )


def _text(summary: LiveSummary) -> str:
    progress = summary.progress
    recovered = ", ".join(
        f"partition {number}: {found['raw_ticks']:,} stored ticks, then offset {found['kafka_offset']}"
        for number, found in sorted(progress.recovered.items())
    )
    return "\n".join(
        [
            f"ended    {summary.ended} after {summary.seconds:.1f} s",
            f"ticks    {progress.ticks:,} from Kafka: {progress.duplicates:,} duplicates, "
            f"{progress.late:,} late, {progress.rejected:,} rejected, {progress.unreadable:,} unreadable, "
            f"{progress.beyond_reach:,} too late to revise a row",
            f"rows     {progress.rows:,}, {progress.revisions:,} revised ({progress.revised_share:.2%}), "
            f"{progress.provisional:,} provisional, {progress.known:,} published by an earlier run",
            f"from     {recovered or 'nothing assigned'}",
            f"written  {summary.out}",
        ]
    )

"""`cryptovol demo`: hours of a synthetic market through the real path, and what came of it.

Nothing here is a shortcut: the simulator and the recorder are the processes a user would start, joined by a
socket and a broker; the assets are materialized as the Dagster UI would. Data of the demo stay in a folder of
their own, so that a synthetic market never mixes with a recorded one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cryptovol_dagster.core.cards.markdown import NONE, number
from cryptovol_dagster.verbs.synthetic import DEMO_DIR, TAIL_HOURS, create_market
from ingestor.errors import CryptovolError
from ingestor.settings import Settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.verbs.runs import RunSummary

#: At seconds of the market: three frames lost, one twice, a connection cut, another closed by the server.
FAULTS = "gap@5000s:3; repeat@7000s; disconnect@9000s:1006; disconnect@12000s:1001"


class DemoError(CryptovolError):
    """A step of the demo failed; the message is one line."""


@click.command()
@click.option("--hours", default=18, show_default=True, type=click.IntRange(4, 72), help="Hours of market.")
@click.option("--seed", default=7, show_default=True, help="Seed of the synthetic market.")
def demo(hours: int, seed: int) -> None:
    """Run the whole system on hours of a synthetic market; no network, no Kafka, no exchange needed.

    Simulator → real WebSocket → broker → raw storage → every Dagster asset and check → models in MLflow →
    evaluation, model card and Evidently report. The market has calm and wild spells; the feed loses three
    frames, repeats one and is cut twice. Everything lies in data/demo, which is replaced at each run.
    """
    began = time.monotonic()
    start = datetime(2025, 12, 1, tzinfo=UTC)
    settings = create_market(DEMO_DIR, start, by="cryptovol demo")

    _headline(
        1, f"{hours} h of {', '.join(settings.coinbase.products)}: simulator → socket → broker → raw storage"
    )
    recorded = _record(settings, start, hours, seed)
    _print_recorded(recorded, time.monotonic() - began)
    _headline(2, "every asset and check: gap ledger → ticks → bars → features, labels → splits → … → reports")
    for run in _materialize(settings):
        _print_run(run)
    _headline(3, "results")
    _print_results(settings)
    _headline(4, "where to look")
    _print_places(settings)
    click.echo(f"\nThe demo took {time.monotonic() - began:.0f} s.")


def _headline(step: int, text: str) -> None:
    click.secho(f"\n[{step}/4] {text}", bold=True)


def _record(settings: Settings, start: datetime, hours: int, seed: int) -> dict[str, Any]:
    """Play the market to the recorder, each in a process of its own; returns the recorder's summary."""
    market = ["simulate", "--json", "--once", "--speed", "max", "--hours", str(hours + TAIL_HOURS)]
    market += [
        "--start",
        f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "--seed",
        str(seed),
        "--faults",
        FAULTS,
        "--products",
        ",".join(settings.coinbase.products),
    ]
    with _running(market) as simulator:
        url = _first_event(simulator, "simulate")["url"]
        with _running(["ingest", "--json", "--until-closed", "--url", url]) as recorder:
            output, _ = recorder.communicate()
            if recorder.returncode != 0:
                raise DemoError(
                    f"cryptovol ingest ended with exit code {recorder.returncode}; its words are above"
                )
    return json.loads(output.splitlines()[-1])


@contextmanager
def _running(verb: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A verb of ours as a child process, its stdout read here; it never outlives the block."""
    command = [sys.executable, "-m", "cryptovol_dagster.cli", *verb]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def _first_event(child: subprocess.Popen[str], verb: str) -> dict[str, Any]:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        code = child.wait()
        raise DemoError(f"cryptovol {verb} ended before it began, with exit code {code}; its words are above")
    return json.loads(line)


def _materialize(settings: Settings) -> Iterator[RunSummary]:
    """Materialize the closed hours in one run, every asset and check, then the minutes of their days.

    Of the minutes up to labels: hours of trades train nothing that learns from months.
    """
    from cryptovol_dagster.core.specs import MINUTES
    from cryptovol_dagster.core.times import DAY_NS, partition_at, partition_window
    from cryptovol_dagster.defs.build import build_defs
    from cryptovol_dagster.lake.raw_ticks import RawStore
    from cryptovol_dagster.verbs import runs

    closed = [hour.hour for hour in RawStore(settings.storage.raw_dir).closed_hours()]
    if not closed:
        raise DemoError(
            f"{settings.storage.raw_dir} holds no closed hour: the recording did not get that far"
        )
    defs = build_defs(settings)
    first, last = closed[0], closed[-1]
    hourly = runs.assets_over(defs, first)
    yield runs.materialize_range(settings, first, last, hourly, defs=defs, on_asset=_print_asset)
    if not settings.timescales.minutes.enabled:
        return
    daily = runs.chain_selection(settings, MINUTES, market_only=True)
    first_day, last_day = (partition_at(partition_window(hour)[0], DAY_NS) for hour in (first, last))
    yield runs.materialize_range(settings, first_day, last_day, daily, defs=defs, on_asset=_print_asset)


def _print_asset(asset: str, took_s: float) -> None:
    click.echo(f"  {asset:<32}{took_s:6.1f} s")


def _print_recorded(summary: dict[str, Any], took_s: float) -> None:
    feed = summary["feed"]
    click.echo(
        f"{feed['frames']:,} frames → {feed['ticks']:,} ticks and {feed['trades']:,} trades stored in "
        f"{took_s:.0f} s; recorded as such: {feed['gaps']} gap of {feed['missing']} frames, "
        f"{feed['repeats']} repeated frame, {feed['reconnects']} reconnects, "
        f"{feed['dead_letters']} dead letters"
    )


def _print_run(run: RunSummary) -> None:
    keys = run.partitions
    partitions = sum(run.materialized.values())
    span = f"{keys[0]} … {keys[-1]}" if len(keys) > 1 else "".join(keys)
    click.echo(f"{len(run.materialized)} assets × {len(keys)} ({span} UTC): {partitions} partitions")
    if run.carried:
        click.echo(f"{len(run.carried)} hours carry the models of an earlier one")
    click.echo(f"{run.checks_passed} of {len(run.checks)} checks passed")
    for check in run.checks_failed:
        click.secho(f"  {check.severity} {check.asset} {check.name}:", fg="yellow")
        for line in check.description.splitlines():
            click.echo(f"    {line}")


def _print_results(settings: Settings) -> None:
    from cryptovol_dagster.core.evaluation.evaluate import summary_rows
    from cryptovol_dagster.core.evaluation.report import read_report

    report = read_report((settings.storage.reports_dir / "model_eval.json").read_bytes())
    test = report.counts.test
    split = report.split.test
    click.echo(
        f"Synthetic market, test rows of {split.start} … {split.end}: {test.rows:,} rows, "
        f"{test.positives:,} spikes (base rate {test.base_rate:.3f}), {test.events} events"
    )
    columns = ("model", "PR-AUC", "95 % interval", "lift", "onset PR-AUC", "Brier", "F1", "event recall")
    print_table(columns, map(_cells, summary_rows(report)), words=("model",))
    click.secho(f"verdict: {report.verdict}", bold=True)
    for reason in report.reasons:
        click.echo(f"  {reason}")
    click.echo(
        "A synthetic market is easier than a real one: these numbers show that the chain works, no more."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    interval = NONE if row["ap_low"] is None else f"{number(row['ap_low'])} – {number(row['ap_high'])}"
    numbers = ("lift", "onset_average_precision", "brier", "f1", "event_recall")
    return [row["model"], number(row["average_precision"]), interval, *(number(row[n]) for n in numbers)]


def _print_places(settings: Settings) -> None:
    storage = settings.storage
    places = (
        ("evaluation", storage.reports_dir / "model_eval.json"),
        ("champion", storage.reports_dir / "decision.json"),
        ("model card", storage.reports_dir / "model_card_v1.md"),
        ("all reports", storage.reports_dir / "index.html"),
        ("Evidently report", storage.reports_dir / "evidently" / "evidently_report.html"),
        ("pictures", storage.reports_dir / "plots"),
        ("models", storage.artifacts_dir),
        ("raw storage", storage.raw_dir),
    )
    for what, path in places:
        click.echo(f"  {what:<18}{os.path.relpath(path)}")
    urls = f"{settings.dagster.ui_url}, {settings.mlflow.ui_url}"
    # Whoever has installed the package alone has no Makefile.
    by_make = "MAKELEVEL" in os.environ
    opens = "make demo-ui" if by_make else f"cryptovol --config {DEMO_DIR}/config.yaml ui"
    click.echo(f"  {'Dagster, MLflow':<18}{opens}  ({urls})")

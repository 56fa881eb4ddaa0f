"""`cryptovol demo`: hours of a synthetic market through the real path, and the results.

Nothing here is a shortcut: the simulator and the recorder are the processes a user would start, joined by a
socket and a broker; the assets are materialized as the Dagster UI would. Past hours are a backfill; the last
one is worked off like any hour that has just closed, so that the usual rules decide on champion, registry and
aliases. Data of the demo stay in a folder of their own: a synthetic market never mixes with a recorded one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptovol_dagster.core.cards.markdown import NONE, number
from cryptovol_dagster.verbs.synthetic import DEMO_DIR, TAIL_HOURS, creating_market
from ingestor.errors import CryptovolError
from ingestor.settings import Settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    import dagster as dg

    from cryptovol_dagster.verbs.runs import RunSummary

#: At seconds of the market: three frames lost, one twice, a connection cut, another closed by the server.
FAULTS = "gap@5000s:3; repeat@7000s; disconnect@9000s:1006; disconnect@12000s:1001"
#: The market ends at least so long ago: its last rows are in the past, and it does not count as running.
SETTLED = timedelta(minutes=10)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


class DemoError(CryptovolError):
    """A step of the demo failed; the message is one line."""


_HELP = """\
Run the whole system on hours of a synthetic market; no network, no Kafka, no exchange needed.

The market has calm and volatile periods. Its feed loses three frames, repeats one, and is
cut twice. With 18 hours the demo takes three to four minutes on two idle cores:

\b
  1  simulator → WebSocket → broker → raw storage                    a minute
  2  all hours but the last: every asset and check, five models,     half a minute
     tracked in MLflow
  3  the last hour, as when it has just closed: market,              half a minute
     retrain, champion, registry
  4  results: evaluation, champion, its scores of the last hour
  5  reports by Evidently, and the page that lists them              a minute

All files are in data/demo, which each run replaces: raw/, lake/, reports/, models/, the
stores of Dagster and MLflow, and config.yaml, with which any other command uses this market.

With the same --end, --hours and --seed, the market, ticks, bars, features, labels,
predictions, evaluation and pictures are the same each time. Only run and connection ids
differ, and the times of receiving, writing and measuring.

\b
Examples:
  cryptovol demo
  cryptovol demo --end 2025-12-01T18:00Z           the same numbers on any day
  cryptovol --config data/demo/config.yaml ui      Dagster and MLflow on it
  cryptovol --config data/demo/config.yaml infer   the champion's scores
"""


def newest_end() -> datetime:
    """Return the last full hour (UTC) at which a market can end now."""
    return (datetime.now(UTC) - SETTLED).replace(minute=0, second=0, microsecond=0)


def _end(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime:
    """Read where the market ends.

    Raises:
        BadParameter: it is not a full hour of the past.
    """
    newest = newest_end()
    if value is None:
        return newest
    try:
        end = datetime.strptime(value, "%Y-%m-%dT%H:00Z").replace(tzinfo=UTC)
    except ValueError:
        end = None
    if end is None or not _EARLIEST <= end <= newest:
        raise click.BadParameter(
            f"{value!r}: expected a full hour in UTC such as 2025-12-01T18:00Z, no earlier than "
            f"{_EARLIEST.year}; the newest is {newest:%Y-%m-%dT%H:%MZ}"
        )
    return end


@click.command(help=_HELP)
@click.option("--hours", default=18, show_default=True, type=click.IntRange(4, 72), help="Hours of market.")
@click.option(
    "--end",
    metavar="TIME",
    callback=_end,
    help="Where the market ends: a full hour in UTC, e.g. 2025-12-01T18:00Z (default: the last full hour).",
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(min=0), help="Seed of the market.")
def demo(hours: int, end: datetime, seed: int) -> None:
    """Play, record, learn, and print the results."""
    began = time.monotonic()
    start = end - timedelta(hours=hours)
    with creating_market(DEMO_DIR, start, end, by="cryptovol demo") as settings:
        what = f"{hours} h of {', '.join(settings.coinbase.products)} up to {end:%Y-%m-%d %H:%M} UTC"
        _headline(1, f"{what}: simulator → socket → broker → raw storage", "about a minute")
        recorded = record(settings, start, hours, seed)
        _print_recorded(recorded, time.monotonic() - began)
        pipeline = Pipeline.of(settings)
        _headline(2, "all hours but the last, in one run: ticks → bars → … → evaluation", "half a minute")
        _print_run(pipeline.past())
        _headline(
            3, "the last hour, as when it has just closed: market → retrain → registry", "half a minute"
        )
        newest = _last_hour(pipeline)
        if settings.timescales.minutes.enabled:
            _print_run(pipeline.minutes())
        _headline(4, "results")
        if (settings.storage.reports_dir / "model_eval.json").exists():
            _print_results(settings)
            print_champion(settings, newest)
        else:
            click.echo("none: no hour was evaluated")
        _headline(5, "reports by Evidently: data quality, training against test, drift", "about a minute")
        _print_run(pipeline.reports())
        _print_places(settings)
    click.echo(f"\nThe demo took {time.monotonic() - began:.0f} s.")
    if newest is None:
        raise DemoError("the last hour trained no model (step 3 shows why): try more --hours, another --seed")


def _last_hour(pipeline: Pipeline) -> RunSummary | None:
    """Materialize the last hour; return None where nothing can be trained on it.

    Raises:
        RunFailed: it failed for another reason.
    """
    from cryptovol_dagster.verbs.runs import RunFailed

    try:
        newest = pipeline.newest()
    except RunFailed as error:
        if pipeline.last_is_trainable():
            raise
        click.secho(f"  {error}", fg="yellow")
        return None
    _print_run(newest)
    return newest


def _headline(step: int, text: str, takes: str = "") -> None:
    click.secho(f"\n[{step}/5] {text}{takes and f' ({takes})'}", bold=True)


def record(settings: Settings, start: datetime, hours: int, seed: int) -> dict[str, Any]:
    """Play a market to the recorder, each in its own process, which reads the effective configuration.

    Args:
        settings: of the market.
        start: its first moment, UTC.
        hours: its length; a little more is played, so that the last hour closes.
        seed: of everything random in it.

    Returns:
        The recorder's summary.

    Raises:
        DemoError: simulator or recorder failed.
    """
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
    """Run a `cryptovol` verb as a child process, its stdout read here; it ends with the block."""
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
        raise DemoError(f"cryptovol {verb} ended at its start, with exit code {code}; its messages are above")
    return json.loads(line)


@dataclass(frozen=True)
class Pipeline:
    """Computations on a recorded market, run by run, in order.

    Attributes:
        settings: of the market.
        hours: its closed hours, oldest first.
    """

    settings: Settings
    hours: list[str]

    @classmethod
    def of(cls, settings: Settings) -> Pipeline:
        """Return the pipeline of a recording.

        Raises:
            DemoError: raw storage has closed too few hours.
        """
        from cryptovol_dagster.lake.raw_ticks import RawStore

        raw_dir = settings.storage.raw_dir
        hours = [hour.hour for hour in RawStore(raw_dir).closed_hours()]
        if len(hours) < 2:
            raise DemoError(f"{raw_dir} has {len(hours)} closed hours: the recording ended too early")
        return cls(settings, hours)

    @cached_property
    def _defs(self) -> dg.Definitions:
        from cryptovol_dagster.defs.build import build_defs

        return build_defs(self.settings)

    def past(self) -> RunSummary:
        """Materialize all hours but the last one, ticks to performance, in one run: a backfill."""
        from cryptovol_dagster.verbs.runs import chain_selection

        return self._run(self.hours[0], self.hours[-2], chain_selection(self.settings))

    def newest(self) -> RunSummary:
        """Materialize the last hour alone, as sensor and hourly retrain do when an hour has closed."""
        from cryptovol_dagster.verbs.runs import chain_selection

        return self._run(self.hours[-1], self.hours[-1], chain_selection(self.settings))

    def last_is_trainable(self) -> bool:
        """Return whether something can be trained on the last hour, as far as was found out."""
        from cryptovol_dagster.chains import spec_of
        from cryptovol_dagster.core.specs import SECONDS
        from cryptovol_dagster.lake.files import Lake
        from cryptovol_dagster.lake.plans import read_plan

        lake, spec = Lake(self.settings.storage.lake_dir), spec_of(self.settings, SECONDS)
        is_planned = lake.exists(spec.asset("splits"), self.hours[-1], "json")
        return not is_planned or read_plan(lake, spec, self.hours[-1]).trainable

    def minutes(self) -> RunSummary:
        """Materialize the minutes of the market's days, up to labels.

        Hours of trades train nothing that learns from months.
        """
        from cryptovol_dagster.core.specs import MINUTES
        from cryptovol_dagster.core.times import DAY_NS, partition_at, partition_window
        from cryptovol_dagster.verbs.runs import chain_selection

        days = [partition_at(partition_window(hour)[0], DAY_NS) for hour in self.hours]
        return self._run(days[0], days[-1], chain_selection(self.settings, MINUTES, market_only=True))

    def reports(self) -> RunSummary:
        """Materialize the reports of the last hour; the metadata of other hours say that they have none."""
        from cryptovol_dagster.core.specs import SECONDS
        from cryptovol_dagster.monitoring.evidently import DATA_QUALITY, DRIFT, TRAIN_TEST

        kinds = [f"{SECONDS}/{kind}" for kind in (DATA_QUALITY, TRAIN_TEST, DRIFT)]
        return self._run(self.hours[0], self.hours[-1], kinds)

    def _run(self, first: str, last: str, selection: Sequence[str]) -> RunSummary:
        from cryptovol_dagster.verbs.runs import materialize_range

        return materialize_range(
            self.settings, first, last, selection, defs=self._defs, on_asset=_print_asset
        )


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
    if run.checks:
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


def print_champion(settings: Settings, run: RunSummary | None) -> None:
    """Print the champion, the registry's changes of a run (None: it failed), and the newest scores."""
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.specs import SECONDS
    from cryptovol_dagster.inference import scorer as inference
    from cryptovol_dagster.lake import decisions
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.latest import Reports
    from cryptovol_dagster.verbs.champion import standing_lines

    lake, spec, storage = Lake(settings.storage.lake_dir), spec_of(settings, SECONDS), settings.storage
    for line in standing_lines(decisions.history(lake, spec)):
        click.echo(line)
    for decided in run.metadata[decisions.decision_asset(spec)].values() if run else ():
        click.echo(f"registry: {decided['aliases']}")
    reports = Reports(storage.reports_dir, storage.artifacts_dir)
    scorer = inference.find_scorer(lake, spec, reports, name=None, path=None)
    rows = inference.read_features(lake, spec, None)
    scores = inference.score(rows, scorer)
    scored, flagged = int(scores["probability"].notna().sum()), int(scores["flag"].fillna(False).sum())
    click.echo(f"infer: {scorer.version}")
    click.echo(f"  {scored:,} of {len(scores):,} rows of {rows.source} scored, {flagged:,} flagged")


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
    click.secho("\nwhere to look", bold=True)
    for what, path in places:
        click.echo(f"  {what:<18}{os.path.relpath(path)}")
    ours = f"{command_here()} --config {os.path.relpath(storage.data_dir / 'config.yaml')}"
    # An installation of the package alone has no Makefile.
    opens = "make demo-ui" if "MAKELEVEL" in os.environ else f"{ours} ui"
    click.echo(f"  {'Dagster, MLflow':<18}{opens}  ({settings.dagster.ui_url}, {settings.mlflow.ui_url})")
    click.echo(f"  {'show the status':<18}{ours} status")
    click.echo(f"  {'score features':<18}{ours} infer")


def command_here() -> str:
    """Return how this command is typed here: make calls it by its path."""
    own = Path(sys.executable).with_name("cryptovol")
    found = shutil.which("cryptovol")
    if found is not None and own.exists() and os.path.samefile(found, own):
        return "cryptovol"
    return os.path.relpath(own) if own.exists() else f"{sys.executable} -m cryptovol_dagster.cli"

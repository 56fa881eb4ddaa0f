"""`cryptovol leak-audit`: every known leak injected into the real chain, and caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptovol_dagster.core.specs import SECONDS
from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptovol_dagster.core.leaks.audit import Verdict
    from cryptovol_dagster.core.market.bars import BarGrid
    from cryptovol_dagster.core.specs import TimescaleSpec

EXIT_PASSED_BY = 1
#: So many bars of a synthetic market contain a look-back, a training span and a test.
_MADE_UP_BARS = 14_400
#: Enough for a leak to show; an audit fits two dozen models.
_MOST_TREES, _MOST_RESAMPLES = 60, 20


@click.command("leak-audit")
@click.option(
    "--bars",
    "source",
    type=click.Path(path_type=Path),
    help="Bars as the lake keeps them, a Parquet file or folder (default: a synthetic market).",
)
@click.option(
    "--markets", default=1, show_default=True, type=click.IntRange(1, 50), help="Number of synthetic markets."
)
@click.option(
    "--as-of",
    metavar="HOUR",
    help="Inject nothing: examine the lake as of an hour (`newest`: the newest evaluated).",
)
@click.option("--list", "listed", is_flag=True, help="Only list the leaks and their detectors.")
@json_option
@click.pass_context
def leak_audit(
    ctx: click.Context, source: Path | None, markets: int, as_of: str | None, listed: bool, as_json: bool
) -> None:
    """Inject each known leak into the real pipeline from bars to metrics, and check that it is caught.

    A leak replaces one step (features, labels, split and thresholds, fit, evaluation). Detectors examine the
    results without knowing the change. Each leak must be found by its own detector, and no detector may fire
    on the honest pipeline. Exit code 1 when a leak passes or the honest pipeline is flagged. The metrics that
    each leak would have claimed are shown beside the honest ones, on a synthetic market: they say nothing
    about a real one. docs/concepts/leaks.md describes all leaks.

    With --as-of nothing is injected: the detectors that need no second run look at the plan, the models and
    the evaluation that are stored, and compute labels and features of the test again from the bars.

    \b
    Examples:
      cryptovol leak-audit                                 on a synthetic market
      cryptovol leak-audit --markets 5 --json              on five, for scripts
      cryptovol leak-audit --bars data/lake/seconds/bars   on recorded bars
      cryptovol leak-audit --as-of newest                  on the newest models and evaluation
      cryptovol leak-audit --list                          which leaks, and who catches them
    """
    from cryptovol_dagster.core.leaks import audit
    from cryptovol_dagster.core.leaks.ladder import LEAKS

    if listed:
        rows = [
            {"leak": leak.name, "fault": leak.fault, "detector": audit.CAUGHT_BY[leak.name].__name__}
            for leak in LEAKS
        ]
        if as_json:
            click.echo(json.dumps(rows))
        else:
            columns = ("leak", "detector", "fault")
            print_table(columns, ([row[name] for name in columns] for row in rows), words=columns)
        return
    if as_of is not None:
        if source is not None:
            raise click.UsageError("--as-of reads the lake and --bars a file: they exclude each other")
        ctx.exit(_audit_lake(as_of, as_json=as_json))
    found = [
        (what, _audit(bars, timescale, quiet=as_json)) for what, bars, timescale in _markets(source, markets)
    ]
    passed = all(verdict.passed for _, verdicts in found for verdict in verdicts)
    if as_json:
        body = [
            {"bars": what, "verdicts": [verdict.to_dict() for verdict in verdicts]}
            for what, verdicts in found
        ]
        click.echo(json.dumps({"passed": passed, "audits": body}, allow_nan=False))
    else:
        for what, verdicts in found:
            _print(what, verdicts)
        click.echo("every leak is caught, the honest way is not flagged" if passed else "THE AUDIT FAILS")
    if not passed:
        ctx.exit(EXIT_PASSED_BY)


def _audit_lake(as_of: str, *, as_json: bool) -> int:
    """Print the detectors' findings on a stored partition; return the exit code."""
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.leaks.audit import inspect
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.leak_case import stored_case

    settings = load_settings().settings
    lake, spec = Lake(settings.storage.lake_dir), spec_of(settings, SECONDS)
    if as_of == "newest":
        evaluated = lake.partitions(spec.asset("model_evaluation"), "json")
        if not evaluated:
            raise click.ClickException(f"{lake.root} has no evaluation yet: run `cryptovol evaluate`")
        as_of = evaluated[-1]
    findings = inspect(stored_case(lake, spec, settings.models.enabled, as_of))
    clean = all(finding.clean for finding in findings)
    if as_json:
        body = {"as_of": as_of, "passed": clean, "findings": [finding._asdict() for finding in findings]}
        click.echo(json.dumps(body))
    else:
        click.echo(f"{spec.name} as of {as_of}")
        columns = ("detector", "result", "finding")
        rows = [[found.detector, "clean" if found.clean else "LEAK", found.said] for found in findings]
        print_table(columns, rows, words=columns)
        click.echo("no leak found" if clean else "A LEAK WAS FOUND")
    return 0 if clean else EXIT_PASSED_BY


def _markets(source: Path | None, markets: int) -> list[tuple[str, BarGrid, TimescaleSpec]]:
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.core.market.synthetic import synthetic_bars

    timescale = spec_of(load_settings().settings, SECONDS)
    if source is not None:
        return [(str(source), _read_bars(source, timescale), timescale)]
    seeds = range(1, markets + 1)
    return [
        (f"synthetic market {seed}", synthetic_bars(timescale, _MADE_UP_BARS, seed=seed), timescale)
        for seed in seeds
    ]


def _read_bars(source: Path, timescale: TimescaleSpec) -> BarGrid:
    import pandas as pd
    import pyarrow as pa

    from cryptovol_dagster.core.market.bars import BarGrid, BarsError

    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise click.ClickException(f"{source}: contains no Parquet file")
    try:
        frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
        return BarGrid.from_frame(frame, bar_ns=timescale.bar_ns)
    except (OSError, ValueError, pa.ArrowException, BarsError) as error:
        raise click.ClickException(
            f"{source}: cannot be read as bars: {' '.join(str(error).split())}"
        ) from error


def _audit(bars: BarGrid, timescale: TimescaleSpec, *, quiet: bool) -> tuple[Verdict, ...]:
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from cryptovol_dagster.chains import model_spec
    from cryptovol_dagster.core.leaks.audit import audit_leaks
    from cryptovol_dagster.core.leaks.ladder import LEAKS

    spec = model_spec(load_settings().settings.models)
    spec = replace(
        spec,
        xgboost_trees=min(spec.xgboost_trees, _MOST_TREES),
        bootstrap_resamples=min(spec.bootstrap_resamples, _MOST_RESAMPLES),
    )
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=quiet or not stderr.is_terminal) as progress:
        task = progress.add_task("honest", total=1 + len(LEAKS))
        return audit_leaks(
            bars, timescale, spec, progress=lambda name: progress.update(task, advance=1, description=name)
        )


def _print(what: str, verdicts: Sequence[Verdict]) -> None:
    """Print the verdicts of an audit of a market, and the detectors that flagged the honest pipeline."""
    honest = verdicts[0].rung
    click.echo(
        f"{what}: {honest.train_rows:,} training rows, {honest.test_rows:,} test rows, base rate "
        f"{honest.base_rate:.3f}"
    )
    print_table(
        ("way", "must be caught by", "AP", "honest", "F1", "honest", "result"),
        map(_cells, verdicts),
        words=("way", "must be caught by", "result"),
    )
    for verdict in verdicts:
        for finding in verdict.findings:
            if not finding.clean and not verdict.detector:
                click.echo(f"    {finding.detector}: {finding.said}")


def _cells(verdict: Verdict) -> list[str]:
    rung, honest = verdict.rung, verdict.honest
    numbers = (rung.average_precision, honest.average_precision, rung.f1, honest.f1)
    return [rung.name, verdict.detector or "nobody", *(f"{n:.3f}" for n in numbers), _result(verdict)]


def _result(verdict: Verdict) -> str:
    others = ", ".join(name for name in verdict.fired if name != verdict.detector)
    if not verdict.detector:
        return "not flagged" if verdict.passed else f"FALSE ALARM: {others}"
    also = f" (also by {others})" if others else ""
    return f"caught{also}" if verdict.passed else f"PASSED{also}"

"""`cryptovol backtest`: the walk-forward test of a horizon of the minutes, without touching the registry."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cryptovol_dagster.core.cards.markdown import number
from cryptovol_dagster.core.specs import DAY_S, NS
from cryptovol_dagster.verbs.options import json_option
from ingestor.errors import CryptovolError, did_you_mean
from ingestor.settings import load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.core.evaluation.backtest import Backtest, Progress
    from cryptovol_dagster.core.learning.dataset import Dataset
    from cryptovol_dagster.core.specs import ModelSpec, TimescaleSpec
    from ingestor.settings import Settings


class BacktestError(CryptovolError):
    """There is nothing to test, or the days are reserved; the message is one line."""


class _Asked(NamedTuple):
    """Options of the command line.

    Attributes:
        products: products of the test.
        bars: files or folders of candles; empty for the imported history.
        first: the first day as of which folds end, if any.
        last: the last one.
        holdout: whether the hold-out is tested instead of the days before it.
        models: names of the models.
    """

    products: Sequence[str]
    bars: Sequence[Path]
    first: date | None
    last: date | None
    holdout: bool
    models: Sequence[str]


@click.command()
@click.option(
    "--timescale", type=click.Choice(["minutes"]), default="minutes", show_default=True, help="Only minutes."
)
@click.option("--product", "products", multiple=True, help="Product; several are pooled, as in the chain.")
@click.option("--horizon", type=int, default=5, show_default=True, help="H in bars, one of the configured.")
@click.option("--train-days", type=click.IntRange(2), help="Default: timescales.minutes.splits.")
@click.option("--test-days", type=click.IntRange(1), help="Also the step from fold to fold.")
@click.option(
    "--bars",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Files or folders of minute candles (default: the imported history). Other products in them serve "
    "the cross features.",
)
@click.option("--from", "from_day", type=click.DateTime(["%Y-%m-%d"]), help="Folds as of this day or later.")
@click.option("--to", "to_day", type=click.DateTime(["%Y-%m-%d"]), help="Folds as of this day or earlier.")
@click.option(
    "--holdout",
    is_flag=True,
    help="Only folds whose test lies in the reserved months. Before anything is trained this is recorded in "
    "reports/backtest/holdout_looks.jsonl whatever --out says.",
)
@click.option("--models", help="Comma-separated (default: timescales.minutes.models.enabled).")
@click.option("--out", type=click.Path(path_type=Path), help="Default: reports/backtest.")
@click.option("--card", type=click.Path(path_type=Path), help="Write a model card of all backtests in --out.")
@json_option
def backtest(
    timescale: str,
    products: tuple[str, ...],
    horizon: int,
    train_days: int | None,
    test_days: int | None,
    bars: tuple[Path, ...],
    from_day: datetime | None,
    to_day: datetime | None,
    holdout: bool,
    models: str | None,
    out: Path | None,
    card: Path | None,
    as_json: bool,
) -> None:
    """Train and test again and again along months of minute bars, each time on the past alone.

    Folds end where a backfill of the minutes trains (every 30 days from timescales.minutes.retrain_anchor),
    and use its cut, thresholds and models: a backfill gives the same numbers on these days. Test days from
    timescales.minutes.holdout_from on are not used without --holdout.

    \b
    Examples:
      cryptovol backtest --product BTC-USD --horizon 5
      cryptovol backtest --product BTC-USD --horizon 15 --bars bars/ --json
      cryptovol backtest --product BTC-USD --holdout       once, when nothing is to be changed any more
    """
    settings = load_settings().settings
    spec = _spec(settings, horizon, train_days, test_days)
    folder = out or settings.storage.reports_dir / "backtest"
    names = tuple(models.split(",")) if models else settings.timescales.minutes.models.enabled
    wanted = products or settings.coinbase.products
    first, last = (None if day is None else day.date() for day in (from_day, to_day))
    asked = _Asked(wanted, bars, first, last, holdout, names)
    started = time.monotonic()
    with _shown(quiet=as_json) as progress:
        found, looks = _run(settings, spec, asked, progress)
    report = dict(found.report)
    report["holdout"] = holdout
    report["holdout_looks"] = looks
    report["seconds"] = round(time.monotonic() - started, 1)
    paths = _save(folder, report, found)
    if card is not None:
        _write_card(folder, card)
    if as_json:
        click.echo(json.dumps(report))
        return
    _print(report)
    for path in (*paths, *([card] if card is not None else [])):
        click.echo(f"written: {path}")


def _spec(settings: Settings, horizon: int, train_days: int | None, test_days: int | None) -> TimescaleSpec:
    from cryptovol_dagster.chains import timescale_specs
    from cryptovol_dagster.core.specs import MINUTES

    found = [spec for spec in timescale_specs(settings).values() if spec.grid == MINUTES]
    spec = next((spec for spec in found if spec.horizon_bars == horizon), None)
    if spec is None:
        known = ", ".join(str(spec.horizon_bars) for spec in found)
        raise BacktestError(
            f"no horizon of {horizon} bars is configured: {known or 'minutes are switched off'}"
        )
    cut = spec.splits
    if train_days is not None:
        cut = replace(cut, train_span_s=train_days * DAY_S)
    if test_days is not None:
        cut = replace(cut, test_span_s=test_days * DAY_S)
        anchor = (settings.timescales.minutes.retrain_anchor - date(1970, 1, 1)).days
        spec = replace(spec, retrain_every=test_days, retrain_phase=anchor % test_days)
    return replace(spec, splits=cut)


def _run(settings: Settings, spec: TimescaleSpec, asked: _Asked, progress: Progress) -> tuple[Backtest, int]:
    """Train and test on every fold; count evaluations of the reserved months, 0 where they are not used.

    Raises:
        BacktestError: an unknown model, no candles, no fold, or reserved days without `--holdout`.
    """
    from cryptovol_dagster.chains import model_spec
    from cryptovol_dagster.core.evaluation.backtest import walk_forward
    from cryptovol_dagster.core.features.catalogue import feature_hash
    from cryptovol_dagster.core.models import MODELS

    if unknown := [name for name in asked.models if name not in MODELS]:
        hint = did_you_mean(unknown[0], MODELS)
        raise BacktestError(f"{', '.join(unknown)}: no such model; there are {', '.join(MODELS)}.{hint}")
    _require_left_alone(settings.timescales.minutes.holdout_from, asked)
    rows, ends = _rows_and_folds(settings, spec, asked)
    models, features = model_spec(settings.timescales.minutes.models), feature_hash(spec)
    looks = 0
    if asked.holdout:
        # Before the first model is trained: a run that breaks off afterwards counts as well.
        looks = _record_evaluation(settings, spec, asked.models, models, rows, ends)
    found = walk_forward(
        rows, spec, models, ends=ends, feature_hash=features, models=asked.models, progress=progress
    )
    return found, looks


def _rows_and_folds(
    settings: Settings, spec: TimescaleSpec, asked: _Asked
) -> tuple[Dataset, tuple[int, ...]]:
    """Read the candles; return the labelled rows and the end of each requested fold (ns)."""
    from cryptovol_dagster.core.evaluation.backtest import fold_ends
    from cryptovol_dagster.history.rows import candle_grid, labelled_rows, read_candle_files, read_history
    from cryptovol_dagster.history.store import History

    holdout_from, now_ns = settings.timescales.minutes.holdout_from, time.time_ns()
    limit_ns = now_ns if asked.holdout else _start_ns(holdout_from)
    if asked.bars:
        candles = read_candle_files(asked.bars, to_ns=limit_ns, now_ns=now_ns)
    else:
        history = History(settings.storage.history_dir)
        candles = read_history(history, settings.coinbase.products, to_ns=limit_ns)
    there = sorted(map(str, candles["product"].unique()))
    if missing := [name for name in asked.products if name not in there]:
        hint = did_you_mean(missing[0], there)
        raise BacktestError(
            f"no candles of {', '.join(missing)}; there are those of {', '.join(there)}.{hint}"
        )
    grid = candle_grid(candles, spec)
    del candles  # months of them; the rows are computed from the grid
    ends = fold_ends(grid.start_ns, grid.end_ns, spec)
    ends = tuple(end for end in ends if _is_wanted(end, spec, holdout_from, asked))
    if not ends:
        raise BacktestError(_no_fold(settings, spec, asked.holdout))
    return labelled_rows(grid, spec, asked.products), ends


def _record_evaluation(
    settings: Settings,
    spec: TimescaleSpec,
    names: Sequence[str],
    models: ModelSpec,
    rows: Dataset,
    ends: Sequence[int],
) -> int:
    """Record that the reserved months are evaluated; return how often they have been by now."""
    from cryptovol_dagster.core.features.catalogue import features_version
    from cryptovol_dagster.core.times import iso_utc
    from cryptovol_dagster.lake.reserved_months import ledger_path, record_evaluation

    return record_evaluation(
        ledger_path(settings.storage.reports_dir),
        {
            "products": list(rows.products),
            "horizon_bars": spec.horizon_bars,
            "test_first": iso_utc(ends[0] - spec.splits.test_span_s * NS),
            "test_end": iso_utc(ends[-1]),
            "models": list(names),
            "feature_hash": features_version(spec),
            "model_spec_hash": models.hash(),
        },
    )


def _require_left_alone(limit: date, asked: _Asked) -> None:
    """Raise an error where requested days are in the reserved months."""
    if not asked.holdout and any(day is not None and day >= limit for day in (asked.first, asked.last)):
        raise BacktestError(f"test days from {limit} on are reserved: they are evaluated with --holdout only")


def _start_ns(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * NS


def _is_wanted(end_ns: int, spec: TimescaleSpec, holdout_from: date, asked: _Asked) -> bool:
    as_of = datetime.fromtimestamp((end_ns - spec.partition_ns) // NS, UTC).date()
    if (asked.first is not None and as_of < asked.first) or (asked.last is not None and as_of > asked.last):
        return False
    test_start_ns = end_ns - spec.splits.test_span_s * NS
    return not asked.holdout or test_start_ns >= _start_ns(holdout_from)


def _no_fold(settings: Settings, spec: TimescaleSpec, holdout: bool) -> str:
    limit = settings.timescales.minutes.holdout_from
    needed = (spec.splits.train_span_s + spec.splits.test_span_s) // DAY_S
    where = f"of {limit} and later" if holdout else f"before {limit}"
    return f"no fold {where}: {needed} whole days of candles are needed up to a day on which folds end"


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    """Show which fold and model is at work, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("reading candles", total=None)
        yield lambda done, total, what: progress.update(task, description=what, completed=done, total=total)


def _save(folder: Path, report: dict[str, Any], found: Backtest) -> list[Path]:
    from cryptovol_dagster.core.pictures.backtest import draw_backtest
    from cryptovol_dagster.lake.atomic import replace_file

    products = "+".join(report["data"]["products"])
    stem = f"{products}-h{report['horizon_bars']}{'-holdout' if report['holdout'] else ''}"
    contents = {folder / f"{stem}.json": json.dumps(report, indent=1, allow_nan=False).encode()}
    contents |= {folder / f"{stem}-{name}.png": png for name, png in draw_backtest(found).items()}
    for path, content in contents.items():
        replace_file(path, content)
    return list(contents)


def _write_card(folder: Path, card: Path) -> None:
    from cryptovol_dagster.core.cards.backtest_card import render_backtest_card
    from cryptovol_dagster.lake.atomic import replace_file

    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*-h*.json"))]
    reports.sort(key=lambda report: (report["holdout"], report["horizon_bars"], report["data"]["products"]))
    replace_file(card, render_backtest_card(reports).encode())


def _print(report: dict[str, Any]) -> None:
    from cryptovol_dagster.core.cards.backtest_card import comparison_text
    from cryptovol_dagster.core.evaluation.backtest import best_single_feature

    test, names = report["test"], list(report["models"])
    holdout = f", hold-out, evaluation {report['holdout_looks']}" if report["holdout"] else ""
    click.echo(
        f"{', '.join(report['data']['products'])}, next {report['horizon_bars']} bars "
        f"({report['target']}){holdout}: "
        f"{len(report['folds'])} folds, test {test['first']} … {test['end']}, {test['rows']:,} rows, base "
        f"rate {test['base_rate']:.3f}, at onset {number(test['onset_base_rate'])}; {report['seconds']:g} s"
    )
    click.echo("average precision of each fold")
    folds = (
        [
            fold["as_of"],
            number(fold["base_rate"]),
            *(number(fold["models"][name]["average_precision"]) for name in names),
        ]
        for fold in report["folds"]
    )
    print_table(("as of", "base rate", *names), folds, words=("as of",))
    for skipped in report["skipped"]:
        click.echo(f"not tested as of {skipped['as_of']}: {skipped['reason']}")
    click.echo("all folds")
    columns = ("model", "AP", "95 %", "mean over folds", "lift", "onset AP", "Brier", "ECE")
    print_table(columns, (_pooled(*one) for one in report["models"].items()), words=("model",))
    single = best_single_feature(report)
    for entry in report["comparisons"]:
        if entry["baseline"] == single:
            click.echo(f"{entry['model']} over {single}: {comparison_text(entry)}")
    for entry in report["over_best_column"]:
        click.echo(f"{entry['model']} over the bare column {entry['baseline']}: {comparison_text(entry)}")


def _pooled(name: str, found: dict[str, Any]) -> list[str]:
    """Return the cells of a model's numbers over all folds."""
    bounds = found["interval"] or {"low": None, "high": None}
    return [
        name,
        number(found["average_precision"]),
        f"{number(bounds['low'])} – {number(bounds['high'])}",
        number(found["mean_over_folds"]),
        number(found["lift"], 2),
        number(found["onset_average_precision"]),
        number(found["brier"], 4),
        number(found["expected_calibration_error"], 4),
    ]

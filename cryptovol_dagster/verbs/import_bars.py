"""`cryptovol import-bars`: past minute candles into the history, from files or from the exchange."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.verbs.options import json_option
from ingestor.errors import CryptovolError, first_line
from ingestor.settings import load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.history.imports import Choices, Format, Imported
    from cryptovol_dagster.history.store import History
    from ingestor.settings import Settings

LOG = logging.getLogger(__name__)
_INTERRUPTED = 130
#: Called with minutes done and minutes in all.
Tell = Callable[[int, int], None]


class ImportStopped(CryptovolError):  # noqa: N818 - the name states the fact
    """An import was interrupted; the message contains the reason, and what was stored before."""


class _Moment(click.ParamType):
    name = "time"
    _SHAPE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?Z?")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            if not self._SHAPE.fullmatch(value):
                raise ValueError(value)
            moment = datetime.fromisoformat(value.removesuffix("Z")).replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is not a day (2024-01-31) or time (2024-01-31T05:00), UTC", param, ctx)
        return int(moment.timestamp()) * NS


@dataclass
class _Done:
    """Result of an import, also of an interrupted one."""

    began_s: float = field(default_factory=time.monotonic)
    parts: list[Imported] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        sources: dict[str, dict[str, int]] = {}
        for part in self.parts:
            for source, counts in part.counts.items():
                known = sources.setdefault(source, dict.fromkeys(asdict(counts), 0))
                for name, count in asdict(counts).items():
                    known[name] += count
        products = {
            product: {**asdict(recorded), "days": len(recorded.days)}
            for product, recorded in sorted(self.recorded().items())
        }
        return {
            "products": products,
            "sources": sources,
            "seconds": round(time.monotonic() - self.began_s, 1),
        }

    def recorded(self) -> dict[str, Any]:
        """Return the changes of the history, by product."""
        from cryptovol_dagster.history.store import Recorded

        found: dict[str, Recorded] = {}
        for part in self.parts:
            for product, recorded in part.recorded.items():
                found[product] = found.get(product, Recorded()) + recorded
        return found

    def line(self) -> str:
        """Return the stored candles in one line."""
        parts = [
            f"{recorded.added + recorded.replaced:,} candles of {product}"
            for product, recorded in sorted(self.recorded().items())
        ]
        return f"stored: {', '.join(parts) or 'nothing'}"


@click.command("import-bars")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--product",
    "products",
    multiple=True,
    metavar="P",
    help="Product; several with --from (default there: the configured products).",
)
@click.option(
    "--format", "file_format", type=click.Choice(["csv", "parquet"]), help="Default: detected by content."
)
@click.option("--from", "from_ns", type=_Moment(), metavar="DAY", help="Ask the exchange, from this day on.")
@click.option(
    "--to", "to_ns", type=_Moment(), metavar="DAY", help="Up to this day, exclusive (default: now)."
)
@click.option("--url", metavar="URL", help="Another REST interface of the same kind (history.url).")
@click.option("--skip-bad", is_flag=True, help="Leave impossible rows out; their minutes become holes.")
@click.option("--assume-utc", is_flag=True, help="Take times without a zone for UTC.")
@click.option("--replace", is_flag=True, help="Replace stored values that differ.")
@click.option("--any-price", is_flag=True, help="Do not refuse prices a factor away from those beside them.")
@click.option("--no-report", is_flag=True, help="Do not show the days changed in Dagster.")
@click.option("--list", "as_list", is_flag=True, help="List stored and missing minutes; import none.")
@json_option
def import_bars(
    files: tuple[Path, ...],
    products: tuple[str, ...],
    file_format: str | None,
    from_ns: int | None,
    to_ns: int | None,
    url: str | None,
    skip_bad: bool,
    assume_utc: bool,
    replace: bool,
    any_price: bool,
    no_report: bool,
    as_list: bool,
    as_json: bool,
) -> None:
    """Import past 1-minute candles, from which the `minutes` models learn on the first day.

    From files (CSV, plain or gz, or Parquet; one product or several; the column names of common exports are
    known), or from the exchange's public REST interface, which needs no key. Doing it again changes nothing:
    stored minutes, and holes confirmed by the exchange, are not requested again, so an interrupted import
    (Ctrl-C, kill, network) continues where it was. A stored minute keeps its values.

    \b
    A month from the exchange:      cryptovol import-bars --from 2024-01-01 --to 2024-02-01 --product BTC-USD
    All since then, all products:   cryptovol import-bars --from 2024-01-01
    Files that name their product:  cryptovol import-bars btc_usd_1m.parquet eth_usd_1m.parquet
    A file that does not:           cryptovol import-bars btc.csv --product BTC-USD
    Times without a zone:           cryptovol import-bars btc.csv --product BTC-USD --assume-utc
    Stored and missing minutes:     cryptovol import-bars --list

    Exit code 1 when something could not be imported, with one line that says what was expected, what was
    found and where; 130 after Ctrl-C.
    """
    from cryptovol_dagster.history.imports import Choices
    from cryptovol_dagster.history.store import History

    settings = load_settings().settings
    history = History(settings.storage.history_dir)
    if as_list:
        _list(history, as_json)
        return
    _require_one_source(files, products, from_ns, to_ns, url, file_format)
    choices = Choices(skip_bad=skip_bad, assume_utc=assume_utc, replace=replace, any_price=any_price)
    done = _Done()
    try:
        with _reporting_interruptions(done):
            if from_ns is None:
                product = products[0] if products else None
                _import_files(history, files, product, cast("Format | None", file_format), choices, done)
            else:
                wanted = products or settings.coinbase.products
                _import_span(settings, history, wanted, (from_ns, to_ns), url, choices, done, quiet=as_json)
    finally:
        if not no_report:
            _show_in_dagster(settings, history, done)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    _print(done)


def _require_one_source(
    files: Sequence[Path],
    products: Sequence[str],
    from_ns: int | None,
    to_ns: int | None,
    url: str | None,
    file_format: str | None,
) -> None:
    if bool(files) is (from_ns is not None):
        raise click.UsageError("name files, or ask the exchange with --from; see --help")
    if files and (to_ns is not None or url is not None):
        raise click.UsageError("--to and --url go with --from, not with files")
    if files and len(products) > 1:
        raise click.UsageError("files are of one --product, or have a column with the product")
    if from_ns is not None:
        if file_format is not None:
            raise click.UsageError("--format is of files")
        if to_ns is not None and to_ns <= from_ns:
            raise click.UsageError("--to must be later than --from")
        if url is not None and not url.startswith(("http://", "https://")):
            raise click.UsageError("--url must begin with http:// or https://")


@contextmanager
def _reporting_interruptions(done: _Done) -> Iterator[None]:
    """Report, when an import is interrupted, what was stored and that it can be resumed."""
    from cryptovol_dagster.core.market.candle_checks import CandleError
    from cryptovol_dagster.history.api import CandleApiError
    from cryptovol_dagster.history.store import HistoryError

    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; {done.line()}; the same command continues there", err=True)
        raise SystemExit(_INTERRUPTED) from None
    except (CandleError, CandleApiError, HistoryError) as error:
        if not done.parts:
            raise
        raise ImportStopped(f"{error} ({done.line()})") from error


def _import_files(
    history: History,
    files: Sequence[Path],
    product: str | None,
    file_format: Format | None,
    choices: Choices,
    done: _Done,
) -> None:
    from cryptovol_dagster.history.imports import import_file

    for file in files:
        done.parts.append(
            import_file(
                history,
                file,
                now_ns=time.time_ns(),
                product=product,
                file_format=file_format,
                choices=choices,
            )
        )


def _import_span(
    settings: Settings,
    history: History,
    products: Sequence[str],
    span: tuple[int, int | None],
    url: str | None,
    choices: Choices,
    done: _Done,
    *,
    quiet: bool,
) -> None:
    from cryptovol_dagster.core.market.candle_checks import require_product
    from cryptovol_dagster.history.api import CandleApi
    from cryptovol_dagster.history.imports import import_span

    for product in products:
        require_product(product, "--product")
    start_ns, end_ns = span
    asked = settings.history if url is None else settings.history.model_copy(update={"url": url})
    with CandleApi(asked) as api, _progress(quiet) as track:
        for product in products:
            tell = track(product)
            until_ns = time.time_ns() if end_ns is None else end_ns
            for minutes, total, part in import_span(
                history, api, product, start_ns, until_ns, clock_ns=time.time_ns, choices=choices
            ):
                done.parts.append(part)
                tell(minutes, total)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], Tell]]:
    """Draw a progress bar for each product on a terminal; print nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda product: lambda minutes, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("minutes"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def track(product: str) -> Tell:
            task = bars.add_task(product, total=None)
            return lambda minutes, total: bars.update(task, completed=minutes, total=total)

        yield track


def _show_in_dagster(settings: Settings, history: History, done: _Done) -> None:
    """Report the days changed to Dagster; nothing depends on it, so its failure is a line and no more."""
    days = sorted({day for recorded in done.recorded().values() for day in recorded.days})
    if not days:
        return
    try:
        from cryptovol_dagster.verbs.report_history import report_days

        report_days(settings, history, days)
    except Exception as error:  # noqa: BLE001 - whatever Dagster's storage raises: the candles are stored
        click.echo(f"not shown in Dagster: {first_line(error)}", err=True)


def _print(done: _Done) -> None:
    found = done.to_dict()
    for source, counts in found["sources"].items():
        parts = [f"{counts['rows']:,} rows"]
        parts += [
            f"{counts[name]:,} {words}"
            for name, words in (
                ("duplicates", "said twice"),
                ("steps_back", "steps back in time"),
                ("unfinished", "of minutes that are not over"),
                ("bad", "impossible"),
                ("without_volume", "in which nothing was traded"),
            )
            if counts[name] and (name != "steps_back" or source != "rest")
        ]
        click.echo(f"{source}: {', '.join(parts)}")
    for product, changed in found["products"].items():
        click.echo(
            f"{product}: {changed['added']:,} candles stored, {changed['replaced']:,} replaced, "
            f"{changed['unchanged']:,} were there; {changed['holes']:,} minutes recorded as holes; "
            f"{changed['days']:,} days changed"
        )
    if not found["products"]:
        click.echo("nothing is missing there")
    click.echo(f"{found['seconds']} s; `cryptovol import-bars --list` shows the stored minutes")


def _list(history: History, as_json: bool) -> None:
    from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
    from cryptovol_dagster.core.times import iso_utc
    from cryptovol_dagster.history.store import BAD_ROW, NO_CANDLE, NOT_ASKED

    kinds = (NO_CANDLE, BAD_ROW, NOT_ASKED)
    rows: list[dict[str, Any]] = []
    for product in history.products():
        span = history.span(product)
        if span is None:
            continue
        holes = history.holes(product, *span)
        minutes = (holes["end_ns"] - holes["start_ns"]) // MINUTE_NS
        missing = {kind: int(minutes[holes["kind"] == kind].sum()) for kind in kinds}
        rows.append(
            {
                "product": product,
                "first": iso_utc(span[0]),
                "end": iso_utc(span[1]),
                "candles": (span[1] - span[0]) // MINUTE_NS - sum(missing.values()),
                **missing,
                "longest_hole_minutes": int(minutes.max()) if len(minutes) else 0,
            }
        )
    if as_json:
        click.echo(json.dumps({"folder": str(history.root), "products": rows}))
    elif rows:
        print_table(
            tuple(name.replace("_", " ") for name in rows[0]),
            [
                [f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()]
                for row in rows
            ],
            words=("product", "first", "end"),
        )
    else:
        click.echo(f"{history.root}: no candles yet; `cryptovol import-bars --help` shows how to import some")

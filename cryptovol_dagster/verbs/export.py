"""`cryptovol export`: stored data as Parquet, CSV or a DuckDB file, in readable units."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptovol_dagster.verbs.options import chain_option, json_option
from ingestor.errors import CryptovolError, one_line
from ingestor.settings import load_settings

if TYPE_CHECKING:
    import pyarrow as pa


#: Rows of a row group: so many are in memory at once.
_GROUP_ROWS = 100_000
_SCORES = "scores"
_FORMATS = (".parquet", ".csv", ".csv.gz", ".duckdb")
_Batches = Iterable["pa.Table"]


class ExportError(CryptovolError):
    """Nothing was written; the message contains the reason and what to type."""


@dataclass(frozen=True)
class Exported:
    """The exported rows of one kind.

    Attributes:
        kind: of rows.
        rows: how many.
        columns: how many, time and product included.
        start: time of the first row, ISO; empty without rows.
        end: time of the last row.
    """

    kind: str
    rows: int
    columns: int
    start: str
    end: str


@click.command()
@click.argument("kinds", nargs=-1, required=True, metavar="KIND...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help=f"File to write: {', '.join(_FORMATS)}."
)
@click.option("--product", "products", multiple=True, help="BTC-USD; may be repeated. Default: all.")
@click.option(
    "--from",
    "start",
    metavar="TIME",
    help="2025-12-01 or 2025-12-01T10 (alone: that day, that hour), 2025-12-01T10:30, or -6h: back from the "
    "end. UTC without a zone. Default: the first row stored.",
)
@click.option("--to", "end", metavar="TIME", help="End of the span, not part of it. Default: the last row.")
@click.option("--columns", help="Comma-separated; of one kind only. Time and product are always written.")
@click.option("--model", help="For scores: name or file of a model. Default: the champion.")
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@chain_option
@json_option
def export(
    kinds: tuple[str, ...],
    out: Path,
    products: tuple[str, ...],
    start: str | None,
    end: str | None,
    columns: str | None,
    model: str | None,
    force: bool,
    chain_name: str,
    as_json: bool,
) -> None:
    """Write ticks, trades, bars, features, labels, scores, coverage or gaps to a file.

    The rows are those of the Python API (docs/guides/python-api.md): prices in quote currency, spreads in
    bps, times in UTC. Parquet and CSV files contain one kind; a DuckDB file has a table per kind. The file
    appears when it is complete. Rows are read an hour at a time (of the minutes: a day) and written some
    100,000 at a time.

    \b
    Examples:
      cryptovol export features --product BTC-USD --from -2h --out btc.parquet
      cryptovol export bars --from -6h --columns close,volume --out bars.csv.gz
      cryptovol export bars --chain minutes_h5 --out minutes.csv
      cryptovol export ticks bars features labels gaps --out market.duckdb
      cryptovol export scores --model xgboost --from 2025-12-01T10:00 --to 2025-12-01T12:00 --out scores.csv
    """
    from cryptovol_dagster.api.market import market_of

    suffix = _require_usable(kinds, out, columns, model, force)
    market = market_of(load_settings()).arrow
    names = [name.strip() for name in columns.split(",")] if columns else None
    asked = (products or None, start, end)
    found = {
        kind: market.batches(
            kind, *asked, columns=names, chain=chain_name, model=model if kind == _SCORES else None
        )
        for kind in dict.fromkeys(kinds)
    }

    def watched(kind: str, progress: Callable[[int, int, str], None]) -> Iterator[pa.Table]:
        total = len(market.partitions(kind, start, end, chain=chain_name))
        for done, batch in enumerate(found[kind], start=1):
            yield batch
            progress(done, total, kind)

    with _shown(quiet=as_json) as progress:
        try:
            written = _WRITERS[suffix](out, {kind: watched(kind, progress) for kind in found})
        except OSError as error:
            raise ExportError(f"{out}: cannot be written: {error.strerror or error}") from error
    if as_json:
        click.echo(json.dumps({"out": str(out), "tables": [asdict(one) for one in written]}))
        return
    for one in written:
        span = f", {one.start} … {one.end}" if one.rows else ""
        click.echo(f"{one.kind:<9}{one.rows:,} rows × {one.columns} columns{span}")
    click.echo(f"written  {out} ({out.stat().st_size / 1e6:,.1f} MB)")


def _require_usable(
    kinds: Sequence[str], out: Path, columns: str | None, model: str | None, force: bool
) -> str:
    """Check the options before anything is read; return the ending of the file.

    Raises:
        ExportError: the file exists, has an unknown ending, or cannot contain the requested kinds.
    """
    suffix = next(
        (known for known in sorted(_FORMATS, key=len, reverse=True) if out.name.endswith(known)), None
    )
    if suffix is None:
        raise ExportError(f"{out}: unknown ending; a file is one of {', '.join(_FORMATS)}")
    if len(set(kinds)) > 1 and suffix != ".duckdb":
        raise ExportError(
            f"{out}: contains one kind of rows; {', '.join(kinds)} need a .duckdb file, or a file each"
        )
    if len(set(kinds)) > 1 and columns:
        raise ExportError("--columns requires one kind of rows")
    if model and _SCORES not in kinds:
        raise ExportError(f"--model is for scores: {', '.join(kinds)} are not computed by a model")
    if out.exists() and not force:
        raise ExportError(f"{out} exists: --force replaces it")
    return suffix


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show on a terminal how many partitions are written."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda done, total, what: progress.update(task, description=what, completed=done, total=total)


class _Counted:
    """Batches of one kind, joined to groups of rows, with counts.

    Args:
        kind: of rows.
        batches: partitions in order of time.
    """

    def __init__(self, kind: str, batches: _Batches) -> None:
        self._kind, self._batches = kind, batches
        self._rows = self._columns = 0
        self._start = self._end = ""

    def __iter__(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        held: list[pa.Table] = []
        for batch in self._batches:
            self._note(batch)
            held.append(batch)
            if sum(map(len, held)) >= _GROUP_ROWS:
                yield pa.concat_tables(held).unify_dictionaries()
                held = []
        if held:
            yield pa.concat_tables(held).unify_dictionaries()

    def _note(self, batch: pa.Table) -> None:
        self._rows, self._columns = self._rows + len(batch), batch.num_columns
        if len(batch):
            first, last = (batch.column(0)[row].as_py().isoformat() for row in (0, -1))
            self._start, self._end = self._start or first, last

    def exported(self) -> Exported:
        """Return the counts so far."""
        return Exported(self._kind, self._rows, self._columns, self._start, self._end)


def _write_parquet(out: Path, tables: dict[str, _Batches]) -> list[Exported]:
    """Write one kind; pandas reads it back with the time as its index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cryptovol_dagster.api.market import to_pandas
    from cryptovol_dagster.lake.atomic import atomic_writer

    ((kind, batches),) = tables.items()
    counted = _Counted(kind, batches)
    # The stack closes the writer before the file, also after an error.
    with atomic_writer(out) as file, ExitStack() as stack:
        writer: Any = None
        for table in counted:
            if writer is None:
                of_pandas = pa.Schema.from_pandas(to_pandas(table.slice(0, 0))).metadata
                schema = table.schema.with_metadata({**(table.schema.metadata or {}), **of_pandas})
                writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            writer.write_table(table.cast(writer.schema))
    return [counted.exported()]


def _write_csv(out: Path, tables: dict[str, _Batches]) -> list[Exported]:
    """Write one kind; numbers read back as they were."""
    from gzip import GzipFile

    from pyarrow import csv

    from cryptovol_dagster.lake.atomic import atomic_writer

    ((kind, batches),) = tables.items()
    counted = _Counted(kind, batches)
    with atomic_writer(out) as file:
        # Without a time in the header the same rows are the same bytes.
        packed = GzipFile(fileobj=file, mode="wb", mtime=0) if out.suffix == ".gz" else nullcontext(file)
        with packed as sink, ExitStack() as stack:
            writer: Any = None
            for table in map(_plain, counted):
                writer = writer or stack.enter_context(csv.CSVWriter(sink, table.schema))
                writer.write_table(table)
    return [counted.exported()]


def _write_duckdb(out: Path, tables: dict[str, _Batches]) -> list[Exported]:
    """Write one table per kind; times are UTC without a zone, comments contain unit and meaning.

    Raises:
        ExportError: DuckDB cannot write the file.
    """
    import duckdb

    out.parent.mkdir(parents=True, exist_ok=True)
    every = []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        path = Path(folder) / out.name
        with _one_line_errors(out), duckdb.connect(str(path)) as database:
            for kind, batches in tables.items():
                counted = _Counted(kind, batches)
                for number, table in enumerate(counted):
                    plain = _without_zone(_plain(table))  # noqa: F841 - DuckDB finds it by its name
                    if number == 0:
                        database.execute(f"CREATE TABLE {kind} AS SELECT * FROM plain")
                        _comment(database, kind, table.schema)
                    else:
                        database.execute(f"INSERT INTO {kind} SELECT * FROM plain")
                every.append(counted.exported())
        path.replace(out)
    return every


@contextmanager
def _one_line_errors(out: Path) -> Iterator[None]:
    """Convert DuckDB's error of a full disk to one line.

    Raises:
        ExportError: the disk is full.
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise ExportError(f"{out}: cannot be written: {one_line(str(error))}") from error


def _comment(database: Any, kind: str, schema: pa.Schema) -> None:
    for field in schema:
        about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        if about:
            unit = f" [{about['unit']}]" if about["unit"] else ""
            text = (about["meaning"] + unit).replace("'", "''")
            database.execute(f"COMMENT ON COLUMN {kind}.\"{field.name}\" IS '{text}'")


def _plain(table: pa.Table) -> pa.Table:
    """Return a table with plain strings: neither CSV nor DuckDB accepts a dictionary per batch."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _without_zone(table: pa.Table) -> pa.Table:
    """Return a table whose times have no zone: DuckDB keeps nanoseconds only without one."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.timestamp("ns")) if pa.types.is_timestamp(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


_WRITERS: dict[str, Callable[[Path, dict[str, _Batches]], list[Exported]]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".csv.gz": _write_csv,
    ".duckdb": _write_duckdb,
}

"""`features.parquet`: a folder of files, one per product and hour, that readers treat as one table.

``pandas.read_parquet(folder)`` and DuckDB's ``read_parquet('folder/*.parquet')`` see one row per (product,
bar), the last revision. A file is replaced as a whole, so that a reader never sees half of one.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cryptovol_dagster.core.features.live_rows import LiveRows
from cryptovol_dagster.lake.atomic import atomic_writer
from cryptovol_dagster.live.errors import LiveError
from ingestor.errors import first_line

_VERSION_KEY = b"cryptovol_feature_version"


class FeatureParts:
    """Collects rows, and updates the files of their hours at each `flush`."""

    def __init__(self, folder: Path, feature_version: str) -> None:
        """Use `folder`, created when needed.

        Raises:
            LiveError: it cannot be used, or contains features of another version.
        """
        self._folder, self._version = folder, feature_version
        self._pending: list[LiveRows] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LiveError(f"{folder}: cannot be written: {error.strerror}") from error
        newest = max(folder.glob("*.parquet"), default=None)
        if newest is not None:
            self._read(newest)

    def add(self, rows: LiveRows) -> None:
        """Add rows; of two with one key the higher revision stays, and of equal ones the later."""
        if len(rows):
            self._pending.append(rows)

    @property
    def rows_waiting(self) -> int:
        """Rows added since the last `flush`."""
        return sum(map(len, self._pending))

    def drop(self) -> None:
        """Drop rows that were not written: the instance that owns them now computes them again."""
        self._pending.clear()

    def newest_end_ns(self, product: str, bar_ns: int) -> int | None:
        """Return the end of a product's newest bar in the files; None where there is none."""
        newest = max(self._folder.glob(f"*_{_name(product)}.parquet"), default=None)
        if newest is None:
            return None
        return int(self._read(newest)["bar_start"].max().value) + bar_ns

    def flush(self) -> None:
        """Write the rows added since the last `flush`.

        Raises:
            LiveError: a file cannot be read or written; the rows stay for the next `flush`.
        """
        if not self._pending:
            return
        if not self._folder.is_dir():  # written to a new one, the rows before would be missing in silence
            raise LiveError(f"{self._folder}: was moved or removed while rows are written into it")
        frame = pd.concat([rows.to_frame() for rows in self._pending], ignore_index=True)
        hour = frame["bar_start"].dt.strftime("%Y-%m-%dT%H")
        for name, rows in frame.groupby(hour + "_" + frame["product"].map(_name)):
            self._merge(self._folder / f"{name}.parquet", rows)
        self._pending.clear()

    def _merge(self, path: Path, rows: pd.DataFrame) -> None:
        if path.exists():
            rows = pd.concat([self._read(path), rows], ignore_index=True)
        rows = rows.sort_values(["bar_start", "revision"], kind="stable")
        rows = rows.drop_duplicates("bar_start", keep="last")
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), _VERSION_KEY: self._version.encode()}
        )
        try:
            with atomic_writer(path) as file:
                pq.write_table(table, file, compression="zstd")
        except OSError as error:
            raise LiveError(f"{path}: cannot be written: {error.strerror}") from error

    def _read(self, path: Path) -> pd.DataFrame:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise LiveError(f"{path}: cannot be read: {first_line(error)}") from error
        version = (table.schema.metadata or {}).get(_VERSION_KEY, b"unknown").decode()
        if version != self._version:
            raise LiveError(
                f"{self._folder} contains features of version {version}, not {self._version}: "
                "move it away, or name another folder with --out"
            )
        return table.to_pandas()


def _name(product: str) -> str:
    return quote(product, safe="")

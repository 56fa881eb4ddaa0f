"""Partitions of the lake as one table: in order of time, in readable units, only the requested columns.

Belongs here: the files of a span, and their rows. Does not belong here: the meaning of a column
(`columns.py`), the meaning of a time (`spans.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cryptovol_dagster.api.columns import PRODUCT, Column, Kind
from cryptovol_dagster.api.errors import ApiError
from cryptovol_dagster.api.spans import shown
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS, partition_window
from cryptovol_dagster.lake.files import Lake, meaning_of_open
from ingestor.errors import did_you_mean

UTC_TIME = pa.timestamp("ns", "UTC")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Query:
    """A query of one asset.

    Attributes:
        lake: where its partitions are.
        kind: of rows.
        asset: its name in the lake.
        reach_ns: how far after a row's time its partition may end (a label waits for its horizon).
        start_ns: first time; None is an open end.
        end_ns: end of the times, exclusive; None is an open end.
        products: the products; None: all.
        names: the columns, in order; None: all.
        any_version: read files whatever their version.
        verb: writes a command that works on this lake.
    """

    lake: Lake
    kind: Kind
    asset: str
    reach_ns: int
    start_ns: int | None
    end_ns: int | None
    products: tuple[str, ...] | None
    names: list[str] | None
    any_version: bool
    verb: Callable[[str], str]

    def partitions(self) -> list[str]:
        """Return the partitions to read, oldest first.

        Raises:
            ApiError: none was written; or none contains a requested product.
        """
        keys = self.stored_partitions()
        if not keys:
            raise self._nothing()
        self._require_products(keys)
        return keys

    def require_recorded(self) -> None:
        """Check that the span touches the time from the first partition to the last, holes included.

        Raises:
            ApiError: it does not; or no partition contains a requested product.
        """
        stored = replace(self, start_ns=None, end_ns=None).partitions()
        if not self._touches(partition_window(stored[0])[0], partition_window(stored[-1])[1]):
            raise self._nothing()

    def stored_partitions(self) -> list[str]:
        """Return the partitions that the span touches, oldest first; there may be none."""
        if self.start_ns is not None and self.end_ns is not None:
            return self.lake.written(self.asset, self.start_ns, self.end_ns + self.reach_ns)
        return [key for key in self.lake.partitions(self.asset) if self._touches(*partition_window(key))]

    def _touches(self, start_ns: int, end_ns: int) -> bool:
        after = self.start_ns is None or end_ns > self.start_ns
        return after and (self.end_ns is None or start_ns < self.end_ns + self.reach_ns)

    def _nothing(self) -> ApiError:
        stored = self.lake.partitions(self.asset)
        if not stored:
            return ApiError(
                f"{self.lake.root} has no {self.asset} yet: {_first_steps(self.asset, self.verb)}"
            )
        first_ns, last_ns = partition_window(stored[0])[0], partition_window(stored[-1])[1]
        start = shown(first_ns if self.start_ns is None else self.start_ns)
        end = shown(last_ns if self.end_ns is None else self.end_ns)
        return ApiError(
            f"{self.asset}: nothing is stored in {start} … {end}. There are {_counted(stored)}, "
            f'{shown(first_ns)} … {shown(last_ns)}: choose a span in there, e.g. start="-1h". '
            "market.coverage() shows each."
        )

    def _require_products(self, keys: Sequence[str]) -> None:
        """Check that every requested product is stored in at least one partition.

        Raises:
            ApiError: one is not.
        """
        missing, met = set(self.products or ()), dict[str, None]()
        for key in (keys[0], *reversed(keys[1:])):
            if not missing:
                return
            stored = self.lake.read_partition(self.asset, key, [self.kind.product])[self.kind.product]
            words = stored.cast(pa.string()).unique().to_pylist()
            met.update(dict.fromkeys(words))
            missing -= set(words)
        if missing:
            raise ApiError(
                f"{self.asset} have no product {', '.join(sorted(missing))} in {keys[0]} … {keys[-1]}: "
                f"there are {', '.join(sorted(met)) or 'none'}.{did_you_mean(min(missing), met)}"
            )

    def require_versions(self, keys: Sequence[str]) -> None:
        """Check that every file has this build's version of its columns.

        Raises:
            ApiError: some files are of other versions.
        """
        if self.kind.version is None or self.any_version:
            return
        start_ns, end_ns = partition_window(keys[0])[0], partition_window(keys[-1])[1]
        versions = self.lake.versions(self.asset, start_ns, end_ns)
        other = [key for key in keys if versions.get(key) != self.kind.version]
        if not other:
            return
        own = {_own(versions.get(key)) for key in other}
        if self.kind.reference_set and own == {_own(self.kind.version)}:
            raise ApiError(self._other_reference_set(keys, other))
        found = ", ".join(sorted({versions.get(key) or "none" for key in other}))
        scale = "" if ":" in other[0] else "--timescale minutes "
        again = self.verb(f"backfill {scale}--from {other[0]} --to {other[-1]} --market-only")
        raise ApiError(
            f"{self.asset}: {len(other)} of {len(keys)} partitions ({other[0]} … {other[-1]}) are of version "
            f"{found}, this build computes {self.kind.version}: `{again}` computes them again; "
            "in Python, any_version=True reads them as they are"
        )

    def _other_reference_set(self, keys: Sequence[str], other: Sequence[str]) -> str:
        found = self.lake.reference_set(self.asset, other[0])
        again = self.verb("reference-set --apply")
        return (
            f"{self.asset}: {len(other)} of {len(keys)} partitions ({other[0]} … {other[-1]}) have cross "
            f"features over {', '.join(found)}; timescales.reference_set is "
            f"{', '.join(self.kind.reference_set)}: "
            f"`{again}` recomputes them; in Python, any_version=True reads them as they are"
        )

    def read(self, key: str) -> pa.Table:
        """Read the rows of one partition, in order of time, then product.

        Raises:
            LakeError: the file cannot be read.
            ApiError: it is of another version.
        """
        return self._read(key, threads=True)

    def _read(self, key: str, *, threads: bool) -> pa.Table:
        kind = self.kind
        with self.lake.open_partition(self.asset, key) as file:
            schema = file.schema_arrow
            if not self.any_version and kind.version not in (None, meaning_of_open(file)[0]):
                self.require_versions(self.partitions())
            columns = self._columns_in(schema)
            sources = dict.fromkeys([kind.time, kind.product, *(s for c in columns for s in c.sources)])
            table = file.read(columns=list(sources), use_threads=threads)
        return self._computed(table, columns)

    def _computed(self, table: pa.Table, columns: Sequence[Column]) -> pa.Table:
        """Compute these columns of the requested rows."""
        kind = self.kind
        times, codes, words = _keys_of(table, kind)
        rows = self._rows(times, codes, words)
        if len(rows) < table.num_rows or (np.diff(rows) != 1).any():
            # Also where the rows are consecutive: a slice of them would keep the whole file in memory.
            table = table.take(pa.array(rows))
        made = [column.make(table) if column.make else table[column.sources[0]] for column in columns]
        return pa.Table.from_arrays(
            [pa.array(times[rows]).view(UTC_TIME), self._products(codes[rows], words), *made],
            names=[kind.index, PRODUCT, *(column.name for column in columns)],
        )

    def _columns_in(self, schema: pa.Schema) -> tuple[Column, ...]:
        """Return the columns to read from a file: those declared, and of any version those it has."""
        if not self.any_version:
            return self.kind.select(self.names)
        declared = {column.name: column for column in self.kind.columns}
        own = [name for name in schema.names if name not in (self.kind.time, self.kind.product)]
        wanted = own if self.names is None else self.names
        columns = (declared.get(name, Column(name, "", "", (name,))) for name in wanted)
        return tuple(column for column in columns if set(column.sources) <= set(schema.names))

    def _rows(
        self, times: NDArray[np.int64], codes: NDArray[np.int32], words: list[str]
    ) -> NDArray[np.int64]:
        """Return the requested rows, in order of time; rows of equal time in stored order, by product."""
        order = np.argsort(times, kind="stable")
        if self.products is not None and set(words) - set(self.products):
            wanted = np.array([word in self.products for word in words], dtype=bool)
            order = order[wanted[codes[order]]]
        first = 0 if self.start_ns is None else np.searchsorted(times[order], self.start_ns)
        stop = len(order) if self.end_ns is None else np.searchsorted(times[order], self.end_ns)
        return order[first:stop]

    def _products(self, codes: NDArray[np.int32], words: list[str]) -> pa.DictionaryArray:
        """Encode products by the requested ones, so that every partition has the same dictionary."""
        if self.products is not None:
            place = {word: index for index, word in enumerate(self.products)}
            codes = np.array([place.get(word, -1) for word in words], dtype=np.int32)[codes]
        known = pa.array(words if self.products is None else self.products, pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(codes), known)

    def table(self) -> pa.Table:
        """Read all of it, in order of time.

        Raises:
            ApiError: nothing is stored there, or files are of another version.
            LakeError: a file cannot be read.
        """
        parts = self.each(lambda key: self._read(key, threads=False))
        table = joined([part for _, part in parts], self.kind)
        return table if self.names is None else self.kind.pick(table, self.names)

    def each(self, work: Callable[[str], _Result]) -> list[tuple[str, _Result]]:
        """Process every partition, several at a time; return results in order of time.

        Files are small and columns many, so a thread a file is faster than a thread a column.
        """
        keys = self.partitions()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, len(keys))) as pool:
            return list(zip(keys, pool.map(work, keys), strict=True))

    def batches(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield partition by partition, so that memory has one of them; all have the same columns."""
        keys = self.partitions()
        self.require_versions(keys)
        every = self._no_rows(keys) if self.any_version else None
        for key in keys:
            part = self.read(key)
            if every is not None:
                part = pa.concat_tables([every, part], promote_options="permissive").select(
                    every.column_names
                )
            yield key, part

    def _no_rows(self, keys: Sequence[str]) -> pa.Table:
        """Return a table without rows that has the requested columns of all these files.

        Raises:
            ApiError: no file has a requested column.
        """
        schemas: list[pa.Schema] = []
        for key in keys:
            with self.lake.open_partition(self.asset, key) as file:
                if not any(file.schema_arrow.equals(schema) for schema in schemas):
                    schemas.append(file.schema_arrow)
        parts = [self._computed(schema.empty_table(), self._columns_in(schema)) for schema in schemas]
        table = pa.concat_tables(parts, promote_options="permissive")
        return table if self.names is None else self.kind.pick(table, self.names)


def _own(version: str | None) -> str:
    """Return the part of a version that is of the own features."""
    return (version or "").partition("+")[0]


def newest_time(lake: Lake, kind: Kind, asset: str, spec: TimescaleSpec) -> int:
    """Return the end of the newest known rows, in UTC nanoseconds.

    A day of minutes has all its bars from the beginning, those to come too.
    """
    keys = lake.partitions(asset)
    if not keys:
        return 0
    columns = [kind.time] if kind.known is None else [kind.time, kind.known[0]]
    table = lake.read_partition(asset, keys[-1], columns)
    if kind.known is not None:
        name, values = kind.known
        known = pc.SetLookupOptions(pa.array(values, table.schema.field(name).type))
        table = table.filter(pc.call_function("is_in", [table[name]], known))
    if not table.num_rows:
        return partition_window(keys[-1])[1]
    newest = pc.call_function("max", [table[kind.time].cast(pa.int64())]).as_py()
    return newest + (1 if kind.known is None else spec.bar_ns)


def _keys_of(table: pa.Table, kind: Kind) -> tuple[NDArray[np.int64], NDArray[np.int32], list[str]]:
    """Return time and product of each row: nanoseconds, codes, and the codes' words."""
    times = table[kind.time].cast(pa.int64()).to_numpy()
    products = table[kind.product].combine_chunks()
    encoded: Any = products if pa.types.is_dictionary(products.type) else products.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return times, codes, encoded.dictionary.to_pylist()


def joined(parts: Sequence[pa.Table], kind: Kind) -> pa.Table:
    """Join partitions; columns of only some are null in the others. Fields contain unit and meaning."""
    table = pa.concat_tables(parts, promote_options="permissive").unify_dictionaries()
    known = {column.name: column for column in kind.columns}
    fields = [
        field.with_metadata({"unit": known[field.name].unit, "meaning": known[field.name].text})
        if field.name in known
        else field
        for field in table.schema
    ]
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields))


def _counted(keys: Sequence[str]) -> str:
    """Return the number of hours or days as text, and of all between the first and the last."""
    length_ns, name = (HOUR_NS, "hour") if ":" in keys[0] else (DAY_NS, "day")
    span = (partition_window(keys[-1])[1] - partition_window(keys[0])[0]) // length_ns
    holes = f", {span - len(keys)} of them missing in between" if span > len(keys) else ""
    return f"{len(keys)} {name}{'' if len(keys) == 1 else 's'}{holes}"


def _first_steps(asset: str, verb: Callable[[str], str]) -> str:
    if asset.startswith("minutes"):
        return f"`{verb('import-bars')}`, then `{verb('backfill --timescale minutes')}`"
    return f"record with `{verb('ingest')}`, then `{verb('backfill')}`; or try `cryptovol demo`"

"""The drift numbers of an hour: the compared rows, the limits, and the stored record.

Past pairs are the stored numbers of earlier hours, never of the hour itself or a later one. So an hour that
is scored again years later has the same limits, as long as the numbers before it are the same.

Beside the numbers a small sample of the hour's rows is stored. With it an hour reads its reference of a day
in some hundredths of a second, instead of 24 files of a hundred columns. Windows span minutes, so
neighbouring rows are nearly equal, and a row a minute describes an hour.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from cryptovol_dagster.core.drift.distance import (
    MIN_ROWS,
    Drift,
    ProductDrift,
    judge,
    product_drift,
    worst_of,
)
from cryptovol_dagster.core.drift.limits import DriftLimits, LimitsInForce, Pair, limits_in_force
from cryptovol_dagster.core.features.catalogue import feature_names, features_version, market_feature_names
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window, partitions_between
from cryptovol_dagster.lake.datasets import why_other_features
from cryptovol_dagster.lake.files import Lake, LakeError
from cryptovol_dagster.lake.market import to_table
from ingestor.errors import CryptovolError

SCHEMA_VERSION = 2
#: Raised when other columns are counted. Earlier numbers still calibrate: limits are of the columns in use.
COLUMNS_VERSION = 1
#: Status of an hour's numbers.
SCORED, NO_REFERENCE, NO_DATA = "scored", "no_reference", "no_data"
#: Rows of a product in the sample of an hour.
SAMPLE_ROWS = 60
#: Share of the reference hours that must have rows.
LEAST_REFERENCE = 4
#: A sample is an Arrow file: of some hundred rows it is read ten times as fast as Parquet.
_ARROW, _VERSION = "arrow", b"cryptovol.version"


class DriftError(CryptovolError):
    """Drift cannot be computed; the message is one line."""


class OtherSchema(DriftError):  # noqa: N818 - the name states the fact
    """Stored numbers are of another schema version: they may mean something else."""


@dataclass(frozen=True)
class DriftWindow:
    """Length of the reference of an hour, and of the calibration of its limits.

    Attributes:
        reference_hours: hours before it that it is compared with.
        calibration_hours: hours before it whose own comparisons may calibrate its limits.
        fixed: limits where there is too little to calibrate on.
    """

    reference_hours: int
    calibration_hours: int
    fixed: DriftLimits


@dataclass(frozen=True)
class DriftScores:
    """The drift numbers of an hour, as `drift_scores` stores them.

    Attributes:
        as_of: the hour.
        status: ``scored``, ``no_reference`` (too few hours before it) or ``no_data`` (too few valid rows).
        reason: why there are no scores; empty where there are.
        version: of the features compared.
        reference_wanted: hours before that it was to be compared with.
        reference_hours: those of them that had rows, oldest first.
        products: rows and distances of each product.
        drift: the verdict over all products.
        limits: limits of the hour.
    """

    as_of: str
    status: str
    reason: str
    version: str
    reference_wanted: int
    reference_hours: tuple[str, ...]
    products: dict[str, ProductDrift]
    drift: Drift
    limits: LimitsInForce

    @property
    def rows(self) -> int:
        """Rows of the hour compared."""
        return sum(product.rows for product in self.products.values())

    @property
    def reference_rows(self) -> int:
        """Rows of the hours before compared, after sampling."""
        return sum(product.reference_rows for product in self.products.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form."""
        hours = self.reference_hours
        return {
            "schema_version": SCHEMA_VERSION,
            "as_of": self.as_of,
            "status": self.status,
            "reason": self.reason,
            "version": self.version,
            "reference": {
                "wanted": self.reference_wanted,
                "hours": len(hours),
                "first": hours[0] if hours else None,
                "last": hours[-1] if hours else None,
                "rows": self.reference_rows,
            },
            "rows": self.rows,
            "products": {
                name: {"rows": product.rows, "reference_rows": product.reference_rows}
                for name, product in self.products.items()
            },
            "columns": self.drift.columns,
            "share_over": self.drift.share_over,
            "over_limit": self.drift.over_limit,
            **self.limits.to_dict(),
        }


def scores_asset(spec: TimescaleSpec) -> str:
    """Return the name of the numbers in the lake."""
    return spec.asset("drift_scores")


def score_hour(lake: Lake, spec: TimescaleSpec, key: str, window: DriftWindow) -> DriftScores:
    """Compare the valid rows of an hour with those of the hours before it, and keep a sample of them.

    Hours of another feature version cannot serve as reference: their columns have another meaning. Features
    of the calendar are not compared: an hour of the day always differs from the other 23.

    Raises:
        LakeError: the hour has no features, or a file cannot be read.
        DriftError: the hour's features are of another version, or past numbers cannot be read.
    """
    names, version, wanted = market_feature_names(spec), features_version(spec), window.reference_hours
    rows = _valid_rows(lake, spec, key)
    _keep_sample(lake, spec, key, rows)
    products = sorted(name for name, found in _by_product(rows).items() if len(found) >= MIN_ROWS)

    def without_scores(status: str, reason: str, hours: Iterable[str]) -> DriftScores:
        limits = limits_in_force([], names, window.fixed)
        empty = Drift(dict.fromkeys(names), None, False)
        return DriftScores(key, status, reason, version, wanted, tuple(hours), {}, empty, limits)

    if not products:
        return without_scores(NO_DATA, f"no product has {MIN_ROWS} valid rows", ())
    samples = read_samples(lake, spec, partitions_before(key, wanted))
    if reason := why_no_reference(len(samples), wanted):
        return without_scores(NO_REFERENCE, reason, samples)
    before = _by_product(pa.concat_tables(samples.values()).to_pandas())
    now = _by_product(rows)
    found = {
        product: product_drift(
            now[product].loc[:, list(names)].to_numpy(np.float64, na_value=np.nan),
            before[product].loc[:, list(names)].to_numpy(np.float64, na_value=np.nan),
            names,
        )
        for product in products
        if product in before
    }
    if not found:
        reason = f"none of {', '.join(products)} has valid rows in the {wanted} hours before"
        return without_scores(NO_REFERENCE, reason, samples)
    pairs = past_pairs(lake, scores_asset(spec), key, window, version, found)
    limits = limits_in_force(pairs, names, window.fixed)
    drift = judge(worst_of(found), limits)
    return DriftScores(key, SCORED, "", version, wanted, tuple(samples), found, drift, limits)


def why_no_reference(found: int, wanted: int) -> str:
    """Return why the hours before are too few to compare with; empty where they are enough."""
    needed = max(1, wanted // LEAST_REFERENCE)
    if found >= needed:
        return ""
    return f"{found} of the {wanted} hours before have valid rows, {needed} are needed"


def read_samples(lake: Lake, spec: TimescaleSpec, keys: Sequence[str]) -> dict[str, pa.Table]:
    """Read the samples of the hours that have rows of this feature version, by hour.

    Raises:
        LakeError: a file cannot be read.
        DriftError: a sample is not a table.
    """
    return {
        key: sample
        for key in keys
        if (sample := read_sample(lake, spec, key)) is not None and sample.num_rows
    }


class _Reference(msgspec.Struct):
    wanted: int


class _PastScores(msgspec.Struct):
    """Past pair from an hour's stored numbers."""

    version: str
    reference: _Reference
    products: dict[str, Any]
    columns: dict[str, float | None]


def past_pairs(
    lake: Lake, asset: str, key: str, window: DriftWindow, version: str, products: Iterable[str]
) -> list[Pair]:
    """List the stored comparisons before an hour that are like its own, oldest first.

    Numbers of another schema are left out like any others that mean something else.

    Args:
        lake: where they are.
        asset: which numbers.
        key: the hour.
        window: how far back, and the length of reference that a pair must have.
        version: required version of a pair's columns.
        products: those that a pair must be of.

    Raises:
        LakeError: a file cannot be read.
        DriftError: a file is not JSON of drift numbers.
    """
    alike = (version, window.reference_hours, sorted(products))
    found = []
    for hour in partitions_before(key, window.calibration_hours):
        path = lake.path(asset, hour, "json")
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        past = _past_scores(path, asset, hour, state.st_mtime_ns, state.st_size)
        if past is None or (past.version, past.reference.wanted, sorted(past.products)) != alike:
            continue
        if any(value is not None for value in past.columns.values()):
            found.append(Pair(hour, past.columns))
    return found


class _Schema(msgspec.Struct):
    schema_version: int


# A range reads the same month of hours again for each of its own.
@lru_cache(maxsize=4_000)
def _past_scores(path: Path, asset: str, key: str, _written_ns: int, _size: int) -> _PastScores | None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LakeError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        if msgspec.json.decode(content, type=_Schema).schema_version != SCHEMA_VERSION:
            return None
        return msgspec.json.decode(content, type=_PastScores)
    except msgspec.MsgspecError as error:
        raise DriftError(f"{asset} of {key} cannot be read: {error}") from error


def partitions_before(key: str, count: int) -> list[str]:
    """Return the keys of the `count` partitions before one, oldest first."""
    start_ns, end_ns = partition_window(key)
    length_ns = end_ns - start_ns
    return partitions_between(start_ns - count * length_ns, start_ns, length_ns)


def read_scores(lake: Lake, spec: TimescaleSpec, key: str) -> dict[str, Any] | None:
    """Read the stored numbers of an hour; None where it was never scored.

    Raises:
        LakeError: the file cannot be read.
        OtherSchema: it is of another schema version.
        DriftError: it is not JSON.
    """
    return read_numbers(lake, scores_asset(spec), key)


def read_numbers(lake: Lake, asset: str, key: str) -> dict[str, Any] | None:
    """Read the numbers that an asset of this module's schema stores of an hour; None where it stores none.

    Raises:
        LakeError: the file cannot be read.
        OtherSchema: it is of another schema version.
        DriftError: it is not JSON.
    """
    if not lake.exists(asset, key, "json"):
        return None
    try:
        found = json.loads(lake.read_bytes(asset, key, "json"))
    except ValueError as error:
        raise DriftError(f"{asset} of {key} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION:
        raise OtherSchema(f"{asset} of {key} is of another schema version: materialize it again")
    return found


def valid_rows(
    lake: Lake, spec: TimescaleSpec, keys: Sequence[str], also: Sequence[str] = ()
) -> pd.DataFrame:
    """Read the valid rows of hours: product, `also` and every feature; hours without features are left out.

    Raises:
        LakeError: none of the hours has features.
        DriftError: an hour's features are of another version.
    """
    asset = spec.asset("features")
    present = [key for key in keys if lake.exists(asset, key)]
    if not present:
        raise LakeError(f"{asset} has no partition in {keys[0]} … {keys[-1]}: materialize it first")
    return pd.concat([_valid_rows(lake, spec, key, also) for key in present], ignore_index=True)


def read_sample(lake: Lake, spec: TimescaleSpec, key: str) -> pa.Table | None:
    """Read the sample of an hour, which later hours use as their reference.

    A sample older than its features is ignored; then the features themselves are read.

    Returns:
        The sample; None where the hour has no features, or those of another version.

    Raises:
        LakeError: a file cannot be read.
        DriftError: the sample is not a table.
    """
    features, sample, wanted = spec.asset("features"), _sample_asset(spec), features_version(spec).encode()
    path = lake.path(features, key)
    if not path.is_file():
        return None
    if lake.is_newer(sample, key, path.stat().st_mtime_ns, _ARROW):
        try:
            table = pa.ipc.open_file(lake.read_bytes(sample, key, _ARROW)).read_all()
        except pa.ArrowException as error:
            raise DriftError(f"{sample} of {key} cannot be read: {error}") from error
        if (table.schema.metadata or {}).get(_VERSION) == wanted:
            return table
    if lake.versions(features, *partition_window(key))[key].encode() != wanted:
        return None
    return _thinned(_valid_rows(lake, spec, key), wanted)


def _keep_sample(lake: Lake, spec: TimescaleSpec, key: str, rows: pd.DataFrame) -> None:
    table = _thinned(rows, features_version(spec).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    lake.write_bytes(_sample_asset(spec), key, sink.getvalue().to_pybytes(), _ARROW)


def _sample_asset(spec: TimescaleSpec) -> str:
    return f"{scores_asset(spec)}_sample"


def _valid_rows(lake: Lake, spec: TimescaleSpec, key: str, also: Sequence[str] = ()) -> pd.DataFrame:
    asset, wanted = spec.asset("features"), features_version(spec)
    window = partition_window(key)
    lake.require(asset, [key])
    if lake.versions(asset, *window)[key] != wanted:
        raise DriftError(why_other_features(lake, spec, [key]))
    columns = ["product", "valid", *also, *feature_names(spec)]
    frame = lake.read_table(asset, *window, columns=columns).to_pandas()
    return frame.loc[frame["valid"]].drop(columns="valid").reset_index(drop=True)


def _thinned(rows: pd.DataFrame, version: bytes) -> pa.Table:
    """Return rows spread evenly over the time of each product that has enough."""
    kept = [
        found.iloc[:: max(1, len(found) // SAMPLE_ROWS)]
        for found in _by_product(rows).values()
        if len(found) >= MIN_ROWS
    ]
    frame = pd.concat(kept) if kept else rows.iloc[:0]
    # As words and not as codes, which differ from hour to hour.
    table = to_table(frame.assign(product=frame["product"].astype(str)))
    return table.replace_schema_metadata({_VERSION: version})


def _by_product(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(name): found for name, found in rows.groupby("product", observed=True)}

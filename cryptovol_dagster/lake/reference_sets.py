"""Stored cross features: over which products they are means, and how they get those of another set.

Belongs here: which partitions and models depend on a reference set, and rewriting cross columns from the own
ones. Does not belong here: the means themselves (`core.features.compute`), and what is printed of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cryptovol_dagster.core.features.catalogue import (
    cross_feature_names,
    feature_hash,
    features_version,
    own_feature_names,
    with_reference_set,
)
from cryptovol_dagster.core.features.compute import with_cross_features
from cryptovol_dagster.core.features.grid import FeatureGrid
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.market import write_features


@dataclass(frozen=True)
class StoredFeatures:
    """The partitions of a grid's features, by what a reference set means for them.

    Attributes:
        asset: name in the lake.
        partitions: how many there are.
        current: how many have the set's cross features already.
        outdated: keys of those with another set's, oldest first.
        other: keys of those whose own features are of another version; only a backfill helps them.
        lacking: by product of the set, how many of the outdated have no row of it.
        size_bytes: of the files of the outdated.
    """

    asset: str
    partitions: int
    current: int
    outdated: tuple[str, ...]
    other: tuple[str, ...]
    lacking: dict[str, int]
    size_bytes: int


@dataclass(frozen=True)
class StoredModel:
    """A model in use, and the cross features it reads.

    Attributes:
        chain: name.
        role: ``champion``, ``challenger`` or ``exported``.
        name: of the model, with its as-of partition or its file.
        cross_set: products whose means it reads; empty where it reads own features only.
    """

    chain: str
    role: str
    name: str
    cross_set: tuple[str, ...]


def stored_features(lake: Lake, spec: TimescaleSpec) -> StoredFeatures:
    """Compare the stored features of a grid with the reference set of `spec`.

    Raises:
        LakeError: a file cannot be read.
    """
    asset, wanted, own = spec.asset("features"), features_version(spec), feature_hash(spec)
    keys = lake.partitions(asset)
    outdated: list[str] = []
    other: list[str] = []
    lacking = dict.fromkeys(spec.reference_set, 0)
    for key in keys:
        version = lake.versions(asset, *partition_window(key))[key]
        if version == wanted:
            continue
        if version != with_reference_set(own, lake.reference_set(asset, key)):
            other.append(key)
            continue
        outdated.append(key)
        for product in set(spec.reference_set) - _products(lake, asset, key):
            lacking[product] += 1
    size = sum(lake.path(asset, key).stat().st_size for key in outdated)
    current = len(keys) - len(outdated) - len(other)
    return StoredFeatures(asset, len(keys), current, tuple(outdated), tuple(other), lacking, size)


def _products(lake: Lake, asset: str, key: str) -> set[str]:
    return set(lake.read_partition(asset, key, ["product"])["product"].cast(pa.string()).unique().to_pylist())


def recompute_cross(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Path:
    """Replace a partition's cross features by means over the reference set of `spec`, and its version.

    They are computed from the stored own features, and equal bit for bit those computed from bars.

    Raises:
        LakeError: the file cannot be read or written.
        FeatureError: its rows are no grid.
    """
    table = with_cross_columns(lake.read_partition(spec.asset("features"), partition_key), spec)
    return write_features(lake, spec, partition_key, table)


def with_cross_columns(table: pa.Table, spec: TimescaleSpec) -> pa.Table:
    """Return a partition's table with the cross features that the reference set of `spec` gives."""
    own = FeatureGrid.from_frame(table.to_pandas(), own_feature_names(spec), bar_ns=spec.bar_ns)
    grid = with_cross_features(own, spec)
    for name in cross_feature_names(spec):
        column = pa.array(grid[name].ravel(), from_pandas=True)  # NaN is null in the lake
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def models_in_use(lake: Lake, specs: Sequence[TimescaleSpec], reports: Reports) -> Iterator[StoredModel]:
    """Yield champion, challenger and exported models of chains, with the cross features each reads.

    Raises:
        LakeError: a champion's file is missing.
        DecisionError: a decision cannot be read.
        ModelError: a file is no model file.
    """
    from cryptovol_dagster.core.models.base import read_parts

    for spec in specs:
        decision = decisions.newest_decision(lake, spec)
        named = [] if decision is None else [("champion", decision.champion)]
        if decision is not None and decision.contest is not None:
            named.append(("challenger", decision.contest.challenger))
        for role, model in named:
            if model is not None:
                meta, _ = read_parts(decisions.read_model_file(lake, spec, model))
                yield StoredModel(spec.name, role, str(model), meta.cross_set)
        for path in sorted(reports.artifacts_dir.glob(f"{spec.name}-*.zip")):
            meta, _ = read_parts(path.read_bytes())
            yield StoredModel(spec.name, "exported", path.name, meta.cross_set)

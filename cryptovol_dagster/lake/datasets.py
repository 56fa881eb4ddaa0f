"""The labelled rows of a span, with a hash of their inputs."""

from __future__ import annotations

from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.dataset import Dataset, join_rows
from cryptovol_dagster.core.learning.labels import label_hash, rows_labelled_by
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.look_back import training_look_back, window_back
from cryptovol_dagster.lake.row_cache import between, read_rows
from ingestor.errors import CryptovolError


class ChainError(CryptovolError):
    """Stored partitions do not fit together; the message is one line."""


def read_dataset(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Dataset:
    """Join features and labels of the trailing training and test span, up to the end of the as-of partition.

    Raises:
        LakeError: the as-of partition has no features or no labels.
        ChainError: some hours were computed with another configuration.
        LearningError: nothing is left to learn from.
    """
    return dataset_and_hash(lake, spec, partition_key)[0]


def dataset_and_hash(lake: Lake, spec: TimescaleSpec, partition_key: str) -> tuple[Dataset, str]:
    """Join features and labels of the training span that ends with a partition, and hash the rows.

    Raises:
        LakeError: the partition has no features or no labels.
    """
    for asset in (spec.asset("features"), spec.asset("labels")):
        lake.require(asset, [partition_key])
    return _rows_and_hash(lake, spec, *window_back(partition_key, training_look_back(spec)))


def read_span(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> Dataset:
    """Join features and labels of a span of whole partitions, as far as they were written.

    Raises:
        LakeError: a file cannot be read.
        ChainError: some partitions were computed with another configuration.
        NoRows: nothing has both features and a label.
    """
    return _rows_and_hash(lake, spec, start_ns, end_ns)[0]


def read_matured(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Dataset:
    """Join the rows whose labels are in a partition, in order of time; there may be none.

    They are not cached: the cache keeps the training window.

    Raises:
        LakeError: the partition has no labels or no features, or a file cannot be read.
        ChainError: some partitions were computed with another configuration.
        LearningError: a column is missing, or a key appears twice.
    """
    labels, features = spec.asset("labels"), spec.asset("features")
    window = partition_window(partition_key)
    span = rows_labelled_by(*window, spec)
    for asset in (labels, features):
        lake.require(asset, [partition_key])
    _require_version(lake, labels, window, label_hash(spec))
    _require_version(lake, features, (span[0], window[1]), feature_hash(spec))
    rows = lake.read_table(features, *span).to_pandas()
    return join_rows(between(rows, *span), lake.read_table(labels, *window).to_pandas(), spec)


def _rows_and_hash(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> tuple[Dataset, str]:
    assets = spec.asset("features"), spec.asset("labels")
    for asset, version in zip(assets, (feature_hash(spec), label_hash(spec)), strict=True):
        _require_version(lake, asset, (start_ns, end_ns), version)
    return read_rows(lake, spec, start_ns, end_ns)


def _require_version(lake: Lake, asset: str, window: tuple[int, int], version: str) -> None:
    """Check that rows are joined only with rows of the same meaning.

    Raises:
        ChainError: some hours were computed with another configuration or by another version of the code.
    """
    outdated = [key for key, found in lake.versions(asset, *window).items() if found != version]
    if outdated:
        raise ChainError(
            f"{asset} of {len(outdated)} partitions, {outdated[0]} … {outdated[-1]}, was computed with "
            "another configuration: materialize these again"
        )

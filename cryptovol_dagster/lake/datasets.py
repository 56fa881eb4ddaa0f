"""The labelled rows of a span, with a hash of their inputs."""

from __future__ import annotations

from collections.abc import Sequence

from cryptovol_dagster.core.features.catalogue import feature_hash, features_version, with_reference_set
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
    require_labels(lake, spec, window)
    require_features(lake, spec, (span[0], window[1]))
    rows = lake.read_table(features, *span).to_pandas()
    return join_rows(between(rows, *span), lake.read_table(labels, *window).to_pandas(), spec)


def _rows_and_hash(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> tuple[Dataset, str]:
    require_features(lake, spec, (start_ns, end_ns))
    require_labels(lake, spec, (start_ns, end_ns))
    return read_rows(lake, spec, start_ns, end_ns)


def require_features(lake: Lake, spec: TimescaleSpec, window: tuple[int, int]) -> None:
    """Check that features are joined only with features of the same meaning.

    Raises:
        ChainError: some partitions are of another configuration, reference set or version of the code.
    """
    found = lake.versions(spec.asset("features"), *window)
    outdated = [key for key, version in found.items() if version != features_version(spec)]
    if outdated:
        raise ChainError(why_other_features(lake, spec, outdated))


def why_other_features(lake: Lake, spec: TimescaleSpec, outdated: Sequence[str]) -> str:
    """Say what partitions of features hold that this configuration does not compute, and what to type.

    Args:
        lake: holds them.
        spec: what is computed now.
        outdated: keys of features of another version, oldest first; at least one.

    Raises:
        LakeError: a file cannot be read.
    """
    asset, first = spec.asset("features"), outdated[0]
    which, again = f"{asset} of {first}", "it"
    if len(outdated) > 1:
        which, again = f"{asset} of {len(outdated)} partitions, {first} … {outdated[-1]},", "these"
    found = lake.reference_set(asset, first)
    version = lake.versions(asset, *partition_window(first))[first]
    own = with_reference_set(feature_hash(spec), found)
    if not found or found == spec.reference_set or version != own:
        return f"{which} was computed with another configuration: materialize {again} again"
    return (
        f"{which} has cross features over {', '.join(found)}; timescales.reference_set is "
        f"{', '.join(spec.reference_set)}: `cryptovol reference-set --apply` recomputes them"
    )


def require_labels(lake: Lake, spec: TimescaleSpec, window: tuple[int, int]) -> None:
    """Check that labels are joined only with labels of the same meaning.

    Raises:
        ChainError: some partitions are of another configuration or another version of the code.
    """
    asset = spec.asset("labels")
    outdated = [key for key, found in lake.versions(asset, *window).items() if found != label_hash(spec)]
    if outdated:
        raise ChainError(
            f"{asset} of {len(outdated)} partitions, {outdated[0]} … {outdated[-1]}, was computed with "
            "another configuration: materialize these again"
        )

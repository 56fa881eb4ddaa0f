"""Typed reads of the chain's partitions: lake tables in, the core's values out.

Belongs here: how far back an hour must read, and joining partitions into what a core function takes. Does
not belong
here: any computation, or anything that knows of Dagster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cryptovol_dagster.core.bars import BarGrid
from cryptovol_dagster.core.dataset import Dataset, Problem, join_dataset, pose_problem
from cryptovol_dagster.core.features import feature_hash, lookback_bars
from cryptovol_dagster.core.labels import LearningError, label_hash
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.splits import Split, split_times
from cryptovol_dagster.core.ticks import TickColumns, TradeColumns
from cryptovol_dagster.resources.lake import HOUR_NS, Lake, hour_key, hour_window

if TYPE_CHECKING:
    from cryptovol_dagster.core.models import Model

LEDGER = "gap_ledger"
#: Beside the ticks of an hour lie its trades, and each product's first tick after it.
TICKS, TRADES, NEXT_TICKS = "ticks", "trades", "next_ticks"
SPLITS_SCHEMA_VERSION = 1
#: The rows read last: splits, every model, evaluation and report of an hour are made from the same ones.
_LAST_DATASET: dict[tuple[Any, ...], tuple[Dataset, str]] = {}


class ChainError(Exception):
    """Stored partitions do not fit together; the message is one line."""


def hours_of(bars: int, spec: TimescaleSpec) -> int:
    """Give how many hours before a partition `bars` bars reach back."""
    return -(-bars * spec.bar_ns // HOUR_NS)


def feature_hours_back(spec: TimescaleSpec) -> int:
    """Give how many hours of bars before its own the features of an hour read."""
    return hours_of(lookback_bars(spec), spec)


def label_hours_back(spec: TimescaleSpec) -> int:
    """Give how many hours of bars before its own the labels of an hour read: its rows begin H before it."""
    return hours_of(2 * spec.horizon_bars, spec)


def training_hours_back(spec: TimescaleSpec) -> int:
    """Give how many hours of features and labels before its own an as-of partition learns from."""
    return -(-(spec.splits.train_span_s + spec.splits.test_span_s) * 1_000_000_000 // HOUR_NS)


def window_back(partition_key: str, hours: int) -> tuple[int, int]:
    """Give the window of an hour together with `hours` hours before it."""
    start_ns, end_ns = hour_window(partition_key)
    return start_ns - hours * HOUR_NS, end_ns


def read_ticks(lake: Lake, partition_key: str, products: tuple[str, ...]) -> TickColumns:
    """Read the clean ticks of an hour, of the one before it and each product's first after it.

    Quotes carry over the hour's edge, and so do losses: the next tick tells whether there was one.
    """
    for asset in (TICKS, NEXT_TICKS):
        lake.require(asset, [partition_key])
    tables = [
        _of_products(lake, TICKS, partition_key, products, 1),
        _of_products(lake, NEXT_TICKS, partition_key, products, 0),
    ]
    ticks = TickColumns.concat([TickColumns.from_table(table, products=products) for table in tables])
    # Each hour is ordered by product, then time; two hours in a row are not.
    return ticks.take(np.lexsort((ticks.event_time_ns, ticks.product)))


def read_sequence_gaps(lake: Lake, partition_key: str) -> pa.Table:
    """Read the ledgered gaps of a connection's numbers, in and around an hour.

    Raises:
        LakeError: the hour's ledger was never written.
    """
    ledger = lake.read_table(LEDGER, *hour_window(partition_key))
    return ledger.filter(pc.call_function("equal", [ledger["kind"], pa.scalar("sequence")]))


def read_trades(lake: Lake, partition_key: str, products: tuple[str, ...]) -> TradeColumns | None:
    """Read the trades of an hour and of the one before it; None where the feed had none."""
    lake.require(TRADES, [partition_key])
    table = _of_products(lake, TRADES, partition_key, products, 1)
    if not table.num_rows:
        return None
    trades = TradeColumns.from_table(table, products=products)
    return trades.take(np.lexsort((trades.trade_id, trades.trade_time_ns, trades.product)))


def _of_products(
    lake: Lake, asset: str, partition_key: str, products: tuple[str, ...], hours_back: int
) -> pa.Table:
    table = lake.read_table(asset, *window_back(partition_key, hours_back)).unify_dictionaries()
    wanted = pc.SetLookupOptions(pa.array(products, pa.string()))
    return table.filter(pc.call_function("is_in", [table["product_id"].cast(pa.string())], wanted))


def read_bars(lake: Lake, spec: TimescaleSpec, partition_key: str, hours_back: int) -> BarGrid:
    """Read the bars of an hour and of the unbroken run of at most `hours_back` hours before it.

    Raises:
        LakeError: the hour itself was never written.
    """
    asset = f"{spec.name}/bars"
    lake.require(asset, [partition_key])
    start_ns, end_ns = hour_window(partition_key)
    while hours_back and lake.exists(asset, hour_key(start_ns - HOUR_NS)):
        start_ns, hours_back = start_ns - HOUR_NS, hours_back - 1
    return BarGrid.from_frame(lake.read_table(asset, start_ns, end_ns).to_pandas(), bar_ns=spec.bar_ns)


def to_table(frame: pd.DataFrame) -> pa.Table:
    """Turn a core frame into a lake table; pandas' own types (nullable integers) survive the round trip."""
    return pa.Table.from_pandas(frame, preserve_index=False)


def read_dataset(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Dataset:
    """Join features and labels of the trailing training and test span, up to the end of the as-of partition.

    Raises:
        LakeError: the as-of partition has no features or no labels.
        ChainError: some hours were made under another configuration.
        LearningError: nothing is left to learn from.
    """
    return _dataset_and_hash(lake, spec, partition_key)[0]


def _dataset_and_hash(lake: Lake, spec: TimescaleSpec, partition_key: str) -> tuple[Dataset, str]:
    """Read and digest the rows, or give those that were just read, as long as no file has changed."""
    window = window_back(partition_key, training_hours_back(spec))
    assets = f"{spec.name}/features", f"{spec.name}/labels"
    for asset in assets:
        lake.require(asset, [partition_key])
    key = (lake, spec, window, *(lake.fingerprint(asset, *window) for asset in assets))
    if key not in _LAST_DATASET:
        for asset, version in zip(assets, (feature_hash(spec), label_hash(spec)), strict=True):
            _require_version(lake, asset, window, version)
        _LAST_DATASET.clear()  # before the next is read: a week of two products is 0.7 GB
        # Column by column, each freed once it is converted: half the memory of a copy as a whole.
        features, labels = (
            lake.read_table(asset, *window).to_pandas(split_blocks=True, self_destruct=True)
            for asset in assets
        )
        dataset = join_dataset(features, labels, spec)
        _LAST_DATASET[key] = dataset, hash_dataset(dataset)
    return _LAST_DATASET[key]


def _require_version(lake: Lake, asset: str, window: tuple[int, int], version: str) -> None:
    """Make sure that rows are never joined with others that mean something else.

    Raises:
        ChainError: some hours were made under another configuration or by another version of the code.
    """
    outdated = [key for key, found in lake.versions(asset, *window).items() if found != version]
    if outdated:
        raise ChainError(
            f"{asset} of {len(outdated)} hours, {outdated[0]} … {outdated[-1]}, was made under another "
            "configuration: materialize these hours again"
        )


@dataclass(frozen=True)
class SplitPlan:
    """What the `splits` asset stores for an as-of partition: where to cut, on which data, or why not.

    Attributes:
        as_of: the partition.
        reason: why nothing can be trained; empty where it can.
        split: the ranges; None where nothing can be trained.
        thresholds: τ per product, from training rows.
        counts: rows and positives of each part, and rows that the join left out, by reason.
        data_hash: of every row of the dataset.
        feature_hash: of the feature set.
    """

    as_of: str
    reason: str
    split: Split | None
    thresholds: dict[str, float]
    counts: dict[str, Any]
    data_hash: str
    feature_hash: str

    @property
    def trainable(self) -> bool:
        """Whether models can be trained as of this partition."""
        return self.split is not None

    @property
    def problem_hash(self) -> str:
        """Digest of the whole plan: rows, cut, thresholds and features."""
        return hash_bytes(self.to_json())

    @property
    def status(self) -> str:
        """``trainable`` or ``not_trainable``."""
        return "trainable" if self.trainable else "not_trainable"

    def to_json(self) -> bytes:
        """Write the stored form."""
        body = {
            "schema_version": SPLITS_SCHEMA_VERSION,
            "as_of": self.as_of,
            "status": self.status,
            "reason": self.reason,
            "split": self.split.to_dict() if self.split else None,
            "thresholds": self.thresholds,
            "counts": self.counts,
            "data_hash": self.data_hash,
            "feature_hash": self.feature_hash,
        }
        return json.dumps(body, indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SplitPlan:
        """Read the stored form.

        Raises:
            ChainError: the bytes are no plan of this version.
        """
        try:
            body = json.loads(data)
            if body["schema_version"] != SPLITS_SCHEMA_VERSION:
                raise ChainError(f"splits of schema version {body['schema_version']}: re-materialize them")
            split = Split.from_dict(body["split"]) if body["split"] else None
            names = ("as_of", "reason", "thresholds", "counts", "data_hash", "feature_hash")
            return cls(split=split, **{name: body[name] for name in names})
        except (ValueError, KeyError, TypeError) as error:
            raise ChainError(f"splits cannot be read: {error!r}") from error


def plan_split(lake: Lake, spec: TimescaleSpec, partition_key: str) -> SplitPlan:
    """Decide how the trailing span of an as-of partition is cut, or say why nothing can be trained on it.

    Raises:
        LakeError: the as-of partition has no features or no labels: an error, not a lack of data.
    """
    counts: dict[str, Any] = {}
    digest = ""
    try:
        dataset, digest = _dataset_and_hash(lake, spec, partition_key)
        counts["left_out"] = dict(dataset.dropped)
        split = split_times(int(dataset.t_ns.min()), int(dataset.t_ns.max()) + spec.bar_ns, spec)
        problem = pose_problem(dataset, split, spec)
    except LearningError as error:
        return SplitPlan(partition_key, str(error), None, {}, counts, digest, feature_hash(spec))
    counts["left_out"] = dict(problem.dataset.dropped)
    for name in ("train", "validation", "test"):
        rows, y = problem.part(getattr(split, name))
        counts[name] = {"rows": len(rows), "positives": int(y.sum())}
    return SplitPlan(partition_key, "", split, problem.thresholds, counts, digest, feature_hash(spec))


def read_plan(lake: Lake, spec: TimescaleSpec, partition_key: str) -> SplitPlan:
    """Read the stored plan of an as-of partition.

    Raises:
        LakeError: `splits` was never materialized for it.
    """
    return SplitPlan.from_json(lake.read_bytes(f"{spec.name}/splits", partition_key, "json"))


def read_problem(lake: Lake, spec: TimescaleSpec, plan: SplitPlan) -> Problem:
    """Pose the learning problem that a plan describes, on the very rows it was made from.

    Raises:
        ChainError: features, labels or the configuration changed since the plan was made, or the plan is
            not trainable.
    """
    if plan.split is None:
        raise ChainError(f"{spec.name} as of {plan.as_of} is not trainable: {plan.reason}")
    dataset, found = _dataset_and_hash(lake, spec, plan.as_of)
    if (found, feature_hash(spec)) != (plan.data_hash, plan.feature_hash):
        raise ChainError(
            f"{spec.name}/splits of {plan.as_of} was made from other rows (data {plan.data_hash}, now "
            f"{found}; features {plan.feature_hash}, now {feature_hash(spec)}): materialize splits again"
        )
    problem = pose_problem(dataset, plan.split, spec)
    if problem.thresholds != plan.thresholds:
        raise ChainError(
            f"{spec.name}/splits of {plan.as_of} was made with other thresholds ({plan.thresholds}, now "
            f"{problem.thresholds}): materialize splits again"
        )
    return problem


def model_asset(spec: TimescaleSpec, model: str) -> str:
    """Name a model's partitions in the lake."""
    return f"{spec.name}/model_{model}"


def outdated_models(lake: Lake, spec: TimescaleSpec, plan: SplitPlan, names: Iterable[str]) -> list[str]:
    """Name the models that are missing as of the plan's partition, or were trained by another plan.

    Raises:
        ModelError: a stored file is no model file.
    """
    from cryptovol_dagster.core.models.base import read_parts

    def is_current(name: str) -> bool:
        if not lake.exists(model_asset(spec, name), plan.as_of, "zip"):
            return False
        meta, _ = read_parts(lake.read_bytes(model_asset(spec, name), plan.as_of, "zip"))
        return meta.problem_hash == plan.problem_hash

    return [name for name in names if not is_current(name)]


def read_models(lake: Lake, spec: TimescaleSpec, plan: SplitPlan, names: Iterable[str]) -> dict[str, Model]:
    """Read the models of the plan's partition; a model trained by another plan may have seen test rows.

    Raises:
        ChainError: a model is missing or was trained by another plan.
        ModelError: a stored file is no model file.
    """
    from cryptovol_dagster.core.models import load_model

    names = list(names)
    if outdated := outdated_models(lake, spec, plan, names):
        raise ChainError(
            f"model {', '.join(outdated)} of {plan.as_of} is missing or was trained by other splits: "
            "materialize it again"
        )
    return {name: load_model(lake.read_bytes(model_asset(spec, name), plan.as_of, "zip")) for name in names}


def hash_bytes(content: bytes) -> str:
    """Digest stored bytes, for names of versions."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def hash_dataset(dataset: Dataset) -> str:
    """Digest every row: keys, both σ and features, in order."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update("\n".join([*dataset.features.columns, *dataset.products]).encode())
    codes, _ = pd.factorize(dataset.product, sort=True)
    features = (column.to_numpy() for _, column in dataset.features.items())
    for array in (dataset.t_ns, codes.astype(np.int64), dataset.sigma, dataset.trailing_sigma, *features):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()

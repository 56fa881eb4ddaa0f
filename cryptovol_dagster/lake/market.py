"""Typed reads of the chain's partitions: lake tables in, the core's values out.

Belongs here: how far back an hour must read, and joining partitions into what a core function takes. Does
not belong
here: any computation, or anything that knows of Dagster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cryptovol_dagster.core.evaluation.sufficiency import assess_training
from cryptovol_dagster.core.features.catalogue import feature_hash, lookback_bars
from cryptovol_dagster.core.learning.dataset import Dataset, Problem, join_rows, pose_problem
from cryptovol_dagster.core.learning.labels import LearningError, label_hash, rows_labelled_by
from cryptovol_dagster.core.learning.splits import Split, split_times
from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.ticks import TickColumns, TradeColumns
from cryptovol_dagster.core.specs import HOUR_S, NS, TimescaleSpec
from cryptovol_dagster.lake.files import Lake, hour_window, partition_at, partition_window
from cryptovol_dagster.lake.row_cache import asset_name, between, read_rows

if TYPE_CHECKING:
    from cryptovol_dagster.core.models import Model

LEDGER = "gap_ledger"
#: Beside the ticks of an hour lie its trades, and each product's first tick after it.
TICKS, TRADES, NEXT_TICKS = "ticks", "trades", "next_ticks"
SPLITS_SCHEMA_VERSION = 1
#: Where among a plan's counts it stands what its training rows can teach.
SUFFICIENCY = "sufficiency"
#: What a plan comes to.
TRAINABLE, NOT_TRAINABLE, CARRIED = "trainable", "not_trainable", "carried"


class ChainError(Exception):
    """Stored partitions do not fit together; the message is one line."""


def partitions_of(bars: int, spec: TimescaleSpec) -> int:
    """Give how many partitions (hours, days) before its own `bars` bars reach back."""
    return -(-bars * spec.bar_ns // spec.partition_ns)


def feature_look_back(spec: TimescaleSpec) -> int:
    """Give how many partitions of bars before its own the features of a partition read."""
    return partitions_of(lookback_bars(spec), spec)


def label_look_back(spec: TimescaleSpec) -> int:
    """Give how many partitions of bars before its own labels read: their rows begin H before it."""
    return partitions_of(2 * spec.horizon_bars, spec)


def training_look_back(spec: TimescaleSpec) -> int:
    """Give how many partitions of features and labels before its own an as-of partition learns from."""
    return -(-(spec.splits.train_span_s + spec.splits.test_span_s) * NS // spec.partition_ns)


def window_back(partition_key: str, count: int) -> tuple[int, int]:
    """Give the window of a partition together with `count` partitions before it."""
    start_ns, end_ns = partition_window(partition_key)
    return start_ns - count * (end_ns - start_ns), end_ns


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


def read_candles(lake: Lake, spec: TimescaleSpec, partition_key: str) -> pd.DataFrame:
    """Read the candles of a day and of the one before it, whose last close carries over midnight.

    Raises:
        LakeError: the day's candles were never written.
    """
    asset = asset_name(spec, "candles")
    lake.require(asset, [partition_key])
    return lake.read_table(asset, *window_back(partition_key, 1)).unify_dictionaries().to_pandas()


def read_bars(lake: Lake, spec: TimescaleSpec, partition_key: str, look_back: int) -> BarGrid:
    """Read the bars of a partition and of the unbroken run of at most `look_back` partitions before it.

    Raises:
        LakeError: the partition itself was never written.
    """
    asset, length_ns = asset_name(spec, "bars"), spec.partition_ns
    lake.require(asset, [partition_key])
    start_ns, end_ns = partition_window(partition_key)
    while look_back and lake.exists(asset, partition_at(start_ns - length_ns, length_ns)):
        start_ns, look_back = start_ns - length_ns, look_back - 1
    return BarGrid.from_frame(lake.read_table(asset, start_ns, end_ns).to_pandas(), bar_ns=spec.bar_ns)


def read_mids(lake: Lake, spec: TimescaleSpec, start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame | None:
    """Read start, product and mid of the bars of a stretch, for a picture; None where none were written."""
    asset, window = asset_name(spec, "bars"), (start.value, end.value + 1)
    if not lake.fingerprint(asset, *window):
        return None
    return lake.read_table(asset, *window, columns=["bar_start", "product", "close"]).to_pandas()


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
    for asset in (asset_name(spec, "features"), asset_name(spec, "labels")):
        lake.require(asset, [partition_key])
    return _rows_and_hash(lake, spec, *window_back(partition_key, training_look_back(spec)))


def read_span(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> Dataset:
    """Join features and labels of a span of whole partitions, as far as they were written.

    Raises:
        LakeError: a file cannot be read.
        ChainError: some partitions were made under another configuration.
        NoRows: nothing has both features and a label.
    """
    return _rows_and_hash(lake, spec, start_ns, end_ns)[0]


def read_matured(lake: Lake, spec: TimescaleSpec, partition_key: str) -> Dataset:
    """Join the rows whose labels a partition holds, in order of time; there may be none.

    Nothing of it is kept: the window that training learns from stays at hand.

    Raises:
        LakeError: the partition has no labels or no features, or a file cannot be read.
        ChainError: some partitions were made under another configuration.
        LearningError: a column is missing, or a key appears twice.
    """
    labels, features = asset_name(spec, "labels"), asset_name(spec, "features")
    window = partition_window(partition_key)
    span = rows_labelled_by(*window, spec)
    for asset in (labels, features):
        lake.require(asset, [partition_key])
    _require_version(lake, labels, window, label_hash(spec))
    _require_version(lake, features, (span[0], window[1]), feature_hash(spec))
    rows = lake.read_table(features, *span).to_pandas()
    return join_rows(between(rows, *span), lake.read_table(labels, *window).to_pandas(), spec)


def _rows_and_hash(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> tuple[Dataset, str]:
    assets = asset_name(spec, "features"), asset_name(spec, "labels")
    for asset, version in zip(assets, (feature_hash(spec), label_hash(spec)), strict=True):
        _require_version(lake, asset, (start_ns, end_ns), version)
    return read_rows(lake, spec, start_ns, end_ns)


def _require_version(lake: Lake, asset: str, window: tuple[int, int], version: str) -> None:
    """Make sure that rows are never joined with others that mean something else.

    Raises:
        ChainError: some hours were made under another configuration or by another version of the code.
    """
    outdated = [key for key, found in lake.versions(asset, *window).items() if found != version]
    if outdated:
        raise ChainError(
            f"{asset} of {len(outdated)} partitions, {outdated[0]} … {outdated[-1]}, was made under another "
            "configuration: materialize these again"
        )


@dataclass(frozen=True)
class SplitPlan:
    """What the `splits` asset stores for an as-of partition: where to cut, on which data, or why not.

    Attributes:
        as_of: the partition.
        reason: why nothing is trained; empty where it is.
        split: the ranges; None where nothing is trained.
        thresholds: τ per product, from training rows.
        counts: rows and positives of each part, rows that the join left out, by reason, the features that
            training knows next to nothing of, and what the training rows can teach.
        data_hash: of every row of the dataset.
        feature_hash: of the feature set.
        carried_from: between two trainings of a run over a range, the hour whose models hold on; empty when
            no earlier hour has any. None where training was tried.
    """

    as_of: str
    reason: str
    split: Split | None
    thresholds: dict[str, float]
    counts: dict[str, Any]
    data_hash: str
    feature_hash: str
    carried_from: str | None = None

    @property
    def trainable(self) -> bool:
        """Whether models are trained as of this partition."""
        return self.split is not None

    @property
    def problem_hash(self) -> str:
        """Digest of the whole plan: rows, cut, thresholds and features, and nothing that is only shown."""
        counts = {name: found for name, found in self.counts.items() if name != SUFFICIENCY}
        return hash_bytes(replace(self, counts=counts).to_json())

    @property
    def status(self) -> str:
        """``trainable``, ``not_trainable``, or ``carried``: the models of an earlier hour hold on."""
        if self.carried_from is not None:
            return CARRIED
        return TRAINABLE if self.trainable else NOT_TRAINABLE

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
        if self.carried_from is not None:  # nowhere else, so that plans of before are what they were
            body["carried_from"] = self.carried_from
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
            carried_from = body.get("carried_from")
            return cls(split=split, carried_from=carried_from, **{name: body[name] for name in names})
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
    counts["features_left_out"] = list(problem.left_out)
    for name in ("train", "validation", "test"):
        rows, y = problem.part(getattr(split, name))
        counts[name] = {"rows": len(rows), "positives": int(y.sum())}
    counts[SUFFICIENCY] = assess_training(problem).to_dict()
    return SplitPlan(partition_key, "", split, problem.thresholds, counts, digest, feature_hash(spec))


def trains_at(spec: TimescaleSpec, partition_key: str) -> bool:
    """Tell whether a run over a range trains as of a partition, besides its last one.

    Partitions are counted from the epoch, so that every range that contains this one agrees.
    """
    number = partition_window(partition_key)[0] // spec.partition_ns
    return number % spec.retrain_every == spec.retrain_phase


def carry_plan(spec: TimescaleSpec, partition_key: str, trained: str) -> SplitPlan:
    """Say for a partition between two trainings whose models hold on.

    Args:
        spec: the timescale.
        partition_key: the hour or day.
        trained: the newest earlier partition that has models; empty where none has.
    """
    unit, word = ("h", "hour") if spec.partition_s == HOUR_S else ("days", "day")
    holding = f"the models of {trained} hold on" if trained else f"no earlier {word} has models"
    reason = f"a run over a range trains every {spec.retrain_every} {unit} and at its end; {holding}"
    return SplitPlan(partition_key, reason, None, {}, {}, "", feature_hash(spec), carried_from=trained)


def newest_trained(lake: Lake, spec: TimescaleSpec, names: Iterable[str], before: str) -> str:
    """Name the newest hour before `before` of which all these models are there; empty where there is none.

    Raises:
        ChainError: a plan on the way is of another version.
        ModelError: a stored file is no model file.
    """
    names = list(names)
    for key in reversed(lake.partitions(f"{spec.name}/splits", "json")):
        if key < before:
            plan = read_plan(lake, spec, key)
            # Splits may have been made for a report alone.
            if plan.trainable and not outdated_models(lake, spec, plan, names):
                return key
    return ""


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
        raise ChainError(f"{spec.name} as of {plan.as_of} is {plan.status}: {plan.reason}")
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

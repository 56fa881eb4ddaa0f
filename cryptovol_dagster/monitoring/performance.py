"""Scores of the champion compared with the labels that matured in a partition, and the drift of both.

The champion is the one *before* the partition, so the rows were used neither for its training nor for its
choice. The rows are those whose labels are in the partition: all that matured in it.

Beside the numbers the scored rows are stored (``performance_rows``), thinned to a twelfth of the horizon. So
longer spans pool the scores of their time, and nothing is scored again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from cryptovol_dagster.champion.scoring import score
from cryptovol_dagster.core.drift.distance import MIN_ROWS, ProductDrift, distance, judge, worst_of
from cryptovol_dagster.core.drift.limits import LimitsInForce, limits_in_force
from cryptovol_dagster.core.evaluation.matured import (
    CHAMPION,
    PERSISTENCE,
    measure,
    scaled_volatility,
    thinned,
)
from cryptovol_dagster.core.features.catalogue import feature_names, features_version, optional_feature_names
from cryptovol_dagster.core.learning.labels import SIGMA_FLOOR, is_spike, label_hash
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.models.base import why_unscorable
from cryptovol_dagster.core.promotion.decision import Champion
from cryptovol_dagster.core.specs import DAY_S, NS, TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake import datasets, decisions
from cryptovol_dagster.lake.files import FileState, Lake, LakeError
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.monitoring import drift
from cryptovol_dagster.monitoring.drift import DriftWindow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.learning.dataset import Dataset
    from cryptovol_dagster.core.models import Model

#: Of the stored numbers; the part that calibrates later hours is read by `drift.past_pairs`, which asks for
#: the version of the drift numbers, so both are one.
SCHEMA_VERSION = drift.SCHEMA_VERSION
#: Columns that may drift besides features.
SCORE, LN_SIGMA = "score", "ln_sigma"
OUTCOMES = (SCORE, LN_SIGMA)
#: Status of a partition.
SCORED, NO_CHAMPION, NO_ROWS = "scored", "no_champion", "no_rows"
#: Spans pooled, up to the end of the partition.
POOLED_S = {"24 h": DAY_S, "7 d": 7 * DAY_S}
#: More rows than this of a span are thinned: neighbours are nearly equal, and the bootstrap is slow.
MAX_POOLED_ROWS = 20_000
#: Fewer than in an evaluation: each partition has such intervals, and the next one has nearly the same.
RESAMPLES = 200
#: One row per twelfth of the horizon is kept: neighbours within it share eleven twelfths of their label.
_KEPT_PER_HORIZON = 12


class InForce(NamedTuple):
    """The champion at the start of a partition.

    Attributes:
        champion: which model.
        decided_as_of: the partition whose decision it is.
        model: the model itself.
    """

    champion: Champion
    decided_as_of: str
    model: Model


@dataclass(frozen=True)
class OutcomeDrift:
    """Distance of the champion's scores, and of the volatility to predict, from those of the reference hours.

    Attributes:
        reference_hours: hours before that had rows, oldest first.
        products: rows and distances of each product, in the columns `OUTCOMES`.
        columns: the worst product of each; None where there is no distance.
        without: why a column has none.
        limits: their limits.
        over: the columns over their limits.
    """

    reference_hours: tuple[str, ...]
    products: dict[str, ProductDrift]
    columns: dict[str, float | None]
    without: dict[str, str]
    limits: LimitsInForce
    over: tuple[str, ...]


def performance_asset(spec: TimescaleSpec) -> str:
    """Return the name of the numbers in the lake."""
    return spec.asset("performance")


def rows_asset(spec: TimescaleSpec) -> str:
    """Return the name of the scored rows in the lake."""
    return f"{performance_asset(spec)}_rows"


def champion_before(lake: Lake, spec: TimescaleSpec, key: str) -> InForce | str:
    """Load the champion at the start of a partition, or return why none can score its rows.

    Raises:
        LakeError: its file is missing.
        DecisionError: the decision is of no version known here.
        ModelError: the file is not a model file.
    """
    from cryptovol_dagster.core.models import load_model

    decision = decisions.newest_decision(lake, spec, before=key)
    if decision is None:
        return f"nothing was decided before {key}"
    if decision.champion is None:
        return f"there was no champion as of {decision.as_of}"
    model = load_model(decisions.read_champion_file(lake, spec, decision.champion))
    if reason := why_unscorable(model, feature_names(spec), spec.reference_set):
        return f"champion {decision.champion} cannot score: {reason}"
    return InForce(decision.champion, decision.as_of, model)


def outcome_drift(
    lake: Lake, spec: TimescaleSpec, key: str, window: DriftWindow, in_force: InForce | str
) -> OutcomeDrift:
    """Compare scores and ln σ of an hour with those of the hours before it, a row a minute on either side.

    Both sides are scored by the same champion, so the distance of scores depends only on the market as the
    model sees it, not a promotion.

    Raises:
        LakeError: a file cannot be read.
        DriftError: a sample or past numbers cannot be read.
        ModelError: the champion refuses the rows.
    """
    hours = drift.partitions_before(key, window.reference_hours)
    sampled = {
        SCORE: _score_samples(lake, spec, [*hours, key], in_force),
        LN_SIGMA: _label_samples(lake, spec, [*hours, key]),
    }
    distances: dict[str, dict[str, float | None]] = {}
    rows: dict[str, tuple[int, int]] = {}
    reference: dict[str, None] = {}
    without = {SCORE: in_force} if isinstance(in_force, str) else {}
    for column, samples in sampled.items():
        now = samples.pop(key, {})
        if column in without:
            continue
        if not now:
            without[column] = f"no product has {MIN_ROWS} rows in {key}"
        elif reason := drift.why_no_reference(len(samples), window.reference_hours):
            without[column] = reason
        else:
            reference |= dict.fromkeys(samples)
            for product, values in now.items():
                before = [found[product] for found in samples.values() if product in found]
                if before:
                    joined = np.concatenate(before)
                    distances.setdefault(product, dict.fromkeys(OUTCOMES))[column] = distance(values, joined)
                    rows[product] = (values.size, joined.size)
    products = {name: ProductDrift(*rows[name], found) for name, found in sorted(distances.items())}
    columns = dict.fromkeys(OUTCOMES) | worst_of(products)
    for column in OUTCOMES:
        if columns[column] is None:
            without.setdefault(column, f"no product of {key} has rows in the hours before")
    pairs = drift.past_pairs(lake, performance_asset(spec), key, window, _version(spec), products)
    limits = limits_in_force(pairs, OUTCOMES, window.fixed)
    over = tuple(name for name in OUTCOMES if judge({name: columns[name]}, limits).share_over)
    return OutcomeDrift(tuple(sorted(reference)), products, columns, without, limits, over)


def _version(spec: TimescaleSpec) -> str:
    return f"{features_version(spec)}-{label_hash(spec)}"


def _score_samples(
    lake: Lake, spec: TimescaleSpec, keys: list[str], in_force: InForce | str
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Score the sample of each hour, by hour and product."""
    if isinstance(in_force, str):
        return {}
    samples = drift.read_samples(lake, spec, keys)
    if not samples:
        return {}
    frame = pa.concat_tables(samples.values()).to_pandas()
    hour = np.repeat(list(samples), [sample.num_rows for sample in samples.values()])
    scores = _scores(frame, spec, in_force.model)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for (key, product), own in frame.groupby([hour, "product"], observed=True).indices.items():
        known = scores[own][~np.isnan(scores[own])]
        if known.size:
            found.setdefault(str(key), {})[str(product)] = known
    return found


def _scores(rows: pd.DataFrame, spec: TimescaleSpec, model: Model) -> NDArray[np.float64]:
    """Score rows of features; NaN where a value is missing that a model must have."""
    names, optional = feature_names(spec), optional_feature_names(spec)
    needed = [name for name in names if name not in optional]
    usable = np.isfinite(rows.loc[:, needed].to_numpy(np.float64, na_value=np.nan)).all(axis=1)
    found = np.full(len(rows), np.nan)
    found[usable] = score(model, rows.loc[usable, list(names)].reset_index(drop=True))
    return found


def _label_samples(
    lake: Lake, spec: TimescaleSpec, keys: list[str]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Read ln σ of one row per minute of each hour, by hour and product, without hours of other labels."""
    asset, wanted = spec.asset("labels"), label_hash(spec)
    span = partition_window(keys[0])[0], partition_window(keys[-1])[1]
    versions = lake.versions(asset, *span)
    samples = {
        state[0]: _label_sample(lake, asset, state)
        for state in lake.fingerprint(asset, *span)
        if versions.get(state[0]) == wanted
    }
    return {key: sample for key, sample in samples.items() if sample}


@lru_cache(maxsize=1_000)
def _label_sample(lake: Lake, asset: str, state: FileState) -> dict[str, NDArray[np.float64]]:
    """Read the sample of an hour once while its file is unchanged: each later hour needs it."""
    table = lake.read_table(asset, *partition_window(state[0]), columns=["product", "sigma", "reason"])
    frame = table.to_pandas()
    found: dict[str, NDArray[np.float64]] = {}
    for product, own in frame.loc[frame["reason"] == 0].groupby("product", observed=True):
        if len(own) >= MIN_ROWS:
            kept = own["sigma"].to_numpy(np.float64)[:: max(1, len(own) // drift.SAMPLE_ROWS)]
            found[str(product)] = np.log(np.maximum(kept, SIGMA_FLOOR))
    return found


def rows_with_outcomes(
    lake: Lake, spec: TimescaleSpec, keys: list[str], in_force: InForce | str
) -> pd.DataFrame:
    """Read the valid rows of hours, features and the columns `OUTCOMES`, as far as these are known.

    Raises:
        LakeError: none of the hours has features, or a file cannot be read.
        DriftError: an hour's features are of another version.
        ModelError: the champion refuses the rows.
    """
    rows = drift.valid_rows(lake, spec, keys, also=("bar_start",))
    rows[SCORE] = np.nan if isinstance(in_force, str) else _scores(rows, spec, in_force.model)
    asset, wanted = spec.asset("labels"), label_hash(spec)
    span = partition_window(keys[0])[0], partition_window(keys[-1])[1]
    columns = ["bar_start", "product", "sigma"]
    labels = [
        lake.read_table(asset, *partition_window(key), columns=columns).to_pandas()
        for key, version in lake.versions(asset, *span).items()
        if version == wanted
    ]
    if labels:
        known = pd.concat(labels)
        by_row = pd.Series(
            known["sigma"].to_numpy(np.float64), [known["bar_start"], known["product"].astype(str)]
        )
        sigma = by_row.reindex([rows["bar_start"], rows["product"].astype(str)]).to_numpy(np.float64)
        rows[LN_SIGMA] = np.log(np.maximum(sigma, SIGMA_FLOOR))
    else:
        rows[LN_SIGMA] = np.nan
    return rows.drop(columns=["bar_start", "product"])


def assess(
    lake: Lake, spec: TimescaleSpec, key: str, window: DriftWindow, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Score the rows that matured in a partition, store them, and measure the champion by them.

    Returns:
        What `performance` stores: `champion`, `partition` (its rows alone) and `pooled` (by span), each as
        `Performance.to_dict`, and the drift of scores and ln σ in the form of the drift numbers.

    Raises:
        LakeError: the partition has no features or labels, or a file cannot be read.
        ChainError: some are of another configuration.
        DriftError: a sample or past numbers cannot be read.
        DecisionError: a decision is of no version known here.
        ModelError: the champion cannot be read, or refuses the rows.
    """
    in_force = champion_before(lake, spec, key)
    rows = datasets.read_matured(lake, spec, key)
    moved = outcome_drift(lake, spec, key, window, in_force)
    # Rows scored by an earlier run must not be pooled where this run scores none.
    lake.delete(rows_asset(spec), key)
    scored = None if isinstance(in_force, str) else _scored(rows, in_force.model)
    if isinstance(in_force, str):
        status, reason = NO_CHAMPION, in_force
    elif scored is None:
        status, reason = NO_ROWS, f"no row of a product of {in_force.champion} matured in {key}"
    else:
        status, reason = SCORED, ""
        every = max(1, spec.horizon_bars // _KEPT_PER_HORIZON)
        lake.write_table(rows_asset(spec), key, _table(thinned(scored, every), in_force.champion))
    numbers = {"horizon_s": spec.horizon_ns / NS, "resamples": resamples, "seed": seed}
    pooled = {name: _pooled(lake, spec, key, span_s) for name, span_s in POOLED_S.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "as_of": key,
        "status": status,
        "reason": reason,
        "champion": None if isinstance(in_force, str) else _named(in_force),
        "partition": None if scored is None else measure(scored, **numbers).to_dict(),
        "pooled": {
            name: None if found is None else measure(found[0], **numbers).to_dict() | {"champions": found[1]}
            for name, found in pooled.items()
        },
        **drift_body(spec, window, moved),
    }


def _named(in_force: InForce) -> dict[str, Any]:
    champion = in_force.champion
    return {
        "model": champion.model,
        "as_of": champion.as_of,
        "problem_hash": champion.problem_hash,
        "registry_version": champion.registry_version,
        "unproven": champion.unproven,
        "decided_as_of": in_force.decided_as_of,
    }


def drift_body(spec: TimescaleSpec, window: DriftWindow, moved: OutcomeDrift) -> dict[str, Any]:
    """Return the drift of scores and ln σ in the stored form of the drift numbers."""
    hours = moved.reference_hours
    return {
        "version": _version(spec),
        "reference": {
            "wanted": window.reference_hours,
            "hours": len(hours),
            "first": hours[0] if hours else None,
            "last": hours[-1] if hours else None,
        },
        "products": {
            name: {"rows": found.rows, "reference_rows": found.reference_rows}
            for name, found in moved.products.items()
        },
        "columns": moved.columns,
        "without": moved.without,
        "over": list(moved.over),
        **moved.limits.to_dict(),
    }


def _scored(rows: Dataset, model: Model) -> ScoredRows | None:
    """Score the rows of products the model knows, by its thresholds; None without any."""
    thresholds = dict(model.meta.thresholds)
    known = rows.rows(np.isin(rows.product.astype(str), list(thresholds)))
    if not len(known):
        return None
    scores = {
        CHAMPION: score(model, known.features),
        PERSISTENCE: scaled_volatility(known.trailing_sigma, known.product, thresholds),
    }
    return ScoredRows(known.t_ns, known.bar_ns, is_spike(known.sigma, known.product, thresholds), scores)


def _table(rows: ScoredRows, champion: Champion) -> pa.Table:
    frame = pd.DataFrame({"t_ns": rows.t_ns, "bar_ns": rows.bar_ns, "y": rows.y, **rows.scores})
    return to_table(frame.assign(model=f"{champion.model} of {champion.as_of}"))


def _pooled(lake: Lake, spec: TimescaleSpec, key: str, span_s: int) -> tuple[ScoredRows, list[str]] | None:
    """Join the rows scored in a span that ends with a partition, and return the names of their champions."""
    _, end_ns = partition_window(key)
    start_ns = end_ns - max(span_s * NS, spec.partition_ns)
    parts = [
        _rows_of(lake, rows_asset(spec), state)
        for state in lake.fingerprint(rows_asset(spec), start_ns, end_ns)
    ]
    if not parts:
        return None
    frame = pa.concat_tables(parts).to_pandas()
    bar_ns = int(frame["bar_ns"].max())
    scores = {name: frame[name].to_numpy(np.float64) for name in (CHAMPION, PERSISTENCE)}
    rows = ScoredRows(frame["t_ns"].to_numpy(np.int64), bar_ns, frame["y"].to_numpy(bool), scores)
    every = -(-len(frame) // MAX_POOLED_ROWS)
    return thinned(rows, every), [str(name) for name in pd.unique(frame["model"])]


@lru_cache(maxsize=200)
def _rows_of(lake: Lake, asset: str, state: FileState) -> pa.Table:
    """Read a partition's scored rows once while their file is unchanged."""
    return lake.read_table(asset, *partition_window(state[0]))


def read_performance(lake: Lake, spec: TimescaleSpec, key: str) -> dict[str, Any]:
    """Read the stored numbers of a partition.

    Raises:
        LakeError: there are none, or the file cannot be read.
        OtherSchema: they are of another schema version.
        DriftError: the file is not JSON.
    """
    asset = performance_asset(spec)
    found = drift.read_numbers(lake, asset, key)
    if found is None:
        raise LakeError(f"{asset} lacks partition {key}: materialize it first")
    return found


def to_bytes(body: dict[str, Any]) -> bytes:
    """Return the stored form."""
    return json.dumps(body, indent=2, allow_nan=False).encode()

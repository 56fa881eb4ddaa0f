"""Archived scores of an hour compared with its labels, and with the rows that the pipeline computed.

Rows are those whose labels are in the partition, as in `performance`. Unlike there, nothing is scored to
measure quality: the probabilities are those that were published in time. The champion's file is used for its
thresholds, and to check that the same model returns the published probability for the lake's row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cryptovol_dagster.champion.scoring import score
from cryptovol_dagster.core.features.catalogue import feature_names, features_version
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.learning.labels import label_hash, rows_labelled_by
from cryptovol_dagster.core.live import outcomes, parity
from cryptovol_dagster.core.live.outcomes import MODEL, Thresholds
from cryptovol_dagster.core.live.parity import Parity
from cryptovol_dagster.core.live.reasons import OK
from cryptovol_dagster.core.promotion.decision import Champion
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.lake import datasets, decisions
from cryptovol_dagster.lake.files import ROLLED_BACK, Lake, LakeError
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.lake.raw_ticks import RawStore
from cryptovol_dagster.lake.row_cache import between
from cryptovol_dagster.monitoring.performance import RESAMPLES
from ingestor.archive.layout import ClosedHour
from ingestor.envelope import TICKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.models import Model

SCHEMA_VERSION = 1
#: Status of a partition.
MEASURED, NO_SCORES = "measured", "no_scores"
#: Clocks by which a deadline counts: the wall clock, or that on which a recorded market was played.
WALL, PLAYED = "wall", "played"
#: A feed that is received this long after its event time, or before it, is a market that is played.
LIVE_WITHIN_NS = 600 * NS
_STORED = (
    "state", "probability", "flag", "published_at_ns", "revision", "episode", "first_ns", "bar_end_wall_ns",
    "revisions", "final_probability", "final_reason", "final_revision", "sigma", "trailing_sigma", "known",
    "y", *MODEL,
)  # fmt: skip
_Key = tuple[str, ...]


def outcomes_asset(spec: TimescaleSpec) -> str:
    """Return the name of numbers and rows in the lake."""
    return spec.asset("live_outcomes")


@dataclass(frozen=True)
class Published:
    """Archived scores of the bars of a partition.

    Attributes:
        settled: of `outcomes.settle`.
        messages: number of archived messages.
        clock: `WALL` or `PLAYED`.
        closed: record of the hour's scores; None while more of them may come.
    """

    settled: pd.DataFrame
    messages: int
    clock: str
    closed: ClosedHour | None


class Models:
    """The models that scores name, each loaded once from the copies that the decisions kept."""

    def __init__(self, lake: Lake, spec: TimescaleSpec, until: str) -> None:
        """Load nothing yet.

        Args:
            lake: where decisions and model files are.
            spec: the chain.
            until: the partition of the scores; later decisions are not read.
        """
        self._lake, self._spec, self._until = lake, spec, until
        self._loaded: dict[_Key, Model | str] = {}

    def find(self, key: _Key) -> Model | str:
        """Return a model by kind, as-of partition and version, or why it cannot be read.

        Raises:
            DecisionError: a decision is of no version known here.
        """
        if key not in self._loaded:
            self._loaded[key] = self._load(*key)
        return self._loaded[key]

    def thresholds(self, keys: list[_Key]) -> Thresholds:
        """Return the thresholds of models."""
        found = {key: self.find(key) for key in keys}
        return Thresholds(
            {key: model.meta.thresholds for key, model in found.items() if not isinstance(model, str)},
            {key: reason for key, reason in found.items() if isinstance(reason, str)},
        )

    def _load(self, kind: str, as_of: str, version: str) -> Model | str:
        from cryptovol_dagster.core.models import load_model

        named: dict[tuple[str, str, str], bytes] = {}
        for champion in self._named(kind, as_of):
            if champion.identity in named:
                continue
            try:
                content = decisions.read_model_file(self._lake, self._spec, champion)
            except (LakeError, datasets.ChainError):
                continue
            named[champion.identity] = content
            if version in (champion.registry_version, f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"):
                return load_model(content)
        # A version is registered after the decision was written; one model of a kind and partition is it.
        if len(named) == 1 and not version.startswith("sha256:"):
            return load_model(next(iter(named.values())))
        return f"the file of {kind} of {as_of}, version {version}, is not stored"

    def _named(self, kind: str, as_of: str) -> list[Champion]:
        """Return the champions and challengers of a kind and as-of time, by the decisions since."""
        asset, found = decisions.decision_asset(self._spec), []
        for suffix in (decisions.DECIDED, ROLLED_BACK):
            for key in self._lake.partitions(asset, suffix):
                if as_of <= key <= self._until:
                    decision = decisions.read_decision(self._lake, self._spec, key, suffix)
                    challenger = None if decision.contest is None else decision.contest.challenger
                    found += [model for model in (decision.champion, challenger) if model is not None]
        return [model for model in found if (model.model, model.as_of) == (kind, as_of)]


def read_published(
    raw: RawStore, spec: TimescaleSpec, key: str, span: tuple[int, int], deadline_ns: int
) -> Published:
    """Read the scores of the bars that start in a span, and settle them.

    Args:
        raw: raw storage.
        spec: the chain.
        key: the partition.
        span: bar starts, half-open.
        deadline_ns: how long after its bar's end a score counts.

    Raises:
        ArchiveError: a file of raw storage cannot be read.
    """
    ends = span[0] + spec.bar_ns, span[1] + spec.bar_ns
    scores = raw.scores(*ends).to_pandas()
    scores = scores[scores["chain"] == spec.name]
    market_clock = _market_clock(raw, *ends) if len(scores) else None
    due_ns = _on_the_wall(scores["bar_end_ns"].to_numpy(np.int64), market_clock) + deadline_ns
    settled = outcomes.settle(scores, due_ns)
    bar_ends = settled.index.get_level_values("bar_end_ns").to_numpy(np.int64)
    return Published(
        settled.assign(bar_end_wall_ns=_on_the_wall(bar_ends, market_clock)),
        messages=len(scores),
        clock=WALL if market_clock is None else PLAYED,
        closed=raw.closed_score_hour(key),
    )


def _market_clock(
    raw: RawStore, start_ns: int, end_ns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Return event times and when they were received where a market is played; None where it is live."""
    ticks = raw.reader.read(TICKS, start_ns, end_ns, ["event_time_ns", "received_at_ns"])
    ticks = ticks.drop_null()
    if not ticks.num_rows:
        return None
    event, received = (ticks[name].to_numpy() for name in ("event_time_ns", "received_at_ns"))
    if abs(float(np.median(received - event))) <= LIVE_WITHIN_NS:
        return None
    order = np.argsort(event, kind="stable")
    return event[order], received[order]


def _on_the_wall(
    bar_end_ns: NDArray[np.int64], market_clock: tuple[NDArray[np.int64], NDArray[np.int64]] | None
) -> NDArray[np.int64]:
    """Return when bars ended on the wall clock; of a played market, when its feed passed their end."""
    if market_clock is None:
        return bar_end_ns
    event, received = market_clock
    # Relative to the first: float64 does not hold nanoseconds since the epoch.
    passed = np.interp(bar_end_ns - event[0], event - event[0], received - received[0])
    return received[0] + passed.astype(np.int64)


def assess(
    lake: Lake,
    raw: RawStore,
    spec: TimescaleSpec,
    key: str,
    *,
    deadline_s: float,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Measure what was published about the rows that matured in a partition, and store these rows.

    Args:
        lake: features, labels, decisions and models.
        raw: the archived scores.
        spec: the chain.
        key: the partition.
        deadline_s: how long after its bar's end a score counts.
        seed: of the intervals.
        resamples: of the intervals.

    Returns:
        What `live_outcomes` stores: see docs/reference/formats.md.

    Raises:
        LakeError: the partition has no features or labels, or a file cannot be read.
        ChainError: some are of another configuration.
        ArchiveError: a file of raw storage cannot be read.
        DecisionError: a decision is of no version known here.
        ModelError: a champion's file cannot be read, or it refuses the rows.
    """
    window = partition_window(key)
    span = rows_labelled_by(*window, spec)
    lake.require(spec.asset("labels"), [key])
    lake.require(spec.asset("features"), [key])
    datasets.require_labels(lake, spec, window)
    datasets.require_features(lake, spec, (span[0], window[1]))
    published = read_published(raw, spec, key, span, round(deadline_s * NS))
    # Rows of an earlier run must not stay where this run stores none.
    lake.delete(outcomes_asset(spec), key)
    closed = published.closed
    body = {
        "schema_version": SCHEMA_VERSION,
        "as_of": key,
        "version": f"{features_version(spec)}-{label_hash(spec)}",
        "deadline_s": deadline_s,
        "clock": published.clock,
        "scores": {
            "messages": published.messages,
            "closed": closed is not None,
            "revision": None if closed is None else closed.revision,
        },
    }
    if published.settled.empty:
        nothing = {"status": NO_SCORES, "reason": f"no scores were published of the bars of {key}"}
        return body | nothing | {"pooled": None, "products": {}, "models": [], "parity": None}
    models = Models(lake, spec, key)
    thresholds = models.thresholds(_model_keys(published.settled))
    rows = outcomes.with_outcomes(_labels(lake, spec, window), published.settled, thresholds)
    lake.write_table(outcomes_asset(spec), key, _table(rows, spec), version=label_hash(spec))
    found = compared(lake, spec, published.settled, span, models)
    measured = _measured(rows, spec, thresholds, resamples=resamples, seed=seed)
    return body | {"status": MEASURED, "reason": ""} | measured | {"parity": found.to_dict()}


def _measured(
    rows: pd.DataFrame, spec: TimescaleSpec, thresholds: Thresholds, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Measure all rows, and without intervals those of each product and of each model."""

    def of(part: pd.DataFrame, draws: int = 0) -> dict[str, Any]:
        found = outcomes.measure_outcome(
            part, bar_ns=spec.bar_ns, horizon_ns=spec.horizon_ns, resamples=draws, seed=seed
        )
        return found.to_dict()

    return {
        "pooled": of(rows, resamples),
        "products": {str(name): of(part) for name, part in rows.groupby("product_id", observed=True)},
        "models": [
            {
                **dict(zip(MODEL, model, strict=True)),
                "without_labels": thresholds.lacking.get(model, ""),
                **of(rows.iloc[own]),
            }
            for model, own in outcomes.by_model(rows)
        ],
    }


def _labels(lake: Lake, spec: TimescaleSpec, window: tuple[int, int]) -> pd.DataFrame:
    columns = ["bar_start", "product", "sigma", "trailing_sigma"]
    found = lake.read_table(spec.asset("labels"), *window, columns=columns).to_pandas()
    return _keyed(found, spec).loc[:, ["product_id", "bar_end_ns", "sigma", "trailing_sigma"]]


def _keyed(frame: pd.DataFrame, spec: TimescaleSpec) -> pd.DataFrame:
    """Add the key columns of scores to a frame of the lake."""
    starts = frame["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64)
    return frame.assign(product_id=frame["product"].astype(str), bar_end_ns=starts + spec.bar_ns)


def _table(rows: pd.DataFrame, spec: TimescaleSpec) -> pa.Table:
    starts = pd.to_datetime(rows["bar_end_ns"] - spec.bar_ns, unit="ns", utc=True)
    keys = pd.DataFrame({"bar_start": starts, "product": pd.Categorical(rows["product_id"])})
    return to_table(pd.concat([keys, rows[list(_STORED)].astype({"flag": "boolean"})], axis=1))


def _model_keys(settled: pd.DataFrame) -> list[_Key]:
    """Return the models that a revision which counted, or a final one, names."""
    keys: dict[_Key, None] = {}
    for prefix in ("", "final_"):
        named = settled[[prefix + name for name in MODEL]].dropna().drop_duplicates()
        keys |= dict.fromkeys(tuple(map(str, row)) for row in named.itertuples(index=False))
    return list(keys)


def compared(
    lake: Lake, spec: TimescaleSpec, settled: pd.DataFrame, span: tuple[int, int], models: Models
) -> Parity:
    """Compare final revisions with the lake's rows, and probabilities with those of the same model there.

    Raises:
        LakeError: the partition has no features, or a file cannot be read.
        ModelError: a model refuses the rows.
    """
    final = settled.filter(like="final_").rename(columns=lambda name: name.removeprefix("final_"))
    final = final.reset_index()
    rows = between(lake.read_table(spec.asset("features"), *span).to_pandas(), *span)
    rows = _keyed(rows, spec).reset_index(drop=True)
    names = list(feature_names(spec))
    words = np.array([reason.name.lower() for reason in Reason], dtype=object)
    computed = rows[["product_id", "bar_end_ns"]].assign(
        reason=np.where(rows["valid"], OK, words[rows["reason"].to_numpy(np.int64)]),
        row_hash=row_hashes(rows[names].to_numpy(np.float64, na_value=np.nan)),
    )
    key = ["product_id", "bar_end_ns"]
    at = computed[key].merge(final[[*key, "probability", *MODEL]], how="left", on=key, validate="1:1")
    probability, without = np.full(len(rows), np.nan), np.full(len(rows), "", object)
    with_both = at["probability"].notna() & rows["valid"]
    for model, own in outcomes.by_model(at.where(with_both)):
        found = models.find(model)
        if isinstance(found, str):
            without[own] = found
        else:
            probability[own] = score(found, rows.loc[:, names].iloc[own].reset_index(drop=True))
    return parity.compare(
        final.loc[:, [*key, "reason", "row_hash", "probability"]],
        computed.assign(probability=probability, without=without),
    )


def headline(body: Mapping[str, Any]) -> str:
    """Return one line with the numbers of a partition that an operator reads first."""
    if body["status"] == NO_SCORES:
        return str(body["reason"])
    pooled, found = body["pooled"], body["parity"]
    share, delay = pooled["share_scored"], pooled["delay"]["p99_s"]
    return (
        f"{share:.2%} of {pooled['rows']:,} rows scored in time, delay p99 {delay:.2f} s; {found['equal']:,} "
        f"of {found['rows']:,} rows equal those of the lake"
    )


def to_bytes(body: dict[str, Any]) -> bytes:
    """Return the stored form."""
    return json.dumps(body, indent=2, allow_nan=False).encode()


def read_outcomes(lake: Lake, spec: TimescaleSpec, key: str) -> dict[str, Any]:
    """Read the stored numbers of a partition.

    Raises:
        LakeError: there are none, the file cannot be read, or is of another schema version.
    """
    asset = outcomes_asset(spec)
    try:
        body = json.loads(lake.read_bytes(asset, key, "json"))
    except ValueError as error:
        raise LakeError(f"{asset} of {key} cannot be read: {error}") from error
    if not isinstance(body, dict) or body.get("schema_version") != SCHEMA_VERSION:
        raise LakeError(f"{asset} of {key} is of another schema version: materialize it again")
    return body

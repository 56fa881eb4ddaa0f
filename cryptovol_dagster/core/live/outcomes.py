"""Published scores compared with what came: which revision counted, its quality, delay and revisions.

Nothing is scored here. A probability is the one that was published, and its label comes from the thresholds
of the model that published it, so a change of the model within an hour needs no special case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd

from cryptovol_dagster.core.evaluation.bench import onset_rows
from cryptovol_dagster.core.evaluation.matured import CHAMPION, PERSISTENCE, measure, scaled_volatility
from cryptovol_dagster.core.learning.labels import is_spike
from cryptovol_dagster.core.metrics.episodes import Episode, compare_episodes, match_episodes
from cryptovol_dagster.core.metrics.events import Market
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.specs import DAY_S, NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: State of a row whose counted revision has a probability; of one published after the deadline only; of one
#: that was never published. Any other state is the reason of the counted revision.
SCORED, TOO_LATE, NOT_PUBLISHED = "scored", "too_late", "not_published"
#: Columns that name the model of a score.
MODEL = ("model", "model_as_of", "model_version")
_KEY = ["product_id", "bar_end_ns"]


class Thresholds(NamedTuple):
    """Thresholds τ of the models that published, by `MODEL`; and why a model has none.

    Attributes:
        by_model: τ by product.
        lacking: reason by model.
    """

    by_model: Mapping[tuple[str, ...], Mapping[str, float]]
    lacking: Mapping[tuple[str, ...], str]


def settle(scores: pd.DataFrame, due_ns: NDArray[np.int64]) -> pd.DataFrame:
    """Return for each (product, bar) the revision that counted, the final one, and how often it was revised.

    The one that counted is the last revision published by the deadline.

    Args:
        scores: one row a message, in the columns of raw storage; closing records left out.
        due_ns: deadline of each message's bar, on the clock of `published_at_ns`, shape (n,).

    Returns:
        Index (product_id, bar_end_ns). The columns of `scores` are those of the revision that counted, null
        where none was published in time; with the prefix ``final_`` those of the last revision. `first_ns`
        is when the first revision was published, `first_probability` what it contained, `revisions` how many
        followed.

    Examples:
        >>> scores = pd.DataFrame(
        ...     {"product_id": "BTC-USD", "bar_end_ns": 0, "revision": [0, 1], "published_at_ns": [2, 9],
        ...      "probability": [0.2, 0.7]})
        >>> found = settle(scores, np.array([3, 3])).iloc[0]
        >>> float(found["probability"]), float(found["final_probability"]), int(found["revisions"])
        (0.2, 0.7, 1)
    """
    # Of equal revisions the last counts; their offsets do not order two logs, their time does.
    # Nullable: float64 does not hold nanoseconds since the epoch.
    whole = dict.fromkeys(("revision", "published_at_ns"), "Int64")
    ordered = scores.assign(due_ns=due_ns).astype(whole)
    ordered = ordered.sort_values([*_KEY, "revision", "published_at_ns"], kind="stable")
    in_time = ordered.loc[ordered["published_at_ns"] <= ordered["due_ns"]]
    in_time = in_time.drop_duplicates(_KEY, keep="last")
    first = ordered.drop_duplicates(_KEY).set_index(_KEY)
    final = ordered.drop_duplicates(_KEY, keep="last").set_index(_KEY).add_prefix("final_")
    settled = final.join(in_time.set_index(_KEY).drop(columns="due_ns"))
    revised = ordered.drop_duplicates([*_KEY, "revision"]).groupby(_KEY, observed=True).size() - 1
    revised = revised.astype("Int64")
    return settled.assign(
        first_ns=first["published_at_ns"], first_probability=first["probability"], revisions=revised
    )


def with_outcomes(labels: pd.DataFrame, settled: pd.DataFrame, thresholds: Thresholds) -> pd.DataFrame:
    """Join what was published with what came.

    Args:
        labels: one row a (product, bar) that matured: `product_id`, `bar_end_ns`, `sigma`, `trailing_sigma`
            (NaN where unknown).
        settled: of `settle`.
        thresholds: of the models that published.

    Returns:
        The rows of `labels` in order of time, then product, with the columns of `settled`, `state`
        (`SCORED`, `TOO_LATE`, `NOT_PUBLISHED` or a reason), and by the thresholds of the row's model `known`
        (whether it has a label), `y`, `visible` (the trailing window already is a spike), `onset` and
        `persistence` (trailing volatility over the threshold). A row without a score is labelled by the
        model of the score before it, so that a spike that was not scored counts as missed.

    Examples:
        >>> labels = pd.DataFrame({"product_id": ["BTC-USD"], "bar_end_ns": [0], "sigma": [2e-5],
        ...     "trailing_sigma": [1e-6]})
        >>> model = {"model": "ewma", "model_as_of": "2026-04-04-03:00", "model_version": "1"}
        >>> scores = pd.DataFrame([{"product_id": "BTC-USD", "bar_end_ns": 0, "revision": 0, "reason": "ok",
        ...     "published_at_ns": 2, "probability": 0.7, **model}])
        >>> by_model = Thresholds({tuple(model.values()): {"BTC-USD": 1e-5}}, {})
        >>> row = with_outcomes(labels, settle(scores, np.array([3])), by_model).iloc[0]
        >>> row["state"], row["y"], row["onset"]
        ('scored', np.True_, np.True_)
    """
    rows = labels.sort_values(["bar_end_ns", "product_id"], kind="stable").join(settled, on=_KEY)
    rows = rows.reset_index(drop=True)
    absent = pd.Series(np.where(rows["first_ns"].isna(), NOT_PUBLISHED, TOO_LATE), rows.index)
    rows["state"] = (
        rows["reason"].where(rows["reason"].notna(), absent).mask(rows["probability"].notna(), SCORED)
    )
    return rows.assign(**_labelled(rows, thresholds))


def by_model(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], NDArray[np.intp]]]:
    """Yield each model that rows name, and the places of its rows.

    Args:
        rows: with the columns `MODEL`; rows without one are left out.

    Examples:
        >>> rows = pd.DataFrame({"model": ["ewma", None], "model_as_of": ["a", None], "model_version": "1"})
        >>> [(model, own.tolist()) for model, own in by_model(rows)]
        [(('ewma', 'a', '1'), [0])]
    """
    for model, own in rows.groupby(list(MODEL), observed=True).indices.items():
        yield tuple(map(str, cast("tuple[object, ...]", model))), own


def _labelled(rows: pd.DataFrame, thresholds: Thresholds) -> dict[str, NDArray[Any]]:
    """Compute labels by the thresholds of each row's model."""
    # Of a row that was late, the model of its final revision.
    late = rows[[f"final_{name}" for name in MODEL]].set_axis(list(MODEL), axis=1).astype("string")
    filled = rows.loc[:, list(MODEL)].astype("string").fillna(late).ffill().bfill()
    columns: dict[str, NDArray[Any]] = {
        name: np.zeros(len(rows), bool) for name in ("known", "y", "visible", "onset")
    }
    columns["persistence"] = np.zeros(len(rows))
    for model, own in by_model(filled):
        taus = dict(thresholds.by_model.get(model, {}))
        own = own[rows["product_id"].iloc[own].isin(list(taus)).to_numpy()]
        part = rows.iloc[own]
        product = part["product_id"].to_numpy(object)
        sigma, trailing = (part[name].to_numpy(np.float64) for name in ("sigma", "trailing_sigma"))
        columns["known"][own] = np.isfinite(sigma)
        columns["y"][own] = is_spike(sigma, product, taus)
        columns["visible"][own] = is_spike(trailing, product, taus)
        columns["onset"][own] = onset_rows(trailing, product, taus)
        columns["persistence"][own] = scaled_volatility(trailing, product, taus)
    return columns


@dataclass(frozen=True)
class Alerts:
    """Alarms of the published flags: a flagged row, no alarm of the product in the five minutes before.

    Attributes:
        reason: why there are no numbers; empty where there are.
        alarms: number of alarms.
        a_day: alarms in a day of scored time.
        true: alarms within a spike episode.
        false: alarms outside of every episode.
        unknown: alarms on a row without a label.
        precision: share of true ones among those that are not unknown; None without any.
        events: spike episodes.
        events_found: episodes with a flagged row.
        lead_p50_s: median lead of the first flag over the visible spike; None without any.
    """

    reason: str
    alarms: int | None = None
    a_day: float | None = None
    true: int | None = None
    false: int | None = None
    unknown: int | None = None
    precision: float | None = None
    events: int | None = None
    events_found: int | None = None
    lead_p50_s: float | None = None


@dataclass(frozen=True)
class Episodes:
    """Episodes as the revisions that counted name them, compared with the spike episodes of the labels.

    Attributes:
        opened: episodes whose first bar is among the rows; the others below are of these.
        true: those with a spike within them or within H after.
        false: those without.
        undecided: those without one so far that are open at the last row.
        events: spike episodes of the labels.
        missed: spike episodes without a published episode in them.
        lead_p50_s: median lead of the opening of a true episode over the visible spike; None without any.
    """

    opened: int
    true: int
    false: int
    undecided: int
    events: int
    missed: int
    lead_p50_s: float | None


@dataclass(frozen=True)
class Delay:
    """Time from the end of a bar to the publication of its first revision, in seconds; None without rows."""

    rows: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None


@dataclass(frozen=True)
class Revisions:
    """Rows that were published again.

    Attributes:
        rows: rows that were published.
        revised: rows with more than one revision.
        per_row: revisions after the first, per published row; None without rows.
        moved: revised rows whose first and final revision have a probability.
        moved_p99: 99 % quantile of the difference of these two probabilities; None without any.
        after_deadline: rows whose final revision came after the one that counted.
    """

    rows: int
    revised: int
    per_row: float | None
    moved: int
    moved_p99: float | None
    after_deadline: int


@dataclass(frozen=True)
class Outcome:
    """What became of some rows.

    Attributes:
        rows: number of rows: every bar of every product that matured.
        scored: rows whose counted revision has a probability.
        share_scored: their share; None without rows.
        not_scored: number of other rows, by state.
        labelled: scored rows with a label.
        quality: `Performance.to_dict` of the probabilities that counted, on the labelled rows.
        onset: the same of rows whose trailing window was not a spike yet.
        alerts: of the flags that counted.
        episodes: of the revisions that counted.
        delay: of the first revision of each row.
        revisions: of all published rows.
    """

    rows: int
    scored: int
    share_scored: float | None
    not_scored: dict[str, int]
    labelled: int
    quality: dict[str, Any]
    onset: dict[str, Any]
    alerts: Alerts
    episodes: Episodes
    delay: Delay
    revisions: Revisions

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self)


def measure_outcome(
    rows: pd.DataFrame, *, bar_ns: int, horizon_ns: int, resamples: int, seed: int
) -> Outcome:
    """Measure what was published about some rows.

    Args:
        rows: of `with_outcomes`, with `bar_end_wall_ns`, the end of the bar on the clock of publication.
        bar_ns: length of a bar.
        horizon_ns: H.
        resamples: of the block bootstrap; 0: no intervals.
        seed: of its blocks.

    Examples:
        >>> rows = pd.DataFrame({"product_id": "BTC-USD", "bar_end_ns": NS * np.arange(4), "state": SCORED,
        ...     "probability": [0.1, 0.2, 0.9, 0.8], "flag": [False, False, True, True], "known": True,
        ...     "y": [False, False, True, True], "visible": False, "onset": True, "persistence": 0.5,
        ...     "bar_end_wall_ns": NS * np.arange(4), "first_ns": NS * np.arange(2, 6), "revisions": 0,
        ...     "first_probability": 0.1, "final_probability": 0.1, "revision": 0, "final_revision": 0,
        ...     "episode": None})
        >>> found = measure_outcome(rows, bar_ns=NS, horizon_ns=NS, resamples=10, seed=7)
        >>> found.share_scored, found.quality["average_precision"]["estimate"], found.alerts.alarms
        (1.0, 1.0, 1)
        >>> found.delay.p50_s, found.revisions.revised
        (2.0, 0)
    """
    scored = (rows["state"] == SCORED).to_numpy()
    labelled = scored & rows["known"].to_numpy(bool)

    def quality(mask: NDArray[np.bool_]) -> dict[str, Any]:
        part = rows.loc[mask]
        scores = {CHAMPION: "probability", PERSISTENCE: "persistence"}
        ranked = ScoredRows(
            part["bar_end_ns"].to_numpy(np.int64),
            bar_ns,
            part["y"].to_numpy(bool),
            {name: part[column].to_numpy(np.float64) for name, column in scores.items()},
        )
        return measure(ranked, horizon_s=horizon_ns / NS, resamples=resamples, seed=seed).to_dict()

    counts = rows.loc[~scored, "state"].value_counts()
    market = Market(
        rows["product_id"].to_numpy(object),
        rows["bar_end_ns"].to_numpy(np.int64),
        rows["y"].to_numpy(bool),
        rows["visible"].to_numpy(bool),
        bar_ns,
        horizon_ns,
    )
    return Outcome(
        rows=len(rows),
        scored=int(scored.sum()),
        share_scored=float(scored.mean()) if len(rows) else None,
        not_scored={str(state): int(count) for state, count in sorted(counts.items())},
        labelled=int(labelled.sum()),
        quality=quality(labelled),
        onset=quality(labelled & rows["onset"].to_numpy(bool)),
        alerts=_alerts(rows, scored, market),
        episodes=_episodes(rows, market),
        delay=_delay(rows),
        revisions=_revisions(rows),
    )


def _alerts(rows: pd.DataFrame, scored: NDArray[np.bool_], market: Market) -> Alerts:
    with_flag = scored & rows["flag"].notna().to_numpy()
    if not with_flag.any():
        return Alerts("no published score has an operating point" if scored.any() else "no row was scored")
    flagged = with_flag & (rows["flag"] == True).to_numpy(bool)  # noqa: E712 - it may be null
    events = market.events()
    alarms = market.alarms(flagged)
    true = market.in_event(events)[alarms]
    decided = int(np.sum(true | rows["known"].to_numpy(bool)[alarms]))
    firsts = market.first_flags(flagged, events)
    leads = [first.lead_s for first in firsts if first.lead_s is not None]
    scored_s = np.unique(market.t_ns[scored]).size * market.bar_ns / NS
    return Alerts(
        reason="",
        alarms=int(alarms.size),
        a_day=alarms.size / scored_s * DAY_S,
        true=int(true.sum()),
        false=decided - int(true.sum()),
        unknown=int(alarms.size) - decided,
        precision=float(true.sum()) / decided if decided else None,
        events=len(events),
        events_found=len(firsts),
        lead_p50_s=float(np.median(leads)) if leads else None,
    )


def _episodes(rows: pd.DataFrame, market: Market) -> Episodes:
    named = rows[rows["episode"].notna()]
    last = rows.groupby("product_id", observed=True)["bar_end_ns"].max()
    found = []
    for key, bars in named.groupby(["product_id", "episode"], observed=True):
        product, name = map(str, cast("tuple[object, ...]", key))
        until = int(bars["bar_end_ns"].max())
        closed_ns = until + market.bar_ns if until < last[product] else None
        opened_ns = int(name.rsplit("/", 1)[-1])
        found.append(Episode(product, opened_ns, closed_ns, None, float(bars["probability"].max())))
    matches = match_episodes(found, market)
    since = int(market.t_ns.min(initial=2**63 - 1))
    # An episode of the rows before is counted there; here it only keeps its spikes from being missed.
    own = [one for one in compare_episodes(found, market) if one.episode.opened_ns >= since]
    true = [one for one in own if one.event is not None]
    undecided = sum(one.event is None and one.episode.closed_ns is None for one in own)
    leads = [one.lead_s for one in true if one.lead_s is not None]
    return Episodes(
        opened=len(own),
        true=len(true),
        false=len(own) - len(true) - undecided,
        undecided=undecided,
        events=matches.total,
        missed=matches.total - matches.found,
        lead_p50_s=float(np.median(leads)) if leads else None,
    )


def _delay(rows: pd.DataFrame) -> Delay:
    published = rows.loc[rows["first_ns"].notna()]
    waited = (published["first_ns"] - published["bar_end_wall_ns"]).to_numpy(np.float64) / NS
    if not waited.size:
        return Delay(0, None, None, None)
    p50, p99 = np.quantile(waited, [0.5, 0.99])
    return Delay(int(waited.size), float(p50), float(p99), float(waited.max()))


def _revisions(rows: pd.DataFrame) -> Revisions:
    published = rows.loc[rows["first_ns"].notna()]
    count = published["revisions"].to_numpy(np.int64)
    first, final = (published[f"{name}_probability"].to_numpy(np.float64) for name in ("first", "final"))
    moved = np.abs(final - first)[count > 0]
    moved = moved[~np.isnan(moved)]
    later = published["revision"].notna() & (published["final_revision"] > published["revision"])
    return Revisions(
        rows=len(published),
        revised=int(np.sum(count > 0)),
        per_row=float(count.mean()) if count.size else None,
        moved=int(moved.size),
        moved_p99=float(np.quantile(moved, 0.99)) if moved.size else None,
        after_deadline=int(later.sum()),
    )

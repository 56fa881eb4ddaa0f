"""Kafka messages of cryptovol: typed, versioned JSON.

The exchange's own entry travels inside as raw JSON (`msgspec.Raw`), byte for byte, so that a field the
exchange adds tomorrow reaches raw storage without a change here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1

#: Topic names without the configured prefix.
TICKS, TRADES, EVENTS, DEAD = "ticks.raw", "trades.raw", "feed.events", "feed.dead"
TOPICS = (TICKS, TRADES, EVENTS, DEAD)
#: Features of every bar: derived data, so the archive does not store them.
FEATURES_TOPIC = "ticks.features"
#: Scores of every bar by the champion, and by its challenger; the archive stores those of the champion.
SCORES_TOPIC, SHADOW_TOPIC = "ticks.scores", "ticks.scores.shadow"
#: Events of the live path: episodes, changes of the model, spans that were not scored.
LIVE_EVENTS_TOPIC = "live.events"
ALL_TOPICS = (*TOPICS, FEATURES_TOPIC, SCORES_TOPIC, SHADOW_TOPIC, LIVE_EVENTS_TOPIC)

EventKind = Literal[
    "connected",
    "subscribed",
    "disconnected",
    "gap",
    "stale",
    "clock_skew",
    "protocol_drift",
    "resumed",
    "checkpoint",
    "log_recreated",
]


class _Positioned(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    schema_version: int = SCHEMA_VERSION
    product_id: str
    event_time_ns: int
    received_at_ns: int
    connection_id: str
    sequence_num: int
    event_index: int
    entry_index: int
    event_type: str


class TickMessage(_Positioned, frozen=True, kw_only=True, gc=False):
    """One entry of the exchange's ``ticker`` channel, and its position in the connection."""

    ticker: msgspec.Raw


class TradeMessage(_Positioned, frozen=True, kw_only=True, gc=False):
    """One trade of the exchange's ``market_trades`` channel; `event_time_ns` is the frame's time."""

    trade: msgspec.Raw


LiveEventKind = Literal[
    "started",
    "model_changed",
    "model_refused",
    "episode_opened",
    "episode_closed",
    "not_scored",
]


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the feed: a connection, a gap, a checkpoint. `at_ns` is wall clock."""

    schema_version: int = SCHEMA_VERSION
    kind: EventKind
    at_ns: int
    connection_id: str
    event_time_ns: int | None = None
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that could not be read, with the reason."""

    schema_version: int = SCHEMA_VERSION
    reason: str
    at_ns: int
    connection_id: str
    sequence_num: int | None = None
    data_base64: str


class FeatureMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Features of one product's bar.

    Its key is (product, bar end, feature version); of several messages with one key the highest `revision`
    counts, and of equal ones the last. `provisional` says that the product was in a gap, or the feed silent,
    when it was published. `reason` is the name of the core's reason code, ``ok`` where the row is `valid`. A
    feature without a value is null.
    """

    schema_version: int = SCHEMA_VERSION
    product_id: str
    bar_end_ns: int
    feature_version: str
    revision: int
    provisional: bool
    valid: bool
    reason: str
    values: dict[str, float | None]


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """Share of a feature in a probability: its value, and the log-odds that it adds to the model's mean."""

    feature: str
    value: float | None
    log_odds: float


class ScoreMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Score of one product's bar: a probability, or the reason why there is none.

    Its key is (chain, product, bar end); of several messages with one key the highest `revision` counts, and
    of equal ones the last. `published_at_ns` is the wall clock when it was passed to the producer.

    `reason` is ``ok`` or a name of `core.live.reasons.NO_SCORE`; `probability` is null but for ``ok``.
    `flag` says whether the probability is at or above `threshold`; both are null where no operating point is
    known. `model`, `model_as_of`, `model_version` (of the registry, else the file's hash) and `model_age_s`
    (bar end less the end of training) name the champion. `row_hash` is
    `core.features.row_hash.row_hashes` of the whole row, so that a row computed later can be compared bit for
    bit. `episode` is the id of the episode that contains the bar. `contributions` are the features with the
    greatest share in a flagged probability.
    """

    schema_version: int = SCHEMA_VERSION
    chain: str
    product_id: str
    bar_end_ns: int
    revision: int
    published_at_ns: int
    provisional: bool
    probability: float | None
    reason: str
    flag: bool | None
    threshold: float | None
    model: str | None
    model_as_of: str | None
    model_version: str | None
    model_age_s: float | None
    feature_version: str
    row_hash: str | None
    episode: str | None = None
    contributions: list[Contribution] = []


class LiveEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on the live path; `at_ns` is wall clock, `bar_end_ns` event time.

    `episode` is the id of an episode: ``<chain>/<product>/<end of its first bar in ns>``. So a run that
    publishes it again uses the same id.
    """

    schema_version: int = SCHEMA_VERSION
    kind: LiveEventKind
    at_ns: int
    chain: str
    product_id: str | None = None
    bar_end_ns: int | None = None
    episode: str | None = None
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


#: Begins the key of a record of `closing_message`; no product of the exchange begins so.
PROGRESS_MARK = "#"


def closing_message(partition: int, closed_until_ns: int, feature_version: str) -> FeatureMessage:
    """Return the record that says how far a partition of ticks.raw has been computed.

    The rows of all bars that end by then stand before it in the log. So a row that is not there will not
    come, unless a late tick brings it. It has the form of a row, of a product and a version that no row has:
    readers that know nothing of it leave it out.

    Args:
        partition: of ticks.raw.
        closed_until_ns: event time, UTC nanoseconds.
        feature_version: of the rows.
    """
    return FeatureMessage(
        product_id=f"{PROGRESS_MARK}{partition}",
        bar_end_ns=closed_until_ns,
        feature_version=f"{PROGRESS_MARK}{feature_version}",
        revision=0,
        provisional=False,
        valid=False,
        reason="closed",
        values={},
    )


def closing_score(chain: str, partition: int, closed_until_ns: int, published_at_ns: int) -> ScoreMessage:
    """Return the record that states until when the bars of a partition of ticks.raw are scored.

    As `closing_message`: the scores of all bars that end by then precede it in its partition.

    Args:
        chain: whose bars.
        partition: of ticks.raw.
        closed_until_ns: event time, UTC nanoseconds.
        published_at_ns: wall clock.
    """
    return ScoreMessage(
        chain=chain,
        product_id=f"{PROGRESS_MARK}{partition}",
        bar_end_ns=closed_until_ns,
        revision=0,
        published_at_ns=published_at_ns,
        provisional=False,
        probability=None,
        reason="closed",
        flag=None,
        threshold=None,
        model=None,
        model_as_of=None,
        model_version=None,
        model_age_s=None,
        feature_version="",
        row_hash=None,
    )


def closed_partition(message: FeatureMessage | ScoreMessage) -> int | None:
    """Return the partition that a closing record is of, closed until `bar_end_ns`.

    None where the message is a row.
    """
    is_row = not message.product_id.startswith(PROGRESS_MARK)
    return None if is_row else int(message.product_id.removeprefix(PROGRESS_MARK))


Message = TickMessage | TradeMessage | FeedEvent | DeadLetter | ScoreMessage | LiveEvent

#: One reusable encoder; `encode(message)` returns the Kafka value.
encode = msgspec.json.Encoder().encode

DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    TICKS: msgspec.json.Decoder(TickMessage),
    TRADES: msgspec.json.Decoder(TradeMessage),
    EVENTS: msgspec.json.Decoder(FeedEvent),
    DEAD: msgspec.json.Decoder(DeadLetter),
    FEATURES_TOPIC: msgspec.json.Decoder(FeatureMessage),
    SCORES_TOPIC: msgspec.json.Decoder(ScoreMessage),
    SHADOW_TOPIC: msgspec.json.Decoder(ScoreMessage),
    LIVE_EVENTS_TOPIC: msgspec.json.Decoder(LiveEvent),
}

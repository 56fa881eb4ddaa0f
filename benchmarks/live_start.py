"""What `benchmarks.live` begins with: the champion, and what an earlier run left in Kafka.

Features need `MAX_REQUIRED_WINDOW_BARS` seconds before a row can be scored. So ticks.raw contains that much
and more before the market begins, and ticks.features a row of each product at its end: the featurizer
restarts there, and its first rows have their whole look-back.
"""

from __future__ import annotations

import tracemalloc

import msgspec
import numpy as np
from confluent_kafka import Producer

from benchmarks import market
from cryptovol_dagster.core.features.catalogue import (
    MAX_REQUIRED_WINDOW_BARS,
    feature_hash,
    own_feature_names,
)
from cryptovol_dagster.core.live.join import OwnRow, RowJoin
from cryptovol_dagster.core.promotion.decision import FIRST, PROMOTE, Champion, Decision
from cryptovol_dagster.core.samples import model_of
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from ingestor.envelope import FEATURES_TOPIC, TICKS, FeatureMessage, TickMessage, encode
from ingestor.kafka.broker import Broker
from ingestor.settings import Settings

_HISTORY_S = MAX_REQUIRED_WINDOW_BARS + 200
_CONNECTION, _EVERY_S = "an earlier run", 2
#: Longer than bars stay open for revisions, so that the join holds as many rows as it ever does.
_JOINED_S = 300


def champion(lake: Lake) -> None:
    """Store a model that reads cross features as the champion."""
    spec = market.seconds_spec()
    model, as_of = model_of(spec), "2025-01-01-00:00"
    meta = model.meta
    chosen = Champion(meta.name, as_of, meta.problem_hash, meta.feature_hash, "run", unproven=True)
    decisions.keep_file(lake, spec, chosen, model.to_bytes())
    decisions.write_decision(lake, spec, Decision(as_of, PROMOTE, ("it is the first",), chosen, kind=FIRST))


def earlier_run(broker: Broker, products: list[str], until_ns: int) -> None:
    """Publish ticks of each product for longer than features look back, and one row of it at the end."""
    producer = Producer(broker.producer_config() | {"queue.buffering.max.messages": 2_000_000})
    topic, version = broker.topic(TICKS), feature_hash(market.seconds_spec())
    random, sequence = np.random.default_rng(7), 0
    prices = 1_000 * np.exp(np.cumsum(random.normal(0, 2e-5, (_HISTORY_S // _EVERY_S, len(products))), 0))
    for step, row in enumerate(prices.tolist()):
        time_ns = until_ns - (_HISTORY_S - step * _EVERY_S) * NS + NS // 2
        for product, price in zip(products, row, strict=True):
            sequence += 1
            quote = {
                "product_id": product,
                "price": f"{price:.2f}",
                "best_bid": f"{price - 0.01:.2f}",
                "best_ask": f"{price + 0.01:.2f}",
                "best_bid_quantity": "0.5",
                "best_ask_quantity": "1.25",
            }
            tick = TickMessage(
                product_id=product,
                event_time_ns=time_ns,
                received_at_ns=time_ns,
                connection_id=_CONNECTION,
                sequence_num=sequence,
                event_index=0,
                entry_index=0,
                event_type="update",
                ticker=msgspec.Raw(msgspec.json.encode(quote)),
            )
            producer.produce(topic, encode(tick), product.encode())
        producer.poll(0)
    for product in products:
        published = FeatureMessage(
            product_id=product,
            bar_end_ns=until_ns,
            feature_version=version,
            revision=0,
            provisional=True,
            valid=False,
            reason="warming_up",
            values={},
        )
        producer.produce(broker.topic(FEATURES_TOPIC), encode(published), product.encode())
    producer.flush(120)


def join_kb(n_products: int) -> float:
    """Return the memory of the join of so many products in kB a product, as tracemalloc counts it."""
    spec = market.seconds_spec()
    others = (f"P{number:03d}-USD" for number in range(n_products - len(spec.reference_set)))
    products, n_own = (*spec.reference_set, *others), len(own_feature_names(spec))
    lateness_ns = round(Settings().live.lateness_s * NS)
    join = RowJoin(spec, lateness_ns=lateness_ns, partition_of=lambda _: 0, outputs=1)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for second in range(1, _JOINED_S + 1):
        for product in products:
            values = np.random.default_rng(second).random(n_own)
            join.add(OwnRow(product, second * NS, 0, False, True, 0, values), second * NS)
        join.close(0, 0, second * NS)
        join.take(second * NS, NS)
        join.forget()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / n_products / 1e3

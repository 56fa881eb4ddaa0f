"""The chains of the minutes beside the seconds: trades.raw in, scores of closed minutes out.

Belongs here: when a minute closes, where its trades come from, and what each chain publishes. The rows are
computed once, in `MinuteRows`, and scored by the champion of each chain.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from cryptovol_dagster.core.features.catalogue import lookback_bars
from cryptovol_dagster.core.features.live import LONGEST_HOLE_NS
from cryptovol_dagster.core.live.join import JoinedBar
from cryptovol_dagster.core.live.minute_rows import REACH_NS, MinuteRows
from cryptovol_dagster.core.market.candle_bars import candle_reach_ns
from cryptovol_dagster.core.market.ticks import TradeColumns
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS, HOUR_NS, hour_key
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.market import TRADES as LAKE_TRADES
from cryptovol_dagster.lake.raw_ticks import RawStore, trade_columns
from cryptovol_dagster.live.clients import BATCH_RECORDS, LogReader, check_error
from cryptovol_dagster.live.scoring.champions import ChampionFinder, ChampionWatch
from cryptovol_dagster.live.scoring.episodes import Changed, Episodes
from cryptovol_dagster.live.scoring.resume import Resumed, Resumption
from cryptovol_dagster.live.scoring.scores import Scores
from ingestor.archive import positions
from ingestor.archive.schema import to_batch
from ingestor.envelope import SCORES_TOPIC, SHADOW_TOPIC, TRADES, LiveEvent, LiveEventKind, ScoreMessage
from ingestor.errors import CryptovolError
from ingestor.exchange.clock import ns_to_rfc3339
from ingestor.kafka.broker import Broker
from ingestor.settings.sections import LiveSettings

LOG = logging.getLogger(__name__)

_GROUP = "cryptovol-scorer-minutes"
_EVER_NS = 2**62


@dataclass(frozen=True)
class MinutesTask:
    """What the minutes need.

    Attributes:
        specs: chains on one grid.
        history: imported candles.
        store: raw storage.
        lake: trades of closed hours, decisions and model files.
        tracking_uri: MLflow, whose aliases name the champions.
    """

    specs: tuple[TimescaleSpec, ...]
    history: History
    store: RawStore
    lake: Lake
    tracking_uri: str

    def has_candles(self, products: Sequence[str]) -> bool:
        """Return whether candles of a product are imported; else say that no minute is scored."""
        found = not set(products).isdisjoint(self.history.products())
        if not found:
            LOG.info("minutes are not scored: no candles are imported (`cryptovol import-bars`)")
        return found


@dataclass(frozen=True)
class Outlet:
    """Where results go.

    Attributes:
        produce: publishes scores to a topic.
        close: publishes until when a chain's bars of a partition are scored.
        on_scores: called with the champion's scores.
        publish_event: publishes an event.
    """

    produce: Callable[[str, Sequence[ScoreMessage]], None]
    close: Callable[[str, int, int], None]
    on_scores: Callable[[list[ScoreMessage]], None]
    publish_event: Callable[[LiveEvent], None]


class ChainScores:
    """One chain: its models, what it published, its episodes."""

    def __init__(
        self,
        spec: TimescaleSpec,
        resumed: Resumed,
        outlet: Outlet,
        lake: Lake,
        tracking_uri: str,
        every_s: float,
    ) -> None:
        """Take over what an earlier run published, and look for the champion."""
        self.spec, self._outlet = spec, outlet
        self._resumed = resumed
        self._scores, self._shadow = Scores(spec), Scores(spec)
        self._scores.restore(resumed.messages)
        self._episodes = Episodes(spec.name, spec.bar_ns)
        self._watch = ChampionWatch(
            ChampionFinder(lake, spec, tracking_uri),
            lake,
            spec,
            every_s=every_s,
            recent_rows=self._scores.recent_rows,
        )
        self._watch.start()
        self.change_models()
        model = self._scores.in_use
        rule = None if model is None else model.flagging.episode_rule
        self._publish_changes(self._episodes.restore(resumed.messages, rule))

    def stop(self) -> None:
        """End the thread that looks for champions."""
        self._watch.stop()

    def score(self, bar: JoinedBar, partition_of: Callable[[str], int]) -> None:
        """Publish the scores of a bar that are new or changed."""
        now_ns = time.time_ns()
        model = self._scores.in_use
        rule = None if model is None else model.flagging.episode_rule
        messages, changes = [], []
        for message in self._scores.of_bar(bar, now_ns):
            known_since_ns = self._resumed.known_since_ns.get(partition_of(message.product_id), 0)
            # An earlier run may have published a first score that is too old to have been read back.
            if message.revision > 0 or message.bar_end_ns > known_since_ns:
                stepped, changed = self._episodes.step(message, rule)
                messages.append(stepped)
                changes += changed
        self._outlet.produce(SCORES_TOPIC, messages)
        self._outlet.on_scores(messages)
        self._publish_changes(changes)
        if self._shadow.in_use is not None:
            self._outlet.produce(SHADOW_TOPIC, self._shadow.of_bar(bar, now_ns))

    def forget_before(self, bar_end_ns: int) -> None:
        """Forget what was published of bars that cannot change any more."""
        for scores in (self._scores, self._shadow):
            for product in scores.products:
                scores.forget_before(product, bar_end_ns)
            scores.forget_models_before(bar_end_ns)

    def change_models(self) -> None:
        """Use the models that the watch found, from the next bar on."""
        for change in self._watch.changes():
            role = "challenger" if change.is_shadow else "champion"
            if change.refused:
                LOG.error("%s: another %s is refused: %s", self.spec.name, role, change.refused)
                self.event("model_refused", {"role": role, "reason": change.refused})
                continue
            last_ns = (self._shadow if change.is_shadow else self._scores).use(change.ready)
            name = None if change.ready is None else str(change.ready.champion)
            LOG.info("%s: %s from the next bar on: %s", self.spec.name, role, name)
            detail = {"role": role, "model": name, "version": change.ready and change.ready.version}
            self.event("model_changed", detail, last_ns)

    def event(
        self,
        kind: LiveEventKind,
        detail: dict[str, object],
        bar_end_ns: int | None = None,
    ) -> None:
        """Publish an event of the chain."""
        self._outlet.publish_event(
            LiveEvent(
                kind=kind,
                at_ns=time.time_ns(),
                chain=self.spec.name,
                bar_end_ns=bar_end_ns,
                detail=detail,
            )
        )

    def _publish_changes(self, changes: Sequence[Changed]) -> None:
        for changed in changes:
            self._outlet.publish_event(changed.event(self.spec.name, time.time_ns()))


class Minutes:
    """Scores the minutes as they close. Call `turn` often; `hear` says how far partitions are closed."""

    def __init__(
        self,
        task: MinutesTask,
        broker: Broker,
        outlet: Outlet,
        live: LiveSettings,
        products: Sequence[str],
        partition_of: Callable[[str], int],
    ) -> None:
        """Read back what the chains published.

        Raises:
            LiveError: published scores cannot be read.
            BrokerError: the broker does not answer.
        """
        self._task, self._broker = task, broker
        self._wait_ns = round(live.not_heard_after_s * NS)
        self._products, self._partition_of = tuple(products), partition_of
        self._numbers = sorted({partition_of(product) for product in products})
        self._outlet, self._grid = outlet, task.specs[0]
        reader = Consumer(broker.consumer_config(broker.topic(f"{_GROUP}-reader")))
        try:
            log = LogReader(broker, reader)
            resumed = {
                spec: Resumption(broker, log, spec.name, revisable_ns=REACH_NS).resume()
                for spec in task.specs
            }
        finally:
            reader.close()
        self._chains = [
            ChainScores(spec, each, outlet, task.lake, task.tracking_uri, live.champion_check_s)
            for spec, each in resumed.items()
        ]
        closed = [min(each.closed_ns.values(), default=0) for each in resumed.values()]
        #: Until when every chain is scored; 0 where nothing was published.
        self._scored_until_ns = min(closed)
        ends = [message.bar_end_ns for each in resumed.values() for message in each.messages]
        #: Bars that end by then stay as they are: not known any more, or from before the first run.
        self._after_ns = max(self._scored_until_ns - REACH_NS, min(ends, default=0) - 1)
        self._closed: dict[int, int] = {}
        self._first_heard_ns: int | None = None
        self._trades = Consumer(broker.consumer_config(broker.topic(_GROUP)))
        self._positions: dict[int, int] = {}
        #: Ends of the log when the next minute became due: all before them is read before it closes.
        self._goals: dict[int, int] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="minutes-start")
        self._starting: Future[MinuteRows | None] | None = None
        self._rows: MinuteRows | None = None
        self._is_off = False

    def stop(self) -> None:
        """Close what is open; nothing is published."""
        self._pool.shutdown(cancel_futures=True)
        self._trades.close()
        for chain in self._chains:
            chain.stop()

    def hear(self, partition: int, until_ns: int) -> None:
        """Note that a partition of ticks.raw, and its trades, are complete until a time."""
        self._closed[partition] = until_ns
        if self._first_heard_ns is None:
            self._first_heard_ns = until_ns

    def turn(self, clock_ns: int | None) -> None:
        """Read the trades that have arrived, and score the minutes that are closed.

        Args:
            clock_ns: event time of the feed; a partition that does not report is not waited for longer than
                `live.not_heard_after_s`.
        """
        until_ns = max(
            min(self._closed.get(number, 0) for number in self._numbers),
            0 if clock_ns is None else clock_ns - self._wait_ns,
        )
        until_ns = until_ns // self._grid.bar_ns * self._grid.bar_ns
        if self._is_off or not until_ns or not self._is_started(until_ns) or self._rows is None:
            return
        self._read()
        if until_ns <= self._rows.closed_until_ns:
            return
        if self._goals is None:
            self._goals = self._broker.end_offsets(TRADES)
        if all(self._positions[number] >= end for number, end in self._goals.items()):
            self._goals = None
            self._score(until_ns)

    def _is_started(self, until_ns: int) -> bool:
        """Return whether the look-back is read; it is in a thread, so that no second waits."""
        if self._rows is not None:
            return True
        if self._starting is None:
            start_ns = self._scored_until_ns
            if not 0 <= until_ns - start_ns <= LONGEST_HOLE_NS:
                if start_ns:
                    self._not_scored(
                        f"from {ns_to_rfc3339(start_ns)} to {ns_to_rfc3339(until_ns)}: too long ago"
                    )
                start_ns = (self._first_heard_ns or until_ns) // self._grid.bar_ns * self._grid.bar_ns
                self._after_ns = start_ns
            self._positions = self._first_offsets()
            self._starting = self._pool.submit(self._look_back, start_ns)
        if not self._starting.done():
            return False
        try:
            self._rows = self._starting.result()
        except CryptovolError as error:
            self._not_scored(f"their look-back cannot be read: {error}")
            self._is_off = True
            return False
        if self._rows is None:
            LOG.info("minutes are not scored: no candles of the last days are imported")
            self._is_off = True
            return False
        name = self._broker.topic(TRADES)
        self._trades.assign(
            [TopicPartition(name, number, offset) for number, offset in self._positions.items()]
        )
        return True

    def _first_offsets(self) -> dict[int, int]:
        """Return by partition of trades.raw the offset after raw storage, else the first of the log."""
        stored = positions.stored_offsets(self._task.store.raw_dir, TRADES, self._broker.log_id(TRADES))
        found = {}
        for number in range(self._broker.partitions(TRADES)):
            start, end = self._broker.offsets(TRADES, number)
            after = stored.get(number, start)
            found[number] = after if start <= after <= end else start
        return found

    def _look_back(self, start_ns: int) -> MinuteRows | None:
        """Return the state at a time from history, lake and raw storage; None without imported candles."""
        spec = self._grid
        reach_ns = lookback_bars(spec) * spec.bar_ns + candle_reach_ns(spec) + REACH_NS
        from_ns = (start_ns - reach_ns) // HOUR_NS * HOUR_NS
        imported = self._task.history.read_products(self._products, from_ns, start_ns + DAY_NS)
        if imported.empty:
            return None
        rows = MinuteRows(spec, self._products, from_ns, imported)
        stored = self._task.store.reader.files(TRADES, from_ns - HOUR_NS, _EVER_NS)
        end_ns = max([start_ns, *(file.footer.max_time_ns + 1 for file in stored)])
        for hour_ns in range(from_ns - HOUR_NS, end_ns, HOUR_NS):
            rows.add(self._stored_trades(hour_ns))
            # What may still change is closed again, as an earlier run may not have published the change.
            rows.learn(min(hour_ns + HOUR_NS, start_ns - REACH_NS))
        return rows

    def _stored_trades(self, hour_ns: int) -> TradeColumns:
        if self._task.lake.exists(LAKE_TRADES, hour_key(hour_ns)):
            table = self._task.lake.read_table(LAKE_TRADES, hour_ns, hour_ns + HOUR_NS)
            return TradeColumns.from_table(table)
        return self._task.store.trades(hour_ns, hour_ns + HOUR_NS, self._products)

    def _read(self) -> None:
        assert self._rows is not None
        by_partition: dict[int, list[Message]] = {}
        for message in self._trades.consume(BATCH_RECORDS, 0.0):
            error, number = message.error(), message.partition()
            if number is not None and error is None:
                by_partition.setdefault(number, []).append(message)
            elif number is not None and error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
                self._positions[number] = self._broker.offsets(TRADES, number)[0]
                name = self._broker.topic(TRADES)
                self._trades.seek(TopicPartition(name, number, self._positions[number]))
            elif error is not None:
                check_error(error, self._broker, TRADES)
        for number, messages in by_partition.items():
            values = [message.value() for message in messages]
            batch = to_batch(TRADES, number, messages[0].offset() or 0, values, lambda _: 0, None)
            table = pa.Table.from_batches([batch])
            self._rows.add(trade_columns(table.filter(table["product_id"].is_valid())))
            self._positions[number] = (messages[-1].offset() or 0) + 1

    def _score(self, until_ns: int) -> None:
        assert self._rows is not None
        silent = {name for name in self._products if self._closed.get(self._partition_of(name), 0) < until_ns}
        for bar in self._rows.close(until_ns, provisional=silent):
            if bar.bar_end_ns > self._after_ns:
                for chain in self._chains:
                    chain.score(bar, self._partition_of)
        for chain in self._chains:
            chain.change_models()
            for number in self._numbers:
                self._outlet.close(chain.spec.name, number, until_ns)
            chain.forget_before(self._rows.open_since_ns)

    def _not_scored(self, reason: str) -> None:
        LOG.warning("minutes are not scored: %s", reason)
        for chain in self._chains:
            chain.event("not_scored", {"reason": reason})

"""Existing rows of ticks.features: those of an earlier run, and the point at which the next run resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np

from cryptovol_dagster.core.features.catalogue import feature_hash, own_feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.live import LONGEST_SILENCE_NS, revisable_ns
from cryptovol_dagster.core.features.live_rows import PublishedRow
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.live.errors import LiveError
from ingestor.envelope import DECODERS, FEATURES_TOPIC, FeatureMessage
from ingestor.kafka.broker import Broker

#: Messages read back at first; four times as many until they are enough.
_TAIL_MESSAGES = 2_000


class LogValues(Protocol):
    """Reads existing records of a log; see `LogReader`."""

    def values(self, topic: str, partition: int, first: int, end: int) -> list[bytes]:
        """Return the values of the records in ``[first, end)``."""
        ...


class PublishedLog:
    """Reads the newest published rows of a partition's products."""

    def __init__(
        self,
        broker: Broker,
        log: LogValues,
        spec: TimescaleSpec,
        *,
        lateness_ns: int,
        partitions: int,
        partition_of: Callable[[str], int],
        written_end_ns: Callable[[str], int | None],
    ) -> None:
        """Read nothing yet.

        Args:
            broker: where the topics are.
            log: reads records back.
            spec: what is computed.
            lateness_ns: how long closing a bar waits.
            partitions: how many partitions the topics of ticks and trades have.
            partition_of: partition of a product's ticks.
            written_end_ns: end of a product's newest bar in the files; None where there is none.
        """
        self._broker, self._log, self._partitions = broker, log, partitions
        self._partition_of, self._written_end_ns = partition_of, written_end_ns
        self._version, self._names = feature_hash(spec), own_feature_names(spec)
        self._bar_ns, self._revisable_ns = spec.bar_ns, revisable_ns(spec, lateness_ns)

    def newest(self, partition: int) -> tuple[list[PublishedRow], int | None]:
        """Return the newest rows of a partition's products, and the bar end to resume after.

        The bar end is None, and there are no rows, where nothing was published.

        Raises:
            LiveError: a message cannot be read or decoded.
        """
        outputs = self._broker.partitions(FEATURES_TOPIC)
        # With equal numbers of partitions, the same keys are in the partition of the same number.
        numbers = [partition] if outputs == self._partitions else list(range(outputs))
        logs = {number: self._broker.offsets(FEATURES_TOPIC, number) for number in numbers}
        size = _TAIL_MESSAGES
        while True:
            rows: list[PublishedRow] = []
            for number, (start, end) in logs.items():
                values = self._log.values(FEATURES_TOPIC, number, max(start, end - size), end)
                rows += newest_rows(self._decoded(values, partition), self._version, self._names)
            is_all = all(end - size <= start for start, end in logs.values())
            if not rows and is_all:
                return [], None
            if rows:
                resume_ns, oldest_ns = self.resume_ns(rows), min(row.bar_end_ns for row in rows)
                # The oldest row of a tail may be a revision; rows published once reach back less far.
                if oldest_ns < resume_ns - self._revisable_ns:
                    return rows, resume_ns
                if is_all:
                    return rows, max(resume_ns, oldest_ns - self._bar_ns)
            size *= 4

    def resume_ns(self, rows: Sequence[PublishedRow]) -> int:
        """Return the bar end up to which rows are final, published and in the files, according to `rows`."""
        newest: dict[str, int] = {}
        for row in rows:
            newest[row.product_id] = max(row.bar_end_ns, newest.get(row.product_id, 0))
        last_ns = max(newest.values())
        # A product that left the feed long ago has no more rows to publish.
        current = {name: end for name, end in newest.items() if end > last_ns - LONGEST_SILENCE_NS}
        # Without a file, or with one of long ago, the rows of the last day are written again.
        written = [max(self._written_end_ns(product) or 0, last_ns - DAY_NS) for product in current]
        return min(*current.values(), *written) - self._revisable_ns

    def _decoded(self, values: Sequence[bytes], partition: int) -> Iterator[FeatureMessage]:
        for value in values:
            try:
                message: FeatureMessage = DECODERS[FEATURES_TOPIC].decode(value)
            except msgspec.MsgspecError as error:
                raise LiveError(
                    f"{self._broker.topic(FEATURES_TOPIC)} contains a message that is not a row: {error}"
                ) from error
            if self._partition_of(message.product_id) == partition:
                yield message


def newest_rows(messages: Iterable[FeatureMessage], version: str, names: Sequence[str]) -> list[PublishedRow]:
    """Return the last revision of each row that was published since the newest recording began.

    Args:
        messages: in the order they were published.
        version: of the features; rows of another version are left out.
        names: of the features, in the order of `PublishedRow.values`.
    """
    rows: dict[tuple[str, int], PublishedRow] = {}
    newest: dict[str, int] = {}
    for message in messages:
        if message.feature_version != version:
            continue
        product, end_ns = message.product_id, message.bar_end_ns
        if end_ns < newest.get(product, end_ns) - LONGEST_SILENCE_NS:
            rows = {key: row for key, row in rows.items() if key[0] != product}
            newest[product] = end_ns
        newest[product] = max(end_ns, newest.get(product, end_ns))
        before = rows.get((product, end_ns))
        if before is not None and before.revision > message.revision:
            continue
        values = [message.values.get(name) for name in names]
        rows[product, end_ns] = PublishedRow(
            product_id=product,
            bar_end_ns=end_ns,
            revision=message.revision,
            valid=message.valid,
            reason=Reason[message.reason.upper()],
            values=np.array([np.nan if value is None else value for value in values]),
        )
    return list(rows.values())

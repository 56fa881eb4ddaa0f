"""The audit of a span of raw storage, hour by hour: checkpoints are compared with stored records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingestor.archive.checkpoints import LOST_AFTER_NS
from ingestor.archive.collection import FEED, SCORES
from ingestor.archive.columns import as_int64
from ingestor.archive.layout import Footer
from ingestor.archive.reader import RawFile, RawReader
from ingestor.archive.schema import UNREADABLE
from ingestor.audit.connections import DATA_TOPICS, Checkpoint, ConnectionAccount, Numbers
from ingestor.audit.findings import Audit, Finding, Loss
from ingestor.audit.offsets import (
    CONTEXT_NS,
    EVER_NS,
    LostOffsets,
    add_offsets,
    partition_offsets,
    recorded_losses,
)
from ingestor.audit.seals import add_seals
from ingestor.envelope import DEAD, EVENTS, SCORES_TOPIC, TOPICS
from ingestor.times import HOUR_NS, hour_key, hour_start

_EVENT_COLUMNS = ("schema_version", "kind", "at_ns", "connection_id", "event_time_ns", "payload")

_Log = tuple[str, int, str]  # topic, partition, log id


def audit(
    reader: RawReader,
    start_ns: int | None = None,
    end_ns: int | None = None,
    *,
    still_storing: bool = False,
    with_seals: bool = True,
    with_scores: bool = False,
) -> Audit:
    """Account for every sequence number and every offset of a span of raw storage.

    Memory use: one hour at a time, and the numbers that no checkpoint has confirmed yet.

    Args:
        reader: of the storage.
        start_ns: first event time; all that is stored by default.
        end_ns: event time at which to stop.
        still_storing: an archive may still store promised numbers; then they are unconfirmed, not missing.
        with_seals: compare closed hours with their seals, which reads every column.
        with_scores: the same of the archived scores, as far as there are any: offsets and seals.

    Raises:
        ArchiveError: a file is foreign or corrupt.
    """
    start_ns, end_ns = (0 if start_ns is None else start_ns), (EVER_NS if end_ns is None else end_ns)
    result = _Auditor(reader, start_ns, end_ns, still_storing).run()
    if with_scores:
        result = add_offsets(reader, result, start_ns, end_ns, SCORES_TOPIC)
    for collection in (FEED, *([SCORES] if with_scores else [])) if with_seals else ():
        result = add_seals(reader, result, start_ns, end_ns, collection)
    return result


@dataclass
class _Known:
    """Facts of a connection as a whole, from the events of the span."""

    last_at_ns: int = 0
    log_id: str = ""
    ended: bool = False
    begins: bool = False
    last_sequence: int | None = None


@dataclass
class _HourEvents:
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


class _Auditor:
    def __init__(self, reader: RawReader, start_ns: int, end_ns: int, still_storing: bool) -> None:
        self._reader = reader
        self._span = start_ns, end_ns
        self._loaded = max(start_ns - CONTEXT_NS, 0), min(end_ns + CONTEXT_NS, EVER_NS)
        self._still_storing = still_storing
        self._files = {topic: reader.files(topic, *self._loaded) for topic in TOPICS}
        self._known: dict[str, _Known] = defaultdict(_Known)
        self._accounts: dict[str, ConnectionAccount] = {}
        self._lost: list[LostOffsets] = []
        self._dead_numbers: dict[str, list[Numbers]] | None = None
        self._ends: dict[_Log, int] = {}
        #: topic and partition → logs, oldest first; connection and topic → its log.
        self._logs: dict[tuple[str, int], list[str]] = {}
        self._log_of: dict[tuple[str, str], str] = {}
        #: Topics and logs that the recorder saw replaced.
        self._replaced: set[tuple[str, str]] = set()

    def run(self) -> Audit:
        offsets, findings = [], []
        for topic in TOPICS:
            for partition, found in partition_offsets(self._reader, topic, self._files[topic]):
                offsets.append(partition)
                findings += found
            self._lost += recorded_losses(self._reader, topic, self._files[topic])
        hours = self._hours()
        for hour_ns in hours:
            for row in self._events(hour_ns):
                self._note_event(row)
        self._order_logs()
        for hour_ns in hours:
            self._take_hour(hour_ns)
        self._finish()
        return self._report(hours, offsets, findings)

    def _hours(self) -> list[int]:
        """Return the hours of the loaded span that any file touches."""
        hours: set[int] = set()
        for files in self._files.values():
            for file in files:
                hours.update(range(hour_start(file.footer.min_time_ns), file.footer.max_time_ns + 1, HOUR_NS))
        return sorted(hours)

    def _window(self, hour_ns: int) -> tuple[int, int]:
        return max(hour_ns, self._loaded[0]), min(hour_ns + HOUR_NS, self._loaded[1])

    # Events

    def _events(self, hour_ns: int) -> Iterator[dict[str, Any]]:
        for log_id, _, table in self._reader.tables(EVENTS, *self._window(hour_ns), _EVENT_COLUMNS):
            for row in table.to_pylist():
                if row["schema_version"] != UNREADABLE:
                    yield row | {"log_id": log_id}

    def _note_event(self, row: dict[str, Any]) -> None:
        known = self._known[row["connection_id"]]
        if row["at_ns"] >= known.last_at_ns:
            known.last_at_ns, known.log_id = row["at_ns"], row["log_id"]
        known.ended = known.ended or row["kind"] == "disconnected"
        known.begins = known.begins or row["kind"] in ("connected", "subscribed")
        if row["kind"] == "log_recreated":
            detail = msgspec.json.decode(row["payload"])
            self._replaced.add((detail["topic"], detail["old_log"]))

    def _order_logs(self) -> None:
        """Find the order of a partition's logs, by the connections in them, and the end of each."""
        newest: dict[_Log, tuple[bool, int, int]] = {}
        for topic, files in self._files.items():
            for file in files:
                footer = file.footer
                log = topic, footer.partition, footer.log_id
                self._ends[log] = max(self._ends.get(log, -1), footer.last_offset)
                at_ns = max((self._known[name].last_at_ns for name in footer.connections), default=0)
                is_last = (topic, footer.log_id) not in self._replaced
                newest[log] = max(newest.get(log, (False, 0, 0)), (is_last, at_ns, footer.max_time_ns))
                for name in footer.connections:
                    self._log_of[name, topic] = footer.log_id
        for known in self._known.values():
            for log in self._ends:
                if log[0] == EVENTS and log[2] == known.log_id:
                    is_last, at_ns, time_ns = newest[log]
                    newest[log] = is_last, max(at_ns, known.last_at_ns), time_ns
        for lost in self._lost:
            log = lost.topic, lost.partition, lost.log_id
            self._ends[log] = max(self._ends.get(log, -1), lost.last_offset)
        for topic, partition, log_id in sorted(newest, key=lambda log: newest[log]):
            self._logs.setdefault((topic, partition), []).append(log_id)

    def _is_stored(self, connection_id: str, detail: dict[str, Any]) -> bool:
        """Return whether all promised offsets can be stored; missing ones of a replaced log are lost."""
        stored = True
        for topic, partitions in detail.get("offsets", {}).items():
            for partition, offset in partitions.items():
                logs = self._logs.get((topic, int(partition)), [])
                log_id = (
                    detail.get("logs", {}).get(topic)
                    or self._log_of.get((connection_id, topic))
                    or (logs[-1] if logs else "")
                )
                end = self._ends.get((topic, int(partition), log_id), -1)
                if offset <= end:
                    continue
                if log_id in logs[:-1] or (topic, log_id) in self._replaced:
                    self._lose_with_log(topic, int(partition), log_id, end + 1, offset)
                else:
                    stored = False
        return stored

    def _lose_with_log(self, topic: str, partition: int, log_id: str, first: int, last: int) -> None:
        files = self._files[topic]
        logs = self._logs.get((topic, partition), [])
        after = logs[logs.index(log_id) + 1 :] if log_id in logs else logs[-1:]
        own = _footers(files, log_id, partition)
        heirs = _footers(files, after[0], partition) if after else []
        self._lost.append(
            LostOffsets(
                topic=topic,
                log_id=log_id,
                partition=partition,
                first_offset=first,
                last_offset=last,
                reason="the log was replaced before they were stored",
                start_ns=own[-1].max_time_ns if own else 0,
                end_ns=max(heirs[0].min_time_ns, own[-1].max_time_ns if own else 0) if heirs else EVER_NS,
                left=last - first + 1,
            )
        )
        self._ends[topic, partition, log_id] = last

    def _explain(self, topics: tuple[str, ...], count: int, start_ns: int, end_ns: int) -> int:
        explained = 0
        for lost in self._lost:
            if lost.topic in topics and explained < count:
                explained += lost.explain(count - explained, start_ns, end_ns)
        return explained

    # Hour by hour

    def _take_hour(self, hour_ns: int) -> None:
        published: dict[str, _HourEvents] = defaultdict(_HourEvents)
        for row in self._events(hour_ns):
            self._count(published[row["connection_id"]], row)
        stored = self._stored(hour_ns)
        for name in sorted({*published, *stored}):
            account = self._account(name)
            events = published[name]
            if events.times:
                account.seen(min(events.times), max(events.times))
            numbers, times = stored.get(name, (np.empty(0, np.int64), np.empty(0, np.int64)))
            account.take(hour_ns, numbers, times, events.gaps, events.checkpoints)

    def _count(self, events: _HourEvents, row: dict[str, Any]) -> None:
        kind, time_ns = row["kind"], row["event_time_ns"]
        if time_ns is not None:
            events.times.append(time_ns)
        if kind not in ("gap", "checkpoint", "disconnected"):
            return
        detail = msgspec.json.decode(row["payload"])
        time_ns = row["at_ns"] if time_ns is None else time_ns
        if kind == "gap":
            events.gaps.append((detail["from_sequence"], detail["to_sequence"], time_ns))
        elif kind == "checkpoint":
            is_stored = self._is_stored(row["connection_id"], detail)
            events.checkpoints.append(Checkpoint.read(detail, time_ns, is_stored))
        else:
            self._known[row["connection_id"]].last_sequence = detail.get("last_sequence")

    def _stored(self, hour_ns: int) -> dict[str, tuple[Numbers, Numbers]]:
        """Return sequence numbers and event times of each connection's entries in the hour, unordered."""
        parts: dict[str, list[tuple[Numbers, Numbers]]] = defaultdict(list)
        columns = ["connection_id", "sequence_num", "event_time_ns"]
        for topic in DATA_TOPICS:
            for _, _, table in self._reader.tables(topic, *self._window(hour_ns), columns):
                for name, own in _by_connection(table):
                    parts[name].append((_int64(own, "sequence_num"), _int64(own, "event_time_ns")))
        return {
            name: (np.concatenate([one for one, _ in own]), np.concatenate([two for _, two in own]))
            for name, own in parts.items()
        }

    def _account(self, name: str) -> ConnectionAccount:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = ConnectionAccount(name, self._dead(name), self._explain)
            if self._known[name].begins or self._loaded[0] == 0:
                account.begin()
        return account

    def _dead(self, name: str) -> Numbers:
        """Return the numbers of a connection's dead letters: stored by wall clock, so all files are read."""
        if self._dead_numbers is None:
            self._dead_numbers = defaultdict(list)
            for _, _, table in self._reader.tables(DEAD, 0, EVER_NS, ["connection_id", "sequence_num"]):
                for owner, own in _by_connection(table):
                    self._dead_numbers[owner].append(_int64(own, "sequence_num"))
        return np.unique(np.concatenate([np.empty(0, np.int64), *self._dead_numbers.get(name, ())]))

    # The end

    def _finish(self) -> None:
        newest_ns = max((known.last_at_ns for known in self._known.values()), default=0)
        newest_log = max(self._known.values(), key=lambda known: known.last_at_ns, default=_Known()).log_id
        in_order = _in_order(self._accounts)
        next_ns = [*(account.first_ns for _, account in in_order[1:]), None]
        for (name, account), after in zip(in_order, next_ns, strict=False):  # the last account has no next
            known = self._known[name]
            lost = known.last_at_ns < newest_ns - LOST_AFTER_NS or known.log_id != newest_log
            account.finish(
                ended=known.ended,
                last_sequence=known.last_sequence,
                lost=lost,
                still_storing=self._still_storing,
                next_ns=after,
            )

    def _report(self, hours: Iterable[int], offsets: list[Any], findings: list[Finding]) -> Audit:
        start_ns, end_ns = self._span
        keys = [hour_key(hour) for hour in hours if start_ns < hour + HOUR_NS and hour < end_ns]
        inside = set(keys)
        lines = [
            line
            for account in self._accounts.values()
            for line in account.lines.values()
            if hour_key(line.hour_ns) in inside
        ]
        losses = [loss for account in self._accounts.values() for loss in account.losses]
        losses += [lost.as_loss() for lost in self._lost] + self._between()
        findings = findings + [one for account in self._accounts.values() for one in account.findings]
        return Audit(
            hours=tuple(keys),
            lines=tuple(sorted(lines, key=lambda line: (line.hour_ns, line.connection_id))),
            losses=tuple(
                sorted(
                    (loss for loss in losses if start_ns <= loss.end_ns < end_ns),
                    key=lambda loss: (loss.end_ns, loss.kind, loss.connection_id, loss.from_sequence or 0),
                )
            ),
            offsets=tuple(offsets),
            seals=(),
            findings=tuple(
                sorted((one for one in findings if one.hour in inside), key=lambda one: (one.hour, one.where))
            ),
        )

    def _between(self) -> list[Loss]:
        """Record the holes between connections: the exchange's messages there are unknown."""
        losses: list[Loss] = []
        previous, known_ns = self._before_the_span()
        for name, account in _in_order(self._accounts):
            first_ns, last_ns = account.first_ns, account.last_ns
            if first_ns is None or last_ns is None:
                continue
            if known_ns is not None and first_ns > known_ns:
                detail = {"previous_connection_id": previous}
                losses.append(Loss(name, "between", None, None, None, known_ns, first_ns, detail))
            if known_ns is None or last_ns > known_ns:
                previous, known_ns = name, last_ns
        return losses

    def _before_the_span(self) -> tuple[str, int | None]:
        """Return the newest connection before the loaded span, and its last event time."""
        if self._loaded[0] == 0:
            return "", None
        earlier = [
            hour for topic in DATA_TOPICS for hour in self._reader.hours(topic) if hour < self._loaded[0]
        ]
        if not earlier:
            return "", None
        newest = max(earlier)
        files = [
            file
            for topic in DATA_TOPICS
            for file in self._reader.files(topic, newest, self._loaded[0])
            if file.footer.max_time_ns < self._loaded[0]
        ]
        if not files:
            return "", None
        last = max(files, key=lambda file: file.footer.max_time_ns).footer
        return next(iter(last.connections), ""), last.max_time_ns


def _footers(files: Iterable[RawFile], log_id: str, partition: int) -> list[Footer]:
    wanted = log_id, partition
    return [file.footer for file in files if (file.footer.log_id, file.footer.partition) == wanted]


def _in_order(accounts: dict[str, ConnectionAccount]) -> list[tuple[str, ConnectionAccount]]:
    """Return connections with a known event time, ordered by the first."""
    known = [(name, one) for name, one in accounts.items() if one.first_ns is not None]
    return sorted(known, key=lambda pair: (pair[1].first_ns, pair[0]))


def _by_connection(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    owners = table.column("connection_id")
    for name in owners.unique().drop_null():
        yield name.as_py(), table.filter(pc.call_function("equal", [owners, name]))


def _int64(table: pa.Table, name: str) -> Numbers:
    column = table.column(name).drop_null()
    chunks = [as_int64(chunk) for chunk in column.chunks if len(chunk)]
    return np.concatenate(chunks) if chunks else np.empty(0, np.int64)

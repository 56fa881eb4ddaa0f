"""The outbox: every alert, stored before it is sent, and its state at each target.

An SQLite file that several processes share. An alert is stored once, however often it is recorded; a delivery
changes its state once, from pending to sent or given up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptovol_dagster.alerts.errors import OutboxError

PENDING, SENT, GIVEN_UP = "pending", "sent", "given_up"
#: Alerts kept. Older ones are removed once no target waits for them.
KEPT = 10_000
#: How long a process waits for another one that writes.
_BUSY_S = 10.0
_TABLES = """
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, rule TEXT, kind TEXT, subject TEXT, at_ns INTEGER, recorded_at_ns INTEGER,
    title TEXT, body TEXT, detail TEXT
);
CREATE TABLE IF NOT EXISTS deliveries (
    alert_id TEXT REFERENCES alerts(id) ON DELETE CASCADE, target TEXT, state TEXT, tries INTEGER DEFAULT 0,
    changed_at_ns INTEGER, reason TEXT DEFAULT '', PRIMARY KEY (alert_id, target)
);
CREATE INDEX IF NOT EXISTS waiting ON deliveries(target, state);
CREATE INDEX IF NOT EXISTS newest ON alerts(recorded_at_ns);
"""


@dataclass(frozen=True)
class Alert:
    """An alert as it is stored and sent; text without secrets.

    Attributes:
        id: of the rule and what raised it.
        rule: name of the rule.
        kind: as in a rule.
        subject: what it is about; cool-down is by rule and subject.
        at_ns: when it happened, UTC nanoseconds.
        recorded_at_ns: wall clock.
        title: one short line.
        body: lines of text.
        detail: the same for programs, as JSON.
    """

    id: str
    rule: str
    kind: str
    subject: str
    at_ns: int
    recorded_at_ns: int
    title: str
    body: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Delivery:
    """State of an alert at one target.

    Attributes:
        target: its name.
        state: `PENDING`, `SENT` or `GIVEN_UP`.
        tries: attempts so far.
        reason: of the last failure; empty where there was none.
    """

    target: str
    state: str
    tries: int
    reason: str


class Outbox:
    """The outbox below the data folder. Its methods raise `OutboxError` where the file cannot be used."""

    def __init__(self, folder: Path) -> None:
        """Open nothing yet.

        Args:
            folder: of the file; created with the first alert.
        """
        self.folder = folder
        self.path = folder / "outbox.sqlite"

    def record(self, alert: Alert, targets: Iterable[str]) -> bool:
        """Store an alert, pending at each target; when this returns, it is on disk.

        Returns:
            Whether it is new.
        """
        row = (
            *(alert.id, alert.rule, alert.kind, alert.subject, alert.at_ns, alert.recorded_at_ns),
            *(alert.title, alert.body, json.dumps(alert.detail)),
        )
        with self._writing() as db:
            marks = ",".join("?" * len(row))
            is_new = db.execute(f"INSERT OR IGNORE INTO alerts VALUES ({marks})", row).rowcount == 1
            if is_new:
                db.executemany(
                    "INSERT INTO deliveries (alert_id, target, state, changed_at_ns) VALUES (?, ?, ?, ?)",
                    [(alert.id, target, PENDING, alert.recorded_at_ns) for target in targets],
                )
                self._prune(db)
        return is_new

    def _prune(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM alerts WHERE recorded_at_ns < "
            "(SELECT recorded_at_ns FROM alerts ORDER BY recorded_at_ns DESC LIMIT 1 OFFSET ?) "
            "AND id NOT IN (SELECT alert_id FROM deliveries WHERE state = ?)",
            (KEPT - 1, PENDING),
        )

    def pending(self, target: str) -> list[tuple[Alert, int]]:
        """Return the alerts that wait for a target, oldest first, each with its tries so far."""
        rows = self._read(
            "SELECT alerts.*, tries FROM alerts JOIN deliveries ON id = alert_id "
            "WHERE target = ? AND state = ? ORDER BY recorded_at_ns, id",
            (target, PENDING),
        )
        return [(_alert(row), row["tries"]) for row in rows]

    def failed(self, alert_id: str, target: str, now_ns: int, reason: str, *, give_up: bool) -> None:
        """Count a failed attempt; with `give_up` it is the last one."""
        with self._writing() as db:
            db.execute(
                "UPDATE deliveries SET tries = tries + 1, reason = ?, changed_at_ns = ?, state = ? "
                "WHERE alert_id = ? AND target = ? AND state = ?",
                (reason, now_ns, GIVEN_UP if give_up else PENDING, alert_id, target, PENDING),
            )

    def sent(self, alert_id: str, target: str, now_ns: int) -> bool:
        """Mark an alert as sent to a target.

        Returns:
            Whether this call marked it: False where it was marked before.
        """
        with self._writing() as db:
            changed = db.execute(
                "UPDATE deliveries SET tries = tries + 1, reason = '', changed_at_ns = ?, state = ? "
                "WHERE alert_id = ? AND target = ? AND state = ?",
                (now_ns, SENT, alert_id, target, PENDING),
            )
            return changed.rowcount == 1

    def newest(self, limit: int) -> list[tuple[Alert, list[Delivery]]]:
        """Return the newest alerts with their states, newest first."""
        alerts = self._read("SELECT * FROM alerts ORDER BY recorded_at_ns DESC, id LIMIT ?", (limit,))
        found = []
        for row in alerts:
            states = self._read("SELECT * FROM deliveries WHERE alert_id = ? ORDER BY target", (row["id"],))
            found.append(
                (
                    _alert(row),
                    [Delivery(one["target"], one["state"], one["tries"], one["reason"]) for one in states],
                )
            )
        return found

    def last_ns(self) -> dict[tuple[str, str], int]:
        """Return the time of what raised the newest alert (`at_ns`), by rule and subject."""
        rows = self._read(
            "SELECT rule, subject, at_ns, MAX(recorded_at_ns) FROM alerts GROUP BY rule, subject", ()
        )
        return {(row["rule"], row["subject"]): row["at_ns"] for row in rows}

    def _read(self, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        if not self.path.exists():
            return []
        with self._open() as db:
            db.row_factory = sqlite3.Row
            return db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            db.execute("PRAGMA foreign_keys = ON")
            # EXTRA also syncs the folder: else a power cut may bring back the journal, and undo a commit.
            db.execute("PRAGMA synchronous = EXTRA")
            db.executescript(_TABLES)
            db.execute("BEGIN IMMEDIATE")
            with db:
                yield db

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A connection each time: threads and processes share nothing but the file.
            with closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise OutboxError(f"the outbox of alerts {self.path} cannot be used: {error}") from error


def _alert(row: sqlite3.Row) -> Alert:
    values = {name: row[name] for name in Alert.__dataclass_fields__}
    return Alert(**{**values, "detail": json.loads(values["detail"])})

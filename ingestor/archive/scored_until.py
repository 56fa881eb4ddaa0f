"""Until when the scores are stored, from the closing records in ``ticks.scores``.

The scorer writes one about every second for each partition of ``ticks.raw`` (`envelope.closing_score`), after
the scores that it speaks of and into the partition that contains them. Where it is stored, those scores are
stored too. Nothing is expected of a scorer that does not run: hours of scores then stay open.

Several archives may share the partitions. The owner of partition 0 closes the hours, and reads the closing
records of other partitions from the files of the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import FileName, files_in, hour_folders
from ingestor.archive.newest import newest_rows
from ingestor.archive.rows import read_rows
from ingestor.envelope import PROGRESS_MARK, SCORES_TOPIC
from ingestor.times import DAY_NS

LOG = logging.getLogger(__name__)

#: The chain whose closing records decide.
CHAIN = "seconds"
#: How often it is checked what other archives stored.
_OTHERS_S = 10.0
_COLUMNS = ["kafka_partition", "kafka_offset", "chain", "product_id", "bar_end_ns", "published_at_ns"]
_STARTS = pc.MatchSubstringOptions(PROGRESS_MARK)


class ScoredUntil:
    """Follows the closing records of every partition of ``ticks.scores``.

    Args:
        raw_dir: root of raw storage.
    """

    def __init__(self, raw_dir: Path) -> None:
        self._raw_dir = raw_dir
        self._log_id = ""
        self._partitions = 0
        #: (partition, product of the closing record) → offset of the newest one, and closed until (ns).
        self._newest: dict[tuple[int, str], tuple[int, int]] = {}
        #: Partition → first offset of the newest file that was read.
        self._read_up_to: dict[int, int] = {}
        self._others_due_s = 0.0

    @property
    def watermark_ns(self) -> int | None:
        """Return the end of the last bar that is stored of every partition.

        None while a partition of the topic has no closing record.
        """
        if not {partition for partition, _ in self._newest}.issuperset(range(self._partitions)):
            return None
        return min((until_ns for _, until_ns in self._newest.values()), default=None)

    def may_close(self, owned: set[int], partitions: int) -> bool:
        """Return whether the archive that owns these partitions is the one to close hours."""
        return 0 in owned

    def recover(self, log_ids: Mapping[str, str], partitions: int) -> None:
        """Start again from the newest stored closing records.

        Args:
            log_ids: the log behind each topic.
            partitions: number of partitions of the topic.
        """
        self._log_id, self._partitions = log_ids[SCORES_TOPIC], partitions
        self._newest.clear()
        self._read_up_to.clear()
        for name, rows in newest_rows(
            self._raw_dir, SCORES_TOPIC, self._log_id, _COLUMNS, clock="published_at_ns"
        ):
            self._observe(name, rows)

    def observe_file(self, path: Path) -> None:
        """Process the closing records of a stored file."""
        name = FileName.parse(path.name)
        assert name is not None  # the archive published it
        self._observe(name, read_rows(path, _COLUMNS))

    def advance(self, *, at_the_end: bool) -> int | None:
        """Process what other archives stored meanwhile, and return the watermark.

        Args:
            at_the_end: now, not when it is due.
        """
        now_s = time.monotonic()
        if at_the_end or now_s >= self._others_due_s:
            self._others_due_s = now_s + _OTHERS_S
            try:
                for _, path in sorted(self._unread()):
                    self.observe_file(path)
            except ArchiveError as error:  # readers report it; storing goes on
                LOG.error("closing records of scores are not read: %s", error)
        return self.watermark_ns

    def _unread(self) -> list[tuple[FileName, Path]]:
        """Return the files after those that were read, from the day before the watermark on."""
        watermark_ns = self.watermark_ns
        since_ns = 0 if watermark_ns is None else watermark_ns - DAY_NS
        return [
            (name, path)
            for _, folder in hour_folders(self._raw_dir / SCORES_TOPIC, since_ns)
            for name, path in files_in(folder)
            if name.log_id == self._log_id and name.first_offset > self._read_up_to.get(name.partition, -1)
        ]

    def _observe(self, name: FileName, rows: pa.Table) -> None:
        is_closing = pc.call_function("starts_with", [rows["product_id"]], _STARTS)
        for row in rows.filter(is_closing).to_pylist():  # an unreadable record has no product
            key, offset = (row["kafka_partition"], row["product_id"]), row["kafka_offset"]
            if row["chain"] == CHAIN and offset > self._newest.get(key, (-1, 0))[0]:
                self._newest[key] = offset, row["bar_end_ns"]
        self._read_up_to[name.partition] = max(name.first_offset, self._read_up_to.get(name.partition, -1))

"""Progress of the import of the last days: a record beside the candles that any process may read.

Belongs here: the record and its sentence. Does not belong here: importing (`last_days.py`). A process that
reads it every few seconds needs no HTTP client for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import DAY_NS, iso_utc, partition_at, partition_window
from cryptovol_dagster.history.store import HistoryError, HistoryWriteError
from cryptovol_dagster.lake.atomic import replace_file
from ingestor import locks
from ingestor.errors import CryptovolError

IMPORTING, WAITING, DONE = "importing", "waiting", "done"
#: Pause of an import after all tries of a page failed, or on a full disk.
AGAIN_AFTER_S = 600.0
_STATE, _LOCK = "last_days.json", ".last_days.lock"
_MINUTES_A_DAY = DAY_NS // MINUTE_NS


class ImportRunsError(CryptovolError):
    """Another import of the last days writes this history; the message names its folder."""


class Reached(msgspec.Struct, frozen=True):
    """Progress of a product.

    Attributes:
        minutes: of the span that are known, with a candle or without one.
        of: minutes of the span.
        refused: why no further minutes will come; empty where they may.
    """

    minutes: int
    of: int
    refused: str = ""


class Progress(msgspec.Struct, frozen=True):
    """The record of an import of the last days.

    Attributes:
        state: `IMPORTING`, `WAITING` (it cannot go on now and tries again), or `DONE`.
        first_day: first day of the span (``2024-01-31``).
        days: whole days of the span; the one that is running comes on top.
        products: how far each is.
        began_ns: when the import began.
        at_ns: when this was written. Once done it changes once more, after the minutes around the start.
        why: reason of waiting, in one line; empty where it does not wait.
    """

    state: str
    first_day: str
    days: int
    products: dict[str, Reached]
    began_ns: int
    at_ns: int
    why: str = ""

    @property
    def share(self) -> float:
        """Share of known minutes among the requested ones; refused minutes do not count."""
        wanted = [one for one in self.products.values() if not one.refused]
        return sum(one.minutes for one in wanted) / max(sum(one.of for one in wanted), 1)

    @property
    def last_day(self) -> str:
        """The last whole day of the span."""
        return partition_at(self.at_ns - DAY_NS, DAY_NS)

    @property
    def window(self) -> tuple[int, int]:
        """Start and end of the whole days, in ns."""
        return partition_window(self.first_day)[0], partition_window(self.last_day)[1]

    def sentence(self, *, runs: bool) -> str:
        """Return one line for people.

        Args:
            runs: whether a process is at work on it.
        """
        reached = ", ".join(
            f"{name} refused ({one.refused})" if one.refused else f"{name} {self._days_of(one)}"
            for name, one in self.products.items()
        )
        if self.state == DONE:
            return f"imported minutes: {reached}, as of {iso_utc(self.at_ns // NS * NS)}"
        if not runs:
            return f"import of minutes stopped: {reached}; `cryptovol up` continues it"
        line = f"importing minutes: {reached}; {self.share:.0%}"
        if self.state == WAITING:
            again = f"tried again every {AGAIN_AFTER_S / 60:g} min"
            line += f"; {self.why}; {again}"
        return line

    def _days_of(self, one: Reached) -> str:
        return f"{min(one.minutes // _MINUTES_A_DAY, self.days)} of {self.days} days"


def read_progress(root: Path) -> Progress | None:
    """Read the record beside a history's candles; None where no import of the last days has begun.

    Raises:
        HistoryError: the record cannot be read.
    """
    path = root / _STATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Progress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise HistoryError(f"{path}: cannot be read ({error}); remove it, it is written again") from error


def write_progress(root: Path, progress: Progress) -> None:
    """Replace the record.

    Raises:
        HistoryWriteError: it cannot be written.
    """
    path = root / _STATE
    try:
        replace_file(path, msgspec.json.encode(progress))
    except OSError as error:
        raise HistoryWriteError(f"{path}: cannot be written: {error.strerror or error}") from error


def is_importing(root: Path) -> bool:
    """Return whether a process imports the last days into a history now."""
    path = root / _LOCK
    return path.exists() and locks.is_locked(path)


@contextmanager
def the_only_import(root: Path) -> Iterator[None]:
    """Lock a history for the import of the last days.

    Raises:
        ImportRunsError: another process is at it.
        HistoryWriteError: the folder cannot be written.
    """
    path = root / _LOCK
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise HistoryWriteError(f"{path}: cannot be written: {error.strerror or error}") from error
    with file:
        if not locks.try_lock(file):
            raise ImportRunsError(f"{root}: an import of the last days runs there already")
        yield

"""Import of the minutes of the last days in the background.

Belongs here: the order of the work, and the handling of failures without a user. Does not belong here: pages
(`imports.py`), the record of progress (`progress.py`), processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from cryptovol_dagster.core.market.candle_checks import MINUTE_NS, CandleError
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster.core.times import DAY_NS, partition_at
from cryptovol_dagster.history.api import CandleApi, CandleApiError, CandleRefusedError
from cryptovol_dagster.history.imports import Choices, import_span, settled_until
from cryptovol_dagster.history.progress import (
    AGAIN_AFTER_S,
    DONE,
    IMPORTING,
    WAITING,
    Progress,
    Reached,
    the_only_import,
    write_progress,
)
from cryptovol_dagster.history.store import History, HistoryError, HistoryWriteError
from cryptovol_dagster.http_client import NoAnswerError
from ingestor.settings.sections import HistorySettings

#: The feed has no candle of the minute in which it began, and a minute is requested only two minutes after
#: its end. The minutes around the start are requested after this time.
AROUND_START_S = 240.0
#: Storing a page takes 0.1 s of CPU, of which the recorder has the first claim; storing ten, little more.
PAGES_AT_ONCE = 10
#: There is no user to choose: an impossible candle becomes a hole with the reason.
_CHOICES = Choices(skip_bad=True)


@dataclass
class LastDays:
    """An import of the last days of some products.

    Args:
        history: where to.
        settings: whom to ask, how hard, and how many days.
        products: the products, in this order.
        first_day_ns: earlier days are not requested.
        tell: called with each message for the operator, one line.
        clock_ns: returns the present time.
        sleep: how to wait.
    """

    history: History
    settings: HistorySettings
    products: Sequence[str]
    first_day_ns: int
    tell: Callable[[str], None]
    clock_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], None] = time.sleep
    _state: str = IMPORTING
    _began_ns: int = 0
    _reached: dict[str, Reached] = field(default_factory=dict)

    def run(self) -> None:
        """Import missing minutes until they are stored or refused; wait after other failures.

        A refusal of one product does not stop the others. A few minutes after the start, the minutes around
        it are requested as well.

        Raises:
            ImportRunsError: another process is at it.
            HistoryError: the history cannot be read, or its folder cannot be written at start or end.
        """
        with the_only_import(self.history.root):
            self._began_ns = self.clock_ns()
            while (why := self._ask_all()) is not None:
                with contextlib.suppress(HistoryWriteError):  # `why` reports it
                    self._record(WAITING, why)
                self.tell(f"{why}; tried again in {AGAIN_AFTER_S / 60:g} min")
                self.sleep(AGAIN_AFTER_S)
            self._state = DONE
            self._record(DONE)
            self.sleep(max(AROUND_START_S - (self.clock_ns() - self._began_ns) / NS, 0.0))
            if (why := self._ask_all()) is not None:
                self.tell(f"the minutes around the start were not imported: {why}")
            self._record(DONE)

    def _ask_all(self) -> str | None:
        """Request the missing minutes of each product; return why that cannot go on; None at the end."""
        start_ns, end_ns = self._span()
        minutes = (end_ns - start_ns) // MINUTE_NS
        for product in self.products:
            unknown = self.history.unknown(product, start_ns, end_ns).size
            known = self._reached.get(product)
            self._reached[product] = Reached(minutes - unknown, minutes, known.refused if known else "")
        try:
            self._record_step()
            with CandleApi(self.settings, sleep=self.sleep) as api:
                for product in self.products:
                    if not self._reached[product].refused:
                        self._import_product(api, product, start_ns, end_ns)
        except (CandleApiError, NoAnswerError) as error:
            return f"the exchange does not answer: {error}"
        except HistoryWriteError as error:
            return f"cannot go on: {error}"
        return None

    def _import_product(self, api: CandleApi, product: str, start_ns: int, end_ns: int) -> None:
        began = self._reached[product]
        pages = import_span(
            self.history,
            api,
            product,
            start_ns,
            end_ns,
            clock_ns=self.clock_ns,
            choices=_CHOICES,
            pages_at_once=PAGES_AT_ONCE,
        )
        try:
            for asked, _, _ in pages:
                self._reached[product] = msgspec.structs.replace(began, minutes=began.minutes + asked)
                self._record_step()
        except HistoryWriteError:
            raise  # no fault of the product
        except (CandleRefusedError, CandleError, HistoryError) as error:
            self._reached[product] = msgspec.structs.replace(self._reached[product], refused=str(error))
            self.tell(f"{product}: {error}; the other products go on")

    def _span(self) -> tuple[int, int]:
        """Return the span: whole days, and the settled minutes of today; empty before the first day."""
        now_ns = self.clock_ns()
        first_ns = now_ns // DAY_NS * DAY_NS - self.settings.first_import_days * DAY_NS
        start_ns = max(first_ns, self.first_day_ns)
        return start_ns, max(settled_until(now_ns), start_ns)

    def _record_step(self) -> None:
        """Record the progress, except around the start: otherwise computation would begin too early."""
        if self._state != DONE:
            self._record(self._state)

    def _record(self, state: str, why: str = "") -> None:
        now_ns = self.clock_ns()
        start_ns, _ = self._span()
        progress = Progress(
            state=state,
            first_day=partition_at(start_ns, DAY_NS),
            days=max(now_ns // DAY_NS * DAY_NS - start_ns, 0) // DAY_NS,
            products=dict(self._reached),
            began_ns=self._began_ns,
            at_ns=now_ns,
            why=why,
        )
        write_progress(self.history.root, progress)

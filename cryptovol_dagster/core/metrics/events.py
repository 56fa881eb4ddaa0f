"""Spike episodes instead of rows: how many are detected, how early, with how many false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from cryptovol_dagster.core.specs import NS

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Shortest time between two alarms of the same product.
REFRACTORY_S = 300


@dataclass(frozen=True)
class Event:
    """A spike episode of one product: decision times of its first and last positive row."""

    product: str
    start_ns: int
    end_ns: int

    def holds(self, product: str, t_ns: int) -> bool:
        """Return whether a row of a product is inside the episode."""
        return self.product == product and self.start_ns <= t_ns <= self.end_ns


@dataclass(frozen=True)
class Market:
    """Rows of a test (or validation) block in the order in which an operator sees them.

    Attributes:
        product: name of each row's product.
        t_ns: decision times, ascending within a product.
        y: whether ``(t, t + H]`` is a spike.
        visible: whether the trailing window already is a spike (False where unknown).
        bar_ns: length of a bar.
        horizon_ns: H.
    """

    product: NDArray[np.object_]
    t_ns: NDArray[np.int64]
    y: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    bar_ns: int
    horizon_ns: int

    @cached_property
    def hours(self) -> float:
        """Number of hours in which at least one product was scored."""
        return np.unique(self.t_ns).size * self.bar_ns / NS / 3_600

    @cached_property
    def _own_rows(self) -> dict[str, NDArray[np.int64]]:
        """Rows of each product, in order of time. Cached, because sorting names takes seconds."""
        codes, names = pd.factorize(self.product, sort=True)
        return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}

    @cached_property
    def _own_times(self) -> dict[str, NDArray[np.int64]]:
        return {name: self.t_ns[own] for name, own in self._own_rows.items()}

    def events(self) -> list[Event]:
        """Return the runs of positive rows of each product; gaps of at most H are bridged.

        Examples:
            >>> y = np.array([False, True, True, False, False, True])
            >>> t_ns = 1_000_000_000 * np.arange(6)
            >>> names = np.array(["BTC-USD"] * 6, dtype=object)
            >>> market = Market(names, t_ns, y, ~y & False, bar_ns=1_000_000_000, horizon_ns=1_000_000_000)
            >>> [(event.start_ns // 10**9, event.end_ns // 10**9) for event in market.events()]
            [(1, 2), (5, 5)]
        """
        return [event for own in self.events_by_product.values() for event in own]

    @cached_property
    def events_by_product(self) -> dict[str, list[Event]]:
        """Events of each product that has rows. Cached: many rules are compared with the same ones."""
        found: dict[str, list[Event]] = {}
        for name, own in self._own_rows.items():
            times = self.t_ns[own[self.y[own]]]
            cuts = np.flatnonzero(np.diff(times) > self.horizon_ns)
            starts, ends = (
                times[np.append(0, cuts + 1)[: times.size]],
                times[np.append(cuts, -1)[: times.size]],
            )
            found[name] = [Event(name, int(a), int(b)) for a, b in zip(starts, ends, strict=True)]
        return found

    def in_event(self, events: list[Event]) -> NDArray[np.bool_]:
        """Return which rows are inside an event, bridged gaps included."""
        inside = np.zeros(self.t_ns.size, dtype=bool)
        for event in events:
            inside[self._during(event)] = True
        return inside

    def alarms(self, flagged: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the rows that raise an alarm: flagged, no alarm of the product in the last 5 min."""
        sounded: list[int] = []
        for own in self._own_rows.values():
            rows = own[flagged[own]]
            times = self.t_ns[rows]
            at = 0
            while at < rows.size:
                sounded.append(int(rows[at]))
                at = int(np.searchsorted(times, times[at] + REFRACTORY_S * NS))
        return np.array(sorted(sounded), dtype=np.int64)

    def first_flags(self, flagged: NDArray[np.bool_], events: list[Event]) -> list[FirstFlag]:
        """Return, for each flagged event, the delay of its first flag and its lead over the visible spike.

        The delay counts from the event's first positive row. The lead counts up to the first row of the
        event whose own trailing window is a spike, which is when a measurement alone would have shown it.
        A negative lead means that the flag came later than that.
        """
        found = []
        for event in events:
            during = self._during(event)
            hits = self.t_ns[during[flagged[during]]]
            if hits.size:
                first = int(hits.min())
                shown_ns = self.first_visible_ns(event)
                lead = None if shown_ns is None else (shown_ns - first) / NS
                found.append(FirstFlag(delay_s=(first - event.start_ns) / NS, lead_s=lead))
        return found

    def first_visible_ns(self, event: Event) -> int | None:
        """Return the first row, up to H after the event, whose own trailing window is a spike.

        None where there is no such row.
        """
        until = self._during(Event(event.product, event.start_ns, event.end_ns + self.horizon_ns))
        shown = self.t_ns[until[self.visible[until]]]
        return int(shown.min()) if shown.size else None

    def _during(self, event: Event) -> NDArray[np.int64]:
        own = self._own_rows[event.product]
        first, stop = np.searchsorted(self._own_times[event.product], [event.start_ns, event.end_ns + 1])
        return own[first:stop]


class FirstFlag(NamedTuple):
    """Delay and lead of an event's first flag, in seconds."""

    delay_s: float
    lead_s: float | None


def alert_budget_threshold(
    market: Market, score: NDArray[np.float64], budget_per_hour: float, candidates: int = 200
) -> float | None:
    """Return the lowest threshold down to which false alarms stay within the budget; None if none does.

    False alarms are counted over all products together, with the refractory time, as one person receives
    them. Candidates are quantiles of the scores.

    Examples:
        >>> y = np.array([False, False, False, True])
        >>> t_ns = 600_000_000_000 * np.arange(4)
        >>> names = np.array(["BTC-USD"] * 4, dtype=object)
        >>> market = Market(names, t_ns, y, ~y & False, bar_ns=600_000_000_000, horizon_ns=600_000_000_000)
        >>> alert_budget_threshold(market, np.array([0.1, 0.2, 0.6, 0.9]), budget_per_hour=0.0)
        0.9
    """
    inside = market.in_event(market.events())
    lowest = None
    for threshold in np.unique(np.quantile(score, np.linspace(0, 1, candidates), method="higher"))[::-1]:
        alarms = market.alarms(score >= threshold)
        if np.count_nonzero(~inside[alarms]) / market.hours > budget_per_hour:
            break
        lowest = float(threshold)
    return lowest

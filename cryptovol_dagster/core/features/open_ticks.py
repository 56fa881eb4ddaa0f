"""Ticks of the bars that may still change, cleaned again at each close."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.market.cleaning import TickCounts, clean_ticks, flag_gaps, recent_ticks
from cryptovol_dagster.core.market.ticks import TickColumns


class OpenTicks:
    """The last ticks of one recording in offset order, and the known gaps between them.

    Examples:
        >>> from cryptovol_dagster.core.market.synthetic import synthetic_ticks
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> ticks, _ = synthetic_ticks(SPEC, 2, products=("BTC-USD",))
        >>> held = OpenTicks(late_ns=2_000_000_000)
        >>> held.add(ticks)
        >>> len(held.cleaned()), held.products
        (6, ('BTC-USD',))
        >>> held.learn_gaps({"synthetic": np.array([3])})
        True
    """

    def __init__(self, late_ns: int) -> None:
        """Begin without ticks.

        Args:
            late_ns: a tick older than its product's newest by more than this is left out.
        """
        self._late_ns = late_ns
        self._ticks = TickColumns.empty()
        self._gaps: dict[str, NDArray[np.int64]] = {}
        self._counted = TickCounts()
        #: Rows by outcome of cleaning, of all ticks so far, earlier recordings included.
        self.counts = TickCounts()
        #: Connections of this recording.
        self.connections: set[str] = set()

    @property
    def products(self) -> tuple[str, ...]:
        """Products of this recording so far."""
        return self._ticks.products

    def add(self, ticks: TickColumns) -> None:
        """Add the next ticks in offset order."""
        self.connections.update(ticks.connections[code] for code in np.unique(ticks.connection))
        self._ticks = TickColumns.concat([self._ticks, ticks])

    def learn_gaps(self, gaps: dict[str, NDArray[np.int64]]) -> bool:
        """Note lost messages: all known first missing sequence numbers, ascending, by connection.

        Returns:
            Whether a connection of this recording has gaps that were not known before.
        """
        changed = False
        for connection, firsts in gaps.items():
            known = self._gaps.get(connection)
            if known is None or len(known) != len(firsts):
                self._gaps[connection] = firsts
                changed |= connection in self.connections
        return changed

    def cleaned(self) -> TickColumns:
        """Return the held ticks, cleaned, and add up the counts of cleaning."""
        cleaned = clean_ticks(flag_gaps(self._ticks, self._gaps), self._late_ns)
        self.counts += _difference(cleaned.counts, self._counted)
        self._counted = cleaned.counts
        return cleaned.ticks

    def forget_before(self, from_ns: int) -> None:
        """Keep what cleaning the ticks from `from_ns` on needs, and drop older ticks."""
        kept = recent_ticks(self._ticks, self._gaps, self._late_ns, from_ns)
        self._ticks, self._counted = kept.ticks, kept.counts

    def restart(self) -> None:
        """Drop the ticks of a recording that ended."""
        self._ticks, self._counted, self.connections = TickColumns.empty(), TickCounts(), set()


def _difference(whole: TickCounts, part: TickCounts) -> TickCounts:
    return TickCounts(
        **{each.name: getattr(whole, each.name) - getattr(part, each.name) for each in fields(whole)}
    )

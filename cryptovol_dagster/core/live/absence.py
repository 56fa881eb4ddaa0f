"""Bars of followed products of which no row came: each is reported once, so that no second is passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cryptovol_dagster.core.features.live import LONGEST_HOLE_NS, LONGEST_SILENCE_NS


@dataclass
class _Account:
    """Bars of a product up to `until_ns` have a row or were reported; later ones with a row are in `seen`."""

    until_ns: int
    newest_ns: int
    seen: set[int] = field(default_factory=set)


class Absences:
    """Accounts for every bar of every product, from its first row or report on. Times are in ns.

    Products that are configured are followed for ever, others as long as a row came within the last hour.

    Examples:
        >>> absences = Absences(10, lambda product: 0, ["BTC-USD"])
        >>> absences.due(0, 100)
        []
        >>> absences.saw("BTC-USD", 120)
        >>> absences.due(0, 130)
        [('BTC-USD', 110), ('BTC-USD', 130)]
        >>> absences.due(0, 130)
        []
    """

    def __init__(self, bar_ns: int, partition_of: Callable[[str], int], products: Iterable[str] = ()) -> None:
        """Begin without any account.

        Args:
            bar_ns: length of a bar.
            partition_of: partition of ticks.raw of a product.
            products: configured products.
        """
        self._bar_ns, self._partition_of = bar_ns, partition_of
        self._configured = tuple(products)
        self._accounts: dict[str, _Account] = {}

    def saw(self, product: str, bar_end_ns: int) -> None:
        """Note a row of a product, new or revised."""
        account = self._accounts.get(product)
        if account is None or not -2 * LONGEST_SILENCE_NS < bar_end_ns - account.until_ns <= LONGEST_HOLE_NS:
            # The first row, or one of another recording.
            self._accounts[product] = _Account(bar_end_ns, bar_end_ns)
            return
        account.newest_ns = max(account.newest_ns, bar_end_ns)
        if bar_end_ns > account.until_ns:
            account.seen.add(bar_end_ns)

    def start(self, product: str, until_ns: int) -> None:
        """Begin a product's account at a time up to which an earlier run accounted for its bars."""
        self._accounts[product] = _Account(until_ns, until_ns)

    def due(self, partition: int, until_ns: int) -> list[tuple[str, int]]:
        """Return (product, bar end) of the bars without a row that end by a time, product by product.

        Args:
            partition: of ticks.raw.
            until_ns: event time by which the rows should have come.
        """
        until_ns = until_ns // self._bar_ns * self._bar_ns
        found = []
        for product in [*dict.fromkeys((*self._configured, *self._accounts))]:
            if self._partition_of(product) != partition:
                continue
            account = self._accounts.setdefault(product, _Account(until_ns, until_ns))
            if until_ns <= account.until_ns:
                continue
            if product not in self._configured and until_ns - account.newest_ns > LONGEST_SILENCE_NS:
                del self._accounts[product]
                continue
            if until_ns - account.until_ns <= LONGEST_HOLE_NS:
                ends = range(account.until_ns + self._bar_ns, until_ns + 1, self._bar_ns)
                found += [(product, end_ns) for end_ns in ends if end_ns not in account.seen]
            account.until_ns = until_ns
            account.seen = {end_ns for end_ns in account.seen if end_ns > until_ns}
        return found

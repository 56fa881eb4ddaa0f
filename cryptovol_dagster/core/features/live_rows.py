"""Feature rows of a stream: rows to publish now, and rows that an earlier run published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import own_feature_names
from cryptovol_dagster.core.specs import TimescaleSpec


@dataclass(frozen=True, eq=False)
class LiveRows:
    """Feature rows to publish, ordered by bar, then product.

    Attributes:
        products: product ids, indexed by `product`.
        names: names of the own features: the products of other partitions are not known here.
        bar_ns: length of a bar.
        product: index into `products` (n,).
        bar_start_ns: start of each row's bar (n,); the row is known at the bar's end.
        values: features (n, n_features); NaN where one has no value.
        valid: the row may be scored (n,).
        reason: code of `Reason` (n,).
        revision: 0 when first published, one more each time the row is published again (n,).
        provisional: a revision may follow (n,). The product was in a gap, or the feed's newest event was
            older than the bar's end.
        known: an earlier run published this very row (n,); it need not be published again.

    Examples:
        >>> rows = LiveRows(
        ...     ("BTC-USD",), ("ret_5",), 5, np.zeros(2, int), np.array([10, 15]), np.array([[0.1], [0.2]]),
        ...     valid=np.ones(2, bool), reason=np.zeros(2, np.int8), revision=np.array([0, 1], np.int32),
        ...     provisional=np.array([False, True]), known=np.array([False, False]),
        ... )
        >>> rows.bar_end_ns
        array([15, 20])
        >>> rows.take(rows.revision > 0).to_frame()["ret_5"].tolist()
        [0.2]
    """

    products: tuple[str, ...]
    names: tuple[str, ...]
    bar_ns: int
    product: NDArray[np.int64]
    bar_start_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    reason: NDArray[np.int8]
    revision: NDArray[np.int32]
    provisional: NDArray[np.bool_]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.product)

    @property
    def bar_end_ns(self) -> NDArray[np.int64]:
        """End of each row's bar: when the row could be known."""
        return self.bar_start_ns + self.bar_ns

    def take(self, rows: NDArray[Any]) -> LiveRows:
        """Return the given rows (indices or mask)."""
        names = [each.name for each in fields(self)][3:]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def to_frame(self) -> pd.DataFrame:
        """Return the columns of `FeatureGrid.to_frame`, `revision` and `provisional`; product as text."""
        return pd.DataFrame(
            {
                "bar_start": pd.to_datetime(self.bar_start_ns, unit="ns", utc=True),
                "product": pd.Series(np.array(self.products, dtype=object)[self.product], dtype=object),
                **dict(zip(self.names, self.values.T, strict=True)),
                "valid": self.valid,
                "reason": self.reason,
                "revision": self.revision,
                "provisional": self.provisional,
            }
        )


@dataclass(frozen=True, eq=False)
class PublishedRow:
    """A row as an earlier run published it."""

    product_id: str
    bar_end_ns: int
    revision: int
    valid: bool
    reason: int
    values: NDArray[np.float64]


def join_rows(parts: Sequence[LiveRows], spec: TimescaleSpec) -> LiveRows:
    """Return the rows of `parts`, in that order, over one list of products."""
    if len(parts) == 1:
        return parts[0]
    names = own_feature_names(spec)
    products = tuple(dict.fromkeys(product for part in parts for product in part.products))
    place = {product: code for code, product in enumerate(products)}
    codes = [np.array([place[p] for p in part.products], dtype=np.int64)[part.product] for part in parts]
    columns: dict[str, Any] = {
        "product": np.concatenate([np.empty(0, np.int64), *codes]),
        "values": np.concatenate([np.empty((0, len(names))), *(part.values for part in parts)]),
    }
    for name, dtype in (
        ("bar_start_ns", np.int64),
        ("valid", np.bool_),
        ("reason", np.int8),
        ("revision", np.int32),
        ("provisional", np.bool_),
        ("known", np.bool_),
    ):
        columns[name] = np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])
    return LiveRows(products=products, names=names, bar_ns=spec.bar_ns, **columns)

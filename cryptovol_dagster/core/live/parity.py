"""Final revisions of published scores compared with the rows that the pipeline computed later."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryptovol_dagster.core.live.reasons import NO_MODEL, NOT_HEARD, OK, OTHER_FEATURES
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Probabilities of one model on equal rows may differ by this much.
TOLERANCE = 1e-9
EQUAL, DIFFERING, MISSING, NOT_IN_LAKE = "equal", "differing", "missing", "not_in_lake"
#: Parts of a row that are compared.
REASON, HASH, PROBABILITY = "reason", "hash", "probability"
#: Reasons that describe the model and not the row.
_OF_THE_MODEL = (NO_MODEL, OTHER_FEATURES)
_KEY = ["product_id", "bar_end_ns"]
_EXAMPLES = 3


@dataclass(frozen=True)
class Parity:
    """Rows on either side, and how they compare.

    Attributes:
        first: end of the first published bar, ISO 8601; None without any.
        last: of the last. Bars outside of these two are not compared.
        rows: rows compared: those of the lake between the two, and published ones that the lake lacks.
        equal: rows that are equal in each compared part.
        differing: rows that differ in at least one part.
        missing: rows of the lake that may be scored and were not published, or only as ``not_heard``.
        missing_unscorable: the same of rows that may not be scored, so that neither side has a probability.
        not_in_lake: published rows that the lake lacks.
        outside: rows of the lake before the first published bar and after the last.
        differing_by: rows that differ, by part; a row may differ in several.
        reasons: rows whose reason differs, by ``<live> for <lake>``.
        missing_by_reason: missing rows of either kind, by the lake's reason.
        products: the five counts by product.
        hashes: number of hashes compared: a row published without others of the reference set has none.
        probabilities: number of probabilities compared.
        not_compared: number of probabilities that were not, by reason.
        tolerance: largest difference at which two probabilities count as equal.
        max_difference: largest difference found; None without any.
        examples: the first rows that are not equal: product, bar end, both sides.
    """

    first: str | None
    last: str | None
    rows: int
    equal: int
    differing: int
    missing: int
    missing_unscorable: int
    not_in_lake: int
    outside: int
    differing_by: dict[str, int]
    reasons: dict[str, int]
    missing_by_reason: dict[str, int]
    products: dict[str, dict[str, int]]
    hashes: int
    probabilities: int
    not_compared: dict[str, int]
    tolerance: float
    max_difference: float | None
    examples: list[dict[str, Any]]

    @property
    def holds(self) -> bool:
        """Whether no row differs, and none that may be scored is missing on either side."""
        return not (self.differing or self.missing or self.not_in_lake)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self)


def compare(live: pd.DataFrame, lake: pd.DataFrame) -> Parity:
    """Compare the final revision of each row with the lake's row: reason, hash and probability.

    Args:
        live: one row a published (product, bar): `product_id`, `bar_end_ns`, `reason`, `row_hash` (null where
            the row was not known), `probability` (NaN where there is none).
        lake: one row a computed (product, bar): `product_id`, `bar_end_ns`, `reason` (``ok`` where valid),
            `row_hash`, `probability` of the model that published the row (NaN where it was not computed) and
            `without` (why it was not; empty where it was).

    Examples:
        >>> live = pd.DataFrame({"product_id": "BTC-USD", "bar_end_ns": [1, 2, 4], "reason": "ok",
        ...     "row_hash": ["a", "b", "d"], "probability": [0.1, 0.2, 0.4]})
        >>> lake = pd.DataFrame({"product_id": "BTC-USD", "bar_end_ns": [1, 2, 3, 4], "reason": "ok",
        ...     "row_hash": ["a", "x", "c", "d"], "probability": [0.1, 0.2, 0.3, 0.5], "without": ""})
        >>> found = compare(live, lake)
        >>> found.equal, found.differing_by, found.missing
        (1, {'reason': 0, 'hash': 1, 'probability': 1}, 1)
        >>> compare(live.head(1), lake.head(1)).holds
        True
    """
    if live.empty:
        first_ns, last_ns = None, None
        within = np.zeros(len(lake), bool)
    else:
        first_ns, last_ns = int(live["bar_end_ns"].min()), int(live["bar_end_ns"].max())
        within = lake["bar_end_ns"].between(first_ns, last_ns).to_numpy()
    both = live.merge(
        lake.loc[within], how="outer", on=_KEY, suffixes=("_live", "_lake"), indicator="side", validate="1:1"
    ).sort_values(["bar_end_ns", "product_id"], kind="stable", ignore_index=True)
    unlike = _differences(both)
    outcome = _outcomes(both, unlike)
    scorable = (both["reason_lake"] == OK).to_numpy()
    missing = outcome == MISSING
    compared = both["probability_live"].notna() & both["probability_lake"].notna()
    difference = (both["probability_live"] - both["probability_lake"]).abs()[compared]
    differs = outcome == DIFFERING
    pairs = both.loc[differs & unlike[REASON], ["reason_live", "reason_lake"]].agg(" for ".join, axis=1)
    return Parity(
        first=None if first_ns is None else iso_utc(first_ns),
        last=None if last_ns is None else iso_utc(last_ns),
        rows=len(both),
        equal=int(np.sum(outcome == EQUAL)),
        differing=int(differs.sum()),
        missing=int(np.sum(missing & scorable)),
        missing_unscorable=int(np.sum(missing & ~scorable)),
        not_in_lake=int(np.sum(outcome == NOT_IN_LAKE)),
        outside=int(np.sum(~within)),
        differing_by={part: int(np.sum(differs & found)) for part, found in unlike.items()},
        reasons=_counted(pairs),
        missing_by_reason=_counted(both.loc[missing, "reason_lake"]),
        products=_by_product(both["product_id"].to_numpy(object), outcome, scorable),
        hashes=int((both["row_hash_live"].notna() & both["row_hash_lake"].notna()).sum()),
        probabilities=int(compared.sum()),
        not_compared=_counted(both.loc[(both["without"].fillna("") != "").to_numpy(), "without"]),
        tolerance=TOLERANCE,
        max_difference=float(difference.max()) if len(difference) else None,
        examples=_examples(both, outcome, unlike, scorable),
    )


def _differences(both: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Return for each part which rows differ in it; rows of one side only differ in none."""
    paired = (both["side"] == "both").to_numpy() & (both["reason_live"] != NOT_HEARD).to_numpy()
    of_the_row = ~both["reason_live"].isin(_OF_THE_MODEL).to_numpy()
    reason = (both["reason_live"] != both["reason_lake"]).to_numpy()
    hashed = both["row_hash_live"].notna().to_numpy()
    unlike_hash = (both["row_hash_live"] != both["row_hash_lake"]).to_numpy()
    # NaN on either side: a probability is compared only where both sides have one.
    far = ((both["probability_live"] - both["probability_lake"]).abs() > TOLERANCE).to_numpy()
    return {
        REASON: paired & of_the_row & reason,
        HASH: paired & hashed & unlike_hash,
        PROBABILITY: paired & far,
    }


def _outcomes(both: pd.DataFrame, unlike: dict[str, NDArray[np.bool_]]) -> NDArray[np.object_]:
    outcome = np.full(len(both), EQUAL, dtype=object)
    outcome[np.logical_or.reduce(list(unlike.values()))] = DIFFERING
    unheard = (both["reason_live"] == NOT_HEARD).to_numpy()
    outcome[(both["side"] == "right_only").to_numpy() | unheard] = MISSING
    outcome[(both["side"] == "left_only").to_numpy()] = NOT_IN_LAKE
    return outcome


def _by_product(
    product: NDArray[np.object_], outcome: NDArray[np.object_], scorable: NDArray[np.bool_]
) -> dict[str, dict[str, int]]:
    named = np.where((outcome == MISSING) & ~scorable, "missing_unscorable", outcome)
    names = (EQUAL, DIFFERING, MISSING, "missing_unscorable", NOT_IN_LAKE)
    counts = pd.crosstab(product, named).reindex(columns=list(names), fill_value=0)
    return {
        str(name): {kind: int(row[kind]) for kind in names} for name, row in counts.sort_index().iterrows()
    }


def _counted(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in sorted(values.value_counts().items())}


def _examples(
    both: pd.DataFrame,
    outcome: NDArray[np.object_],
    unlike: dict[str, NDArray[np.bool_]],
    scorable: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    wrong = (outcome != EQUAL) & ~((outcome == MISSING) & ~scorable)
    found = []
    for at in np.flatnonzero(wrong)[:_EXAMPLES]:
        row = both.iloc[at]
        sides = {
            side: {
                name: None if pd.isna(row[f"{name}_{side}"]) else row[f"{name}_{side}"]
                for name in ("reason", "row_hash", "probability")
            }
            for side in ("live", "lake")
        }
        parts = [part for part, rows in unlike.items() if rows[at]]
        bar_end = iso_utc(int(row["bar_end_ns"]))
        found.append(
            {
                "outcome": outcome[at],
                "by": parts,
                "product": str(row["product_id"]),
                "bar_end": bar_end,
                **sides,
            }
        )
    return found

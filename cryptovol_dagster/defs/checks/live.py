"""Check of the published scores."""

# No `from __future__ import annotations` here: Dagster reads annotations.

from collections.abc import Mapping
from typing import Any

from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.defs.checks.framework import Check, Stored
from cryptovol_dagster.defs.metadata import asset_key

CHECK = "live_equals_batch"


def live_checks(spec: TimescaleSpec) -> list[Check]:
    """Declare the check of the published scores."""
    return [
        Check(
            asset_key(spec, "live_outcomes"),
            CHECK,
            _live_equals_batch,
            description="Every published row is the computed one: same reason, same hash, same probability. "
            "From the first published bar of the hour to the last, no row that may be scored is missing on "
            "either side. An hour without scores passes, and its result says so.",
            blocking=True,
            nothing_to_check=_without_scores,
        )
    ]


def _without_scores(stored: Stored) -> str:
    body = stored.json()
    return str(body["reason"]) if body["parity"] is None else ""


def _live_equals_batch(stored: Stored) -> list[str]:
    found = stored.json()["parity"]
    if found is None:
        return []
    span = f"{found['first']} … {found['last']}"
    sentences = []
    if found["differing"]:
        parts = ", ".join(f"{count} in {part}" for part, count in found["differing_by"].items() if count)
        sentences.append(
            f"expected every published row of {span} to equal the computed one, found "
            f"{found['differing']:,} of {found['rows']:,} that differ ({parts})"
        )
    if found["missing"]:
        sentences.append(
            f"expected each row of {span} that may be scored to be published, found {found['missing']:,} "
            f"of {found['rows']:,} missing"
        )
    if found["not_in_lake"]:
        sentences.append(
            f"expected each published row of {span} to be computed too, found {found['not_in_lake']:,} "
            "that are not in the lake"
        )
    return sentences + [_example(one) for one in found["examples"]]


def _example(one: Mapping[str, Any]) -> str:
    live, lake = (
        ", ".join(f"{name} {value}" for name, value in one[side].items() if value is not None) or "nothing"
        for side in ("live", "lake")
    )
    return f"{one['product']} {one['bar_end']}: expected {lake}, found {live}"

"""The ledger of the reserved months: days of the minutes, from `holdout_from` on, on which nothing is chosen.

Belongs here: recording an evaluation on those days before its numbers are shown, and counting earlier ones.
There is one ledger beside the default reports, wherever a backtest writes its own. These months are not the
hold-out of a promotion contest (`core/promotion`), which are the rows that champion and challenger have not
learned from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ingestor.errors import CryptovolError


class LedgerError(CryptovolError):
    """The ledger cannot be read or written, so nothing may be evaluated; the message is one line."""


def ledger_path(reports_dir: Path) -> Path:
    """Return the path of the one ledger of a configuration."""
    return reports_dir / "backtest" / "holdout_looks.jsonl"


def record_evaluation(ledger: Path, evaluation: Mapping[str, Any]) -> int:
    """Record an evaluation durably and return how many there were, this one included.

    Earlier evaluations count where their horizon is the same and they share a product: rows of BTC-USD were
    seen whether alone or pooled with others, and whatever the models.

    Args:
        ledger: a JSON object a line; created if missing.
        evaluation: `products` and `horizon_bars`, and further identifying fields.

    Raises:
        LedgerError: the ledger cannot be read or written.
    """
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **evaluation}
    try:
        earlier = _read_evaluations(ledger)
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise LedgerError(f"{ledger}: cannot be kept: {error.strerror or error}") from error
    products = set(evaluation["products"])
    return 1 + sum(
        one["horizon_bars"] == evaluation["horizon_bars"] and not products.isdisjoint(one["products"])
        for one in earlier
    )


def _read_evaluations(ledger: Path) -> list[dict[str, Any]]:
    if not ledger.exists():
        return []
    found = []
    for number, text in enumerate(ledger.read_text().splitlines(), start=1):
        try:
            one = json.loads(text)
            found.append({"products": list(one["products"]), "horizon_bars": int(one["horizon_bars"])})
        except (ValueError, TypeError, KeyError) as error:
            found_instead = f"expected an evaluation in line {number}, found {text[:60]!r}"
            raise LedgerError(f"{ledger}: {found_instead}") from error
    return found

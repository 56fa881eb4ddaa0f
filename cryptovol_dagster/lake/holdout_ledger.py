"""The ledger of looks at the hold-out of the minutes: the days on which nothing was chosen.

Belongs here: writing a look down before anybody sees a number, and counting those there were. One ledger lies
beside the default reports, wherever a backtest writes its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ingestor.errors import CryptovolError


class LookError(CryptovolError):
    """The ledger can be neither read nor written, so nobody may look; the message is one line."""


def ledger_path(reports_dir: Path) -> Path:
    """Where the one ledger of a configuration lies."""
    return reports_dir / "backtest" / "holdout_looks.jsonl"


def record_look(ledger: Path, look: Mapping[str, Any]) -> int:
    """Write a look down, durably, and tell how many there were, this one included.

    Earlier looks count where their horizon is the same and they share a product: rows of BTC-USD were seen
    whether alone or pooled with others, and whatever the models.

    Args:
        ledger: a JSON object a line; made where there is none.
        look: `products` and `horizon_bars`, and what else tells one look from another.

    Raises:
        LookError: the ledger cannot be read or written.
    """
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **look}
    try:
        earlier = _looks(ledger)
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise LookError(f"{ledger}: cannot be kept: {error.strerror or error}") from error
    products = set(look["products"])
    return 1 + sum(
        one["horizon_bars"] == look["horizon_bars"] and not products.isdisjoint(one["products"])
        for one in earlier
    )


def _looks(ledger: Path) -> list[dict[str, Any]]:
    if not ledger.exists():
        return []
    looks = []
    for number, text in enumerate(ledger.read_text().splitlines(), start=1):
        try:
            look = json.loads(text)
            looks.append({"products": list(look["products"]), "horizon_bars": int(look["horizon_bars"])})
        except (ValueError, TypeError, KeyError) as error:
            raise LookError(f"{ledger}: expected a look in line {number}, found {text[:60]!r}") from error
    return looks

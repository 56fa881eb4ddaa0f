"""The ledger of looks at the hold-out: what counts as another look, and that nobody looks without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptovol_dagster.lake.holdout_ledger import LookError, ledger_path, record_look


def look(*products: str, horizon_bars: int = 5) -> dict[str, object]:
    return {"products": list(products), "horizon_bars": horizon_bars}


def test_looks_that_share_a_product_and_the_horizon_count_together(tmp_path: Path) -> None:
    ledger = ledger_path(tmp_path)
    asked = [
        (look("BTC-USD"), 1),
        (look("ETH-USD"), 1),
        (look("BTC-USD", horizon_bars=15), 1),
        (look("BTC-USD", "ETH-USD"), 3),
        (look("BTC-USD"), 3),
    ]
    assert [record_look(ledger, one) for one, _ in asked] == [count for _, count in asked]
    assert len(ledger.read_text().splitlines()) == len(asked)


def test_without_a_ledger_nobody_looks(tmp_path: Path) -> None:
    ledger = ledger_path(tmp_path)
    record_look(ledger, look("BTC-USD"))
    whole = ledger.read_text()
    ledger.write_text(whole + '{"products": ["BTC')
    with pytest.raises(LookError, match=r"looks\.jsonl: expected a look in line 2, found '{\"products"):
        record_look(ledger, look("BTC-USD"))
    (tmp_path / "file").write_text("")
    with pytest.raises(LookError, match="cannot be kept: "):
        record_look(ledger_path(tmp_path / "file"), look("BTC-USD"))

"""The ledger of the reserved months: which evaluations count together, and that none goes unrecorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptovol_dagster.lake.reserved_months import LedgerError, ledger_path, record_evaluation


def evaluation(*products: str, horizon_bars: int = 5) -> dict[str, object]:
    return {"products": list(products), "horizon_bars": horizon_bars}


def test_evaluations_that_share_a_product_and_the_horizon_count_together(tmp_path: Path) -> None:
    ledger = ledger_path(tmp_path)
    asked = [
        (evaluation("BTC-USD"), 1),
        (evaluation("ETH-USD"), 1),
        (evaluation("BTC-USD", horizon_bars=15), 1),
        (evaluation("BTC-USD", "ETH-USD"), 3),
        (evaluation("BTC-USD"), 3),
    ]
    assert [record_evaluation(ledger, one) for one, _ in asked] == [count for _, count in asked]
    assert len(ledger.read_text().splitlines()) == len(asked)


def test_without_a_readable_ledger_nothing_is_evaluated(tmp_path: Path) -> None:
    ledger = ledger_path(tmp_path)
    record_evaluation(ledger, evaluation("BTC-USD"))
    whole = ledger.read_text()
    ledger.write_text(whole + '{"products": ["BTC')
    says = r"looks\.jsonl: expected an evaluation in line 2, found '{\"products"
    with pytest.raises(LedgerError, match=says):
        record_evaluation(ledger, evaluation("BTC-USD"))
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be kept: "):
        record_evaluation(ledger_path(tmp_path / "file"), evaluation("BTC-USD"))

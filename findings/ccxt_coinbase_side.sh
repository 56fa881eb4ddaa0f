#!/usr/bin/env bash
# Library:  ccxt 4.5.90, classes coinbase and coinbaseexchange
# Expected: One trade has one side. Both of Coinbase's interfaces report the maker's side of a
#           trade.
# Happens:  coinbaseexchange gives the taker's side, coinbase passes the maker's side on: signed
#           volume changes its sign.
# For us:   In market_trades we take SELL for a taker who bought, as recordings show. Whoever
#           compares signed volumes with ccxt's must look at the class.
set -euo pipefail
VERSION=${VERSION:-4.5.90}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "ccxt==$VERSION"

env/bin/python - <<'PYTHON'
import sys

import ccxt

trade = {"trade_id": "880000001", "price": "67000.01", "size": "0.5", "time": "2026-11-30T12:00:00.123456Z"}
sides = {
    "coinbase": ccxt.coinbase().parse_trade(trade | {"product_id": "BTC-USD", "side": "SELL"})["side"],
    "coinbaseexchange": ccxt.coinbaseexchange().parse_trade(trade | {"side": "sell"})["side"],
}
print(f"ccxt {ccxt.__version__}")
print("expected: the same side for the same trade (maker sold) from both interfaces of the exchange")
print("happened: " + ", ".join(f"{side} by {name}" for name, side in sides.items()))
if len(set(sides.values())) == 1:
    sys.exit("changed: both classes give the same side")
PYTHON

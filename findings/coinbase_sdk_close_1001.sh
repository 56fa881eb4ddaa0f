#!/usr/bin/env bash
# Library:  coinbase-advanced-py 1.8.4 with websockets 13.1
# Expected: With retry=True the client connects again when the exchange closes the connection, also
#           with code 1001 (going away).
# Happens:  After close code 1011 the client connects again. After 1001 it stops, and nothing tells
#           the caller.
# For us:   The recorder connects again after every close that it did not ask for.
set -euo pipefail
VERSION=${VERSION:-1.8.4}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "coinbase-advanced-py==$VERSION" websockets==13.1

env/bin/python - <<'PYTHON'
import asyncio
import json
import sys
import time
from importlib.metadata import version

import websockets
from coinbase.websocket import WSClient


async def connections(code):
    """Count the connections of one client to a server that closes the first one after its subscription."""
    opened = []

    async def serve(socket):
        opened.append(socket)
        await socket.recv()
        await socket.send(json.dumps({"channel": "subscriptions", "events": []}))
        if len(opened) == 1:
            await asyncio.sleep(1)  # the client waits for the next message
            await socket.close(code)
        await socket.wait_closed()

    async with websockets.serve(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = WSClient(base_url=f"ws://127.0.0.1:{port}", on_message=lambda message: None, retry=True)
        await client.open_async()
        await client.subscribe_async(["BTC-USD"], ["ticker"])
        until = time.monotonic() + 15
        while len(opened) < 2 and time.monotonic() < until:
            await asyncio.sleep(0.1)
        error = client._background_exception
        await opened[-1].close()
    return len(opened), error


(after_1001, error), (after_1011, _) = asyncio.run(connections(1001)), asyncio.run(connections(1011))
print(f"coinbase-advanced-py {version('coinbase-advanced-py')}, websockets {version('websockets')}")
print("expected: a second connection within 15 s of either close")
print(f"happened: {after_1011} connections with 1011, {after_1001} with 1001, error for the caller: {error}")
if (after_1001, after_1011) != (1, 2) or error is not None:
    sys.exit("changed: 1001 is retried or reported, or 1011 is not retried")
PYTHON

"""A feed in a thread, and settings of a run of one's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from ingestor.settings.load import load_settings
from ingestor.settings.sections import Settings

Script = Callable[[ServerConnection], None]


@contextmanager
def served(script: Script) -> Iterator[str]:
    """Serve `script` to each connection once it has subscribed; yields the address."""

    def serve_one(socket: ServerConnection) -> None:
        socket.recv()
        script(socket)

    server: Server = serve(serve_one, "127.0.0.1", 0, compression=None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def feed_server() -> Callable[[Script], AbstractContextManager[str]]:
    return served


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, whose data folder the environment names; quick limits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYPTOVOL_CONFIG", "")  # and what --config writes there is undone
    monkeypatch.setenv("CRYPTOVOL__STORAGE__DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CRYPTOVOL__INGEST__FRAME_SILENCE_S", "1")
    monkeypatch.setenv("CRYPTOVOL__INGEST__BACKOFF_INITIAL_S", "0.01")
    monkeypatch.setenv("CRYPTOVOL__INGEST__BACKOFF_MAX_S", "0.05")
    monkeypatch.setenv("CRYPTOVOL__KAFKA__CONNECT_TIMEOUT_S", "1")
    return tmp_path


@pytest.fixture
def settings(environment: Path) -> Settings:
    return load_settings().settings

"""Short checks whether a service answers at an address."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 2.0


def answers(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether a web server answers with a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return True
    except (OSError, ValueError):  # ValueError: no URL, which is nowhere
        return False


def ask(url: str, body: Any = None, timeout_s: float = TIMEOUT_S) -> Any:
    """Return the JSON answer of a web server, by POST where there is a body; None where it is not JSON."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except (OSError, ValueError):  # ValueError: no URL, or no JSON
        return None


def accepts(address: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether a connection can be opened to ``host:port``."""
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def why_taken(port: int, host: str = "127.0.0.1") -> str | None:
    """Return why a port cannot be listened on; None when it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None

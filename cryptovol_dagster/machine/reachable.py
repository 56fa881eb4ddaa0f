"""Whether something answers at an address, asked once and briefly."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

TIMEOUT_S = 2.0


def answers(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Tell whether a web server gives a page, or any answer below 400."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return True
    except (OSError, ValueError):  # ValueError: no URL, which is nowhere
        return False


def accepts(address: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Tell whether a connection can be opened to ``host:port``."""
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """Give a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def why_taken(port: int, host: str = "127.0.0.1") -> str | None:
    """Say why a port cannot be listened on; None when it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None

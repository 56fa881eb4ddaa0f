"""The pipeline's one HTTP client: httpx sends a request, tenacity tries it again.

Belongs here: what holds for every request (proxies, the log, which failures are worth another attempt). Does
not belong here: addresses, and what an answer says. The recorder posts with urllib: its image has no httpx.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from ingestor.errors import CryptovolError, first_line

# httpx logs every address it asks, and the address of a webhook is a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)


class AttemptError(CryptovolError):
    """An attempt failed, and another one may not; the message is one line.

    Attributes:
        after_s: how long the server asks the client to wait (`Retry-After`), in seconds.
    """

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class NoAnswerError(AttemptError):
    """There was no answer: no connection, a timeout, or bytes that are not HTTP."""


def open_client(timeout_s: float, **options: Any) -> httpx.Client:
    """Open a client; the caller closes it.

    Args:
        timeout_s: limit for connecting, and for each wait for bytes.
        options: further arguments of `httpx.Client`.

    Raises:
        NoAnswerError: the environment names a proxy that httpx cannot use.
    """
    # This machine's own services are not reached through a proxy meant for other hosts.
    direct = {f"all://{host}": None for host in ("127.0.0.1", "localhost")}
    try:
        return httpx.Client(timeout=timeout_s, mounts=direct, **options)
    except (ImportError, ValueError) as error:
        raise NoAnswerError(f"the environment's proxy cannot be used: {first_line(error)}") from error


def send(client: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    """Send a request once.

    Args:
        client: an open one.
        method: of HTTP, such as ``GET``.
        url: address, or a path under the client's base address.
        options: further arguments of `httpx.Client.request`.

    Returns:
        The answer, whatever its status.

    Raises:
        NoAnswerError: there was no answer.
    """
    try:
        return client.request(method, url, **options)
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise NoAnswerError(first_line(error)) from error


def retrying(
    tries: int,
    pause_s: Callable[[RetryCallState], float],
    *,
    max_after_s: float = math.inf,
    on_failure: Callable[[RetryCallState], None] = lambda state: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Retrying:
    """Return a caller that repeats a function after each `AttemptError`.

    Args:
        tries: attempts at most, at least 1; the last failure is raised.
        pause_s: pause between two attempts, in seconds: a `tenacity.wait_…`, or `obeying_retry_after` of one.
        max_after_s: when a server asks for a longer wait than this, its failure is raised at once.
        on_failure: called after each failed attempt.
        sleep: how to pause.
    """

    def is_last(state: RetryCallState) -> bool:
        return state.attempt_number >= tries or _after_s(state) > max_after_s

    return Retrying(
        retry=retry_if_exception_type(AttemptError),
        stop=is_last,
        wait=pause_s,
        after=on_failure,
        sleep=sleep,
        reraise=True,
    )


def obeying_retry_after(pause_s: Callable[[RetryCallState], float]) -> Callable[[RetryCallState], float]:
    """Return the pause of `pause_s`, or a longer one where the server asks for it."""
    return lambda state: max(pause_s(state), _after_s(state))


def _after_s(state: RetryCallState) -> float:
    error = state.outcome and state.outcome.exception()
    return error.after_s if isinstance(error, AttemptError) else 0.0


def retry_after_s(response: httpx.Response) -> float:
    """Read `Retry-After`, seconds or a date, as seconds from now; 0 where it is absent or unreadable."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return 0.0
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())

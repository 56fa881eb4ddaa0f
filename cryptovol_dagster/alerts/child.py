"""A process of its own that sends one alert to one target, or checks targets.

A library that hangs can be killed with its process only. The request comes by stdin, since arguments and
environment of a process can be read by others. The answer is one line of JSON on stdout, without a secret.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import ssl
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from ingestor.errors import did_you_mean, one_line

#: Characters of a reason that are passed on.
_SHOWN = 200
#: Shorter parts of a URL are words such as "json".
_LEAST_SECRET = 4
_HOST = re.compile(r"localhost|[\w-]+(\.[\w-]+)+")


def redact(text: str, url: str) -> str:
    """Return a text as one line in which no part of a URL behind its scheme is readable.

    Args:
        text: may contain parts of the URL, as a library writes them.
        url: of a target.
    """
    rest = url.partition("://")[2]
    raw = {url, rest, *re.split(r"[/?&=@:,;#]", rest)}
    for part in sorted(raw | {unquote(one) for one in raw}, key=len, reverse=True):
        # A host or a port says who refused. A host without a dot may be a token, as some services have it.
        is_address = part.isdecimal() or (part in rest.partition("/")[0] and _HOST.fullmatch(part))
        if len(part) >= _LEAST_SECRET and not is_address:
            text = re.sub(re.escape(part), "***", text, flags=re.IGNORECASE)
    return one_line(text)[:_SHOWN]


def check(targets: dict[str, str]) -> dict[str, str]:
    """Return what is wrong with URLs of Apprise, by target; those that it accepts are left out."""
    import apprise

    logging.getLogger("apprise").disabled = True
    schemas = {schema for plugin in apprise.Apprise().details()["schemas"] for schema in _schemas(plugin)}
    found = {}
    for name, url in targets.items():
        schema = url.partition("://")[0].lower()
        if schema not in schemas:
            found[name] = f"Apprise has no service '{schema}://'.{did_you_mean(schema, schemas)}"
        elif apprise.Apprise.instantiate(url) is None:
            found[name] = f"Apprise cannot read this {schema}:// URL; a part of it is missing or wrong"
    return found


def _schemas(plugin: dict[str, Any]) -> set[str]:
    return {*(plugin.get("protocols") or ()), *(plugin.get("secure_protocols") or ())}


def prepare(request: dict[str, Any]) -> Callable[[], str]:
    """Load what an alert needs, and return the function that sends it once.

    Args:
        request: ``url``, ``is_webhook``, ``title``, ``body``, ``type`` of Apprise, ``detail``, ``timeout_s``.

    Returns:
        It returns why it failed; empty where the target took it.
    """
    if request["is_webhook"]:
        return _prepare_post(request)
    import apprise

    # Its log says why a target refused. Nothing of it is shown as it is: it contains URLs.
    heard = _Heard()
    log = logging.getLogger("apprise")
    log.handlers, log.propagate = [heard], False
    log.setLevel(logging.WARNING)
    asset = apprise.AppriseAsset(async_mode=False, interpret_escapes=False, interpret_emojis=False)
    sender = apprise.Apprise(asset=asset)
    is_readable = sender.add(request["url"])

    def send() -> str:
        if not is_readable:
            return "Apprise cannot read its URL"
        taken = sender.notify(
            title=request["title"], body=request["body"], notify_type=request["type"], body_format="text"
        )
        return "" if taken else redact("; ".join(heard.lines) or "Apprise reports a failure", request["url"])

    return send


class _Heard(logging.Handler):
    """Keeps lines of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _prepare_post(request: dict[str, Any]) -> Callable[[], str]:
    """Return the function that posts an alert as JSON."""
    from cryptovol_dagster.http_client import AttemptError, open_client
    from cryptovol_dagster.http_client import send as send_request

    content = json.dumps({**request["detail"], "body": request["body"]})
    headers = {"Content-Type": "application/json"}
    # The system's certificates: a receiver may have one of the operator's own authority.
    certificates = ssl.create_default_context()

    def send() -> str:
        try:
            with open_client(request["timeout_s"], verify=certificates, follow_redirects=True) as client:
                response = send_request(client, "POST", request["url"], content=content, headers=headers)
        except AttemptError as error:
            return redact(str(error), request["url"])
        return "" if response.is_success else f"it answered {response.status_code}"

    return send


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    if "check" in request:
        answer: Any = check(request["check"])
    else:
        send = prepare(request)
        # It ends this process whatever holds it, also when the parent is dead. Imports do not count.
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        answer = send()
        signal.setitimer(signal.ITIMER_REAL, 0)
    # Last, and on a line of its own: a library may print.
    print(f"\n{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()

"""The damage that faults do to a frame: malformed, drifted, a wrong time or channel, far too large."""

from __future__ import annotations

import re

from ingestor.exchange.clock import ns_to_rfc3339, rfc3339_to_ns
from ingestor.exchange.messages import BOOK
from ingestor.simulator.faults import Damage
from ingestor.simulator.frames import MarketFrame, own_frame

UNKNOWN_CHANNEL = "simulated_unknown"
#: Replacement of `drifted` for the removed field.
UNKNOWN_FIELD, MISSING_FIELD = "simulated_field", "volume_24_h"
_TIME = re.compile(rb'("timestamp"\s*:\s*)"[^"]*"')
_TIME_TEXT = re.compile(rb'"timestamp"\s*:\s*"([^"]*)"')
_EVENTS = re.compile(rb'("events"\s*:\s*)\[.*\]', re.DOTALL)
_TAKEN_AWAY = re.compile(rb'"%b"\s*:\s*"[^"]*"' % MISSING_FIELD.encode())


def spoilt(data: bytes, damage: Damage) -> bytes:
    """Return a damaged frame."""
    match damage:
        case Damage.TRUNCATED:
            return data[: len(data) // 2]
        case Damage.NOT_JSON:
            return b"<html><body>502 Bad Gateway</body></html>"
        case Damage.NOT_UTF8:
            return data[:-1] + b',"simulated":"\xff\xfe"}'
        case Damage.WRONG_TYPES:
            return _EVENTS.sub(rb'\1{"tickers":5}', data, count=1)
        case Damage.BAD_TIME:
            return _TIME.sub(rb'\1"yesterday"', data, count=1)


def drifted(frame: MarketFrame) -> MarketFrame | None:
    """Return a frame whose first entry has an unknown field and lacks a known one; None without entries."""
    tail, changed = _TAKEN_AWAY.subn(b'"%b":"1"' % UNKNOWN_FIELD.encode(), frame.tail, count=1)
    return frame._replace(tail=tail) if changed else None


def skewed(frame: MarketFrame, ahead_ns: int) -> MarketFrame:
    """Return a frame whose timestamp is `ahead_ns` later; its position in the market stays."""
    return frame._replace(head=_later(frame.head, ahead_ns), tail=_later(frame.tail, ahead_ns))


def _later(part: bytes, ahead_ns: int) -> bytes:
    found = _TIME_TEXT.search(part)
    if found is None:
        return part
    text = ns_to_rfc3339(rfc3339_to_ns(found[1].decode()) + ahead_ns).encode()
    return part[: found.start(1)] + text + part[found.end(1) :]


def unheard_of(time_ns: int) -> MarketFrame:
    """Return a frame of a channel that no client knows."""
    return own_frame(UNKNOWN_CHANNEL, time_ns, b'[{"type":"update","of":"something new"}]')


def giant(time_ns: int, size_bytes: int, number: int) -> MarketFrame:
    """Return an order book of exactly `size_bytes` when sent as `number`."""
    small = _book(time_ns, b"")
    return _book(time_ns, b"x" * (size_bytes - len(small.head) - len(str(number)) - len(small.tail)))


def _book(time_ns: int, padding: bytes) -> MarketFrame:
    events = b'[{"type":"snapshot","product_id":"BTC-USD","updates":["%b"]}]' % padding
    return own_frame(BOOK, time_ns, events)

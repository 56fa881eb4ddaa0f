"""The fault script: which misfortune befalls the feed at which second of the market.

Grammar: faults separated by ``;``, each ``kind@<seconds>s[:argument]``, seconds of market time since its
start.

* ``gap@600s:3``: the next 3 frames are numbered but never sent (default 1).
* ``repeat@900s``: the next frame is sent twice.
* ``disconnect@1800s:1006``: the connection is cut without a close frame; any other code (1000 to 4999) is
  sent as the close code. Default 1006.
* ``silence@5400s:12s``: nothing is sent for 12 seconds of the wall clock, whatever the speed, since that is
  what a client's liveness is judged by; and what the market did in 12 seconds of its own is never sent. No
  numbers are used up: the exchange had nothing to say.
* ``no_heartbeats@900s:20s``: no heartbeat for 20 seconds of the market; all else goes on. No numbers are used
  up.
* ``malformed@10s:truncated``: the next frame arrives spoiled: ``truncated`` (the default), ``not_json``,
  ``not_utf8`` (its number cannot be read), ``wrong_types`` or ``bad_time`` (its number can). It has used up
  its number.
* ``giant@10s:17000000``: one more frame, an order book of just so many bytes.
* ``unknown_channel@10s:3``: 3 more frames (default 1) of a channel that nobody has heard of.
* ``drift@10s``: the next ticker frame has a field that nobody knows in place of ``volume_24_h``.
* ``skew@10s:120s``: from then on the frames' timestamps are ahead of the market by 120 s (``-2s``: behind;
  ``0s``: right again). The times inside of the entries stay.
* ``late_ack@0s:3s``, or ``late_ack:3s`` for the whole market: from then on a subscription is acknowledged 3
  seconds of the market late; what was subscribed to does not wait for it.
* ``refuse@10s:429:2``: the next 2 handshakes (default 1) are answered with that HTTP status (default 429) and
  ``Retry-After: 1``. It takes a disconnect, or a client that has not come yet, to be noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ingestor.errors import USAGE, CryptovolError
from ingestor.times import NS

#: Close code of a connection cut without a close frame.
ABORTED = 1006
#: A giant must contain an envelope, and fit into memory many times.
LEAST_GIANT_BYTES, MOST_GIANT_BYTES = 1_000, 256 * 1024 * 1024
_MOST_FRAMES = 1_000_000
_TOO_MANY_REQUESTS = 429
_FAULT = re.compile(r"([a-z_]+)(?:@(\d+(?:\.\d+)?)s)?(?::(.+))?", re.ASCII)
_SECONDS = re.compile(r"(-?)(\d+(?:\.\d+)?)s", re.ASCII)


class FaultScriptError(CryptovolError, ValueError):
    """A fault script that cannot be understood; the message is one line that quotes the fault."""

    #: Wrong usage.
    exit_code = USAGE


class Damage(StrEnum):
    """Kind of damage of a malformed frame."""

    TRUNCATED = "truncated"
    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    WRONG_TYPES = "wrong_types"
    BAD_TIME = "bad_time"


@dataclass(frozen=True)
class Gap:
    """`frames` frames are numbered and dropped, from `at_ns` after the market's start."""

    at_ns: int
    frames: int


@dataclass(frozen=True)
class Repeat:
    """One frame is sent twice, at `at_ns` after the market's start."""

    at_ns: int


@dataclass(frozen=True)
class Disconnect:
    """The connection ends with `code`, at `at_ns` after the market's start."""

    at_ns: int
    code: int


@dataclass(frozen=True)
class Silence:
    """Nothing is sent for `duration_ns`, from `at_ns` after the market's start."""

    at_ns: int
    duration_ns: int


@dataclass(frozen=True)
class NoHeartbeats:
    """No heartbeat is sent for `duration_ns` of the market, from `at_ns` after its start."""

    at_ns: int
    duration_ns: int


@dataclass(frozen=True)
class Malformed:
    """One frame is spoiled by `damage`, at `at_ns` after the market's start."""

    at_ns: int
    damage: Damage


@dataclass(frozen=True)
class Giant:
    """A frame of `size_bytes` is sent besides, at `at_ns` after the market's start."""

    at_ns: int
    size_bytes: int


@dataclass(frozen=True)
class UnknownChannel:
    """`frames` frames of an unheard-of channel are sent besides, at `at_ns` after the market's start."""

    at_ns: int
    frames: int


@dataclass(frozen=True)
class Drift:
    """One ticker entry has an unknown field and lacks a known one, at `at_ns` after the market's start."""

    at_ns: int


@dataclass(frozen=True)
class Skew:
    """Timestamps are `ahead_ns` ahead of the market, from `at_ns` after its start on."""

    at_ns: int
    ahead_ns: int


@dataclass(frozen=True)
class LateAck:
    """Acknowledgements come `delay_ns` of the market late, from `at_ns` after its start on."""

    at_ns: int
    delay_ns: int


@dataclass(frozen=True)
class Refuse:
    """The next `handshakes` handshakes are answered with HTTP `status`, from `at_ns` after the start on."""

    at_ns: int
    status: int
    handshakes: int


Fault = (
    Gap
    | Repeat
    | Disconnect
    | Silence
    | NoHeartbeats
    | Malformed
    | Giant
    | UnknownChannel
    | Drift
    | Skew
    | LateAck
    | Refuse
)
#: Faults with which a recorded connection cannot keep its own numbers: frames come besides, or stay away.
RENUMBERING = (Giant, UnknownChannel, LateAck, NoHeartbeats)


def parse_faults(script: str) -> tuple[Fault, ...]:
    """Read a fault script.

    Returns:
        The faults in order of time.

    Raises:
        FaultScriptError: An unknown fault, a malformed one, or an argument out of range.
    """
    faults = [_parse(text.strip()) for text in script.split(";") if text.strip()]
    return tuple(sorted(faults, key=lambda fault: fault.at_ns))


def _parse(text: str) -> Fault:
    match = _FAULT.fullmatch(text)
    if match is None:
        raise _no_fault(text)
    kind, seconds, argument = match.groups()
    make = _MAKERS.get(kind)
    if make is None:
        raise FaultScriptError(f"fault {text!r}: unknown kind {kind!r} ({', '.join(_MAKERS)})")
    if seconds is None and kind != "late_ack":
        raise _no_fault(text)
    return make(text, _ns(seconds or "0"), argument or "")


def _no_fault(text: str) -> FaultScriptError:
    return FaultScriptError(f"fault {text!r}: expected kind@<seconds>s[:argument], for example gap@600s:3")


def _gap(text: str, at_ns: int, argument: str) -> Gap:
    return Gap(at_ns, _frames(text, argument))


def _repeat(text: str, at_ns: int, argument: str) -> Repeat:
    return Repeat(_without_argument(text, at_ns, argument))


def _disconnect(text: str, at_ns: int, argument: str) -> Disconnect:
    code = _whole_number(text, argument or str(ABORTED), 1000, 4999, "a close code")
    # 1004 and 1005 are reserved, 1015 is TLS's own; none of them may be sent.
    if code in (1004, 1005, 1015) or 1016 <= code < 3000:
        raise FaultScriptError(f"fault {text!r}: close code {code} may not be sent")
    return Disconnect(at_ns, code)


def _silence(text: str, at_ns: int, argument: str) -> Silence:
    return Silence(
        at_ns, _duration(text, argument, "silence needs a duration, for example silence@5400s:12s")
    )


def _no_heartbeats(text: str, at_ns: int, argument: str) -> NoHeartbeats:
    needs = "no_heartbeats needs a duration, for example no_heartbeats@900s:20s"
    return NoHeartbeats(at_ns, _duration(text, argument, needs))


def _malformed(text: str, at_ns: int, argument: str) -> Malformed:
    try:
        return Malformed(at_ns, Damage(argument or Damage.TRUNCATED))
    except ValueError:
        kinds = ", ".join(Damage)
        raise FaultScriptError(f"fault {text!r}: {argument!r} is not a kind of damage ({kinds})") from None


def _giant(text: str, at_ns: int, argument: str) -> Giant:
    return Giant(
        at_ns, _whole_number(text, argument, LEAST_GIANT_BYTES, MOST_GIANT_BYTES, "a number of bytes")
    )


def _unknown_channel(text: str, at_ns: int, argument: str) -> UnknownChannel:
    return UnknownChannel(at_ns, _frames(text, argument))


def _drift(text: str, at_ns: int, argument: str) -> Drift:
    return Drift(_without_argument(text, at_ns, argument))


def _skew(text: str, at_ns: int, argument: str) -> Skew:
    ahead = _SECONDS.fullmatch(argument)
    if ahead is None:
        raise FaultScriptError(
            f"fault {text!r}: skew needs seconds, for example skew@10s:120s or skew@10s:-2s"
        )
    return Skew(at_ns, -_ns(ahead[2]) if ahead[1] else _ns(ahead[2]))


def _late_ack(text: str, at_ns: int, argument: str) -> LateAck:
    return LateAck(at_ns, _duration(text, argument, "late_ack needs a delay, for example late_ack@0s:3s"))


def _refuse(text: str, at_ns: int, argument: str) -> Refuse:
    status, _, handshakes = argument.partition(":")
    return Refuse(
        at_ns,
        _whole_number(text, status or str(_TOO_MANY_REQUESTS), 400, 599, "an HTTP status that refuses"),
        _whole_number(text, handshakes or "1", 1, _MOST_FRAMES, "a number of handshakes"),
    )


_MAKERS: dict[str, Callable[[str, int, str], Fault]] = {
    "gap": _gap,
    "repeat": _repeat,
    "disconnect": _disconnect,
    "silence": _silence,
    "no_heartbeats": _no_heartbeats,
    "malformed": _malformed,
    "giant": _giant,
    "unknown_channel": _unknown_channel,
    "drift": _drift,
    "skew": _skew,
    "late_ack": _late_ack,
    "refuse": _refuse,
}


def _frames(text: str, argument: str) -> int:
    return _whole_number(text, argument or "1", 1, _MOST_FRAMES, "a number of frames")


def _without_argument(text: str, at_ns: int, argument: str) -> int:
    if argument:
        raise FaultScriptError(f"fault {text!r}: {text.partition('@')[0]} takes no argument")
    return at_ns


def _duration(text: str, argument: str, needs: str) -> int:
    duration = _SECONDS.fullmatch(argument)
    if duration is None or duration[1] or not _ns(duration[2]):
        raise FaultScriptError(f"fault {text!r}: {needs}")
    return _ns(duration[2])


def _whole_number(text: str, argument: str, least: int, most: int, what: str) -> int:
    if not (argument.isascii() and argument.isdigit() and least <= int(argument) <= most):
        raise FaultScriptError(f"fault {text!r}: {argument!r} is not {what} ({least} to {most})")
    return int(argument)


def _ns(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * NS + int(fraction[:9].ljust(9, "0") or 0)

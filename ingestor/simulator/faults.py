"""The fault script: which misfortune befalls the feed at which second of the market.

Grammar: faults separated by ``;``, each ``kind@<seconds>s[:argument]``, seconds of market time since its
start.

* ``gap@600s:3``: the next 3 frames are numbered but never sent (default 1).
* ``repeat@900s``: the next frame is sent twice.
* ``disconnect@1800s:1006``: the connection is cut without a close frame; any other code (1000 to 4999) is
sent as the
  close code. Default 1006.
* ``silence@5400s:12s``: nothing is sent for 12 seconds of the wall clock, whatever the speed, since that is
what a
  client's liveness is judged by; and what the market did in 12 seconds of its own is never sent. No numbers
  are used up: the exchange had nothing to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ingestor.simulator.frames import NS_PER_S

#: Close code that stands for a connection cut without a close frame.
ABORTED = 1006
_FAULT = re.compile(r"([a-z_]+)@(\d+(?:\.\d+)?)s(?::([^:]+))?", re.ASCII)
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s", re.ASCII)


class FaultScriptError(ValueError):
    """A fault script that cannot be understood; the message is one line that quotes the fault."""

    #: Wrong usage.
    exit_code = 2


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


Fault = Gap | Repeat | Disconnect | Silence


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
        raise FaultScriptError(f"fault {text!r}: expected kind@<seconds>s[:argument], for example gap@600s:3")
    kind, seconds, argument = match.groups()
    at_ns = _ns(seconds)
    if kind == "gap":
        return Gap(at_ns, _whole_number(text, argument or "1", 1, 1_000_000, "a number of frames"))
    if kind == "repeat":
        if argument:
            raise FaultScriptError(f"fault {text!r}: repeat takes no argument")
        return Repeat(at_ns)
    if kind == "disconnect":
        return Disconnect(at_ns, _close_code(text, argument or str(ABORTED)))
    if kind == "silence":
        duration = _SECONDS.fullmatch(argument or "")
        if duration is None or not _ns(duration[1]):
            raise FaultScriptError(f"fault {text!r}: silence needs a duration, for example silence@5400s:12s")
        return Silence(at_ns, _ns(duration[1]))
    raise FaultScriptError(f"fault {text!r}: unknown kind {kind!r} (gap, repeat, disconnect, silence)")


def _close_code(text: str, argument: str) -> int:
    code = _whole_number(text, argument, 1000, 4999, "a close code")
    # 1004 and 1005 are reserved, 1015 is TLS's own; none of them may be sent.
    if code in (1004, 1005, 1015) or 1016 <= code < 3000:
        raise FaultScriptError(f"fault {text!r}: close code {code} may not be sent")
    return code


def _whole_number(text: str, argument: str, least: int, most: int, what: str) -> int:
    if not (argument.isascii() and argument.isdigit() and least <= int(argument) <= most):
        raise FaultScriptError(f"fault {text!r}: {argument!r} is not {what} ({least} to {most})")
    return int(argument)


def _ns(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * NS_PER_S + int(fraction[:9].ljust(9, "0") or 0)

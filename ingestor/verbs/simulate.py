"""`cryptovol simulate`."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestor.exchange.clock import ns_to_rfc3339, rfc3339_to_ns
from ingestor.settings.load import load_settings

if TYPE_CHECKING:
    from ingestor.simulator.faults import Fault
    from ingestor.simulator.playback import Playback
    from ingestor.simulator.server import Report

_DEFAULT_START = "2025-12-01T00:00:00Z"
_DEFAULT_HOURS = 8.0
_DEFAULT_SEED = 7


class _Speed(click.ParamType):
    name = "1|N|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if value == "max":
            return math.inf
        try:
            speed = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'max'", param, ctx)
        if not (math.isfinite(speed) and speed > 0):
            self.fail(f"{value!r} is not above 0", param, ctx)
        return speed


class _Time(click.ParamType):
    name = "ISO time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return rfc3339_to_ns(value)
        except ValueError:
            self.fail(f"{value!r} is not a UTC time such as {_DEFAULT_START}", param, ctx)


class _Products(click.ParamType):
    name = "ID[,ID…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        products = tuple(product.strip() for product in value.split(","))
        if not all(_is_product(product) for product in products):
            self.fail(f"{value!r} is not a list of products such as BTC-USD,ETH-USD", param, ctx)
        if len(set(products)) != len(products):
            self.fail(f"{value!r} names a product twice", param, ctx)
        return products


def _is_product(text: str) -> bool:
    return bool(text) and all(part.isalnum() and part.isascii() for part in text.split("-"))


_HELP = """\
Serve the exchange's protocol on loopback: real recordings, or a synthetic market.

The synthetic market (stochastic volatility with calm and volatile periods, jumps, self-exciting trades) is
the same for the same seed, at any speed. A recording of several connections is played as several: the
server closes with 1001 after each and continues with the next one. At the end of the market it closes with
1000; the next client then gets it from the start (--once: the command ends). One client is served at a
time, and the market pauses without a client.

\b
Faults, separated by ';', at seconds of the market since its start:
  gap@600s:3              the next 3 frames are numbered but never sent
  repeat@900s             the next frame is sent twice
  disconnect@1800s:1006   the connection is cut (any other code: closed with it)
  silence@5400s:12s       nothing is sent for 12 s of the wall clock; 12 s of the
                          market are skipped
  no_heartbeats@900s:20s  no heartbeat for 20 s of the market, all else goes on
  malformed@10s:not_json  the next frame is damaged: truncated (default),
                          not_json, not_utf8, wrong_types or bad_time
  giant@10s:17000000      an additional order book of that many bytes
  unknown_channel@10s:3   3 additional frames of an unknown channel
  drift@10s               an entry has an unknown field and lacks a known one
  skew@10s:120s           timestamps are 120 s ahead from then on (-2s: behind,
                          0s: correct again)
  late_ack@0s:3s          subscriptions are acknowledged 3 s of the market late
                          from then on (late_ack:3s: from the start)
  refuse@10s:429:2        the next 2 handshakes get HTTP 429 and Retry-After: 1

Damaged and additional frames have numbers like any other. All sent frames are
counted, and the counts printed at the end: a client should have received them.

\b
Examples:
  cryptovol simulate --speed max --hours 3 --once
  cryptovol simulate --recording day.ndjson.gz --speed 60
  cryptovol simulate --products BTC-USD --faults 'gap@60s:3; disconnect@120s:1006'
  cryptovol simulate --faults 'disconnect@60s:1001; refuse@59s:429:2; late_ack:3s'
  cryptovol simulate --hours 2 --seed 1 --write market.ndjson.gz
"""


@click.command(help=_HELP)
@click.option(
    "--recording",
    "recordings",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Play real frames from this recording (repeat for more, played one after the other).",
)
@click.option(
    "--products", type=_Products(), help="Synthetic market: its products (default: the configured ones)."
)
@click.option(
    "--start", type=_Time(), help=f"Synthetic market: its first moment (default: {_DEFAULT_START})."
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Synthetic market: its length (default: {_DEFAULT_HOURS:g}).",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help=f"Synthetic market: its seed (default: {_DEFAULT_SEED})."
)
@click.option(
    "--speed",
    type=_Speed(),
    default="1",
    show_default=True,
    help="Market seconds a second; max: as fast as the client reads.",
)
@click.option("--faults", default="", metavar="SCRIPT", help="Faults at seconds of the market; see below.")
@click.option("--once", is_flag=True, help="Exit once the market has been played to its end.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    show_default=True,
    help="Port; 0: a free one, printed.",
)
@click.option(
    "--write",
    "target",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the market as a recording (.gz: compressed) instead of serving it.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print events as JSON lines; the first contains the address."
)
def simulate(
    recordings: tuple[Path, ...],
    products: tuple[str, ...] | None,
    start: int | None,
    hours: float | None,
    seed: int | None,
    speed: float,
    faults: str,
    once: bool,
    port: int,
    target: Path | None,
    as_json: bool,
) -> None:
    """Serve a market, or write it as a recording."""
    from ingestor.simulator.faults import parse_faults
    from ingestor.simulator.write import write_recording

    report = _print_json if as_json else _print_text
    script = parse_faults(faults)
    if recordings:
        given = {"--products": products, "--start": start, "--hours": hours, "--seed": seed}
        market = _recorded(recordings, script, given)
    else:
        market = _synthetic(products, start, hours, seed, script)
    if target is not None:
        write_recording(market.playback, market.products, target)
        report("written", {"file": str(target), **market.about, **market.playback.sent.as_dict()})
    else:
        asyncio.run(_serve(market.playback, speed, port, once=once, about=market.about, report=report))


@dataclass(frozen=True)
class _Market:
    """The market that is played.

    Attributes:
        playback: its frames and faults.
        products: its products.
        about: its description.
    """

    playback: Playback
    products: tuple[str, ...]
    about: dict[str, Any]


def _market(
    playback: Playback, products: tuple[str, ...], source: str, left_out: Mapping[str, int]
) -> _Market:
    about = {
        "simulated": True,
        "source": source,
        "products": list(products),
        "start_ns": playback.start_ns,
        **left_out,
    }
    return _Market(playback, products, about)


def _recorded(
    recordings: tuple[Path, ...], script: tuple[Fault, ...], given: Mapping[str, object]
) -> _Market:
    """Return the market of recordings.

    Raises:
        click.UsageError: an option of the synthetic market was given.
    """
    from ingestor.simulator.playback import Playback
    from ingestor.simulator.recorded import RecordedMarket

    for option, value in given.items():
        if value is not None:
            raise click.UsageError(f"{option} is for the synthetic market; omit it with --recording")
    recorded = RecordedMarket(recordings)
    products = recorded.products
    left_out = {
        "unreadable_lines_left_out": recorded.unreadable_lines,
        "repeated_lines_left_out": recorded.repeated_lines,
    }
    return _market(Playback(recorded.segments, script), products, "recording", left_out)


def _synthetic(
    products: tuple[str, ...] | None,
    start_ns: int | None,
    hours: float | None,
    seed: int | None,
    script: tuple[Fault, ...],
) -> _Market:
    """Return a synthetic market; None means the default."""
    from ingestor.simulator.market import SyntheticMarket
    from ingestor.simulator.playback import Playback

    chosen = products or load_settings().settings.coinbase.products
    begin_ns = rfc3339_to_ns(_DEFAULT_START) if start_ns is None else start_ns
    length_h = _DEFAULT_HOURS if hours is None else hours
    chosen_seed = _DEFAULT_SEED if seed is None else seed
    playback = Playback(
        lambda: iter([SyntheticMarket(chosen, begin_ns, chosen_seed).segment(length_h)]), script
    )
    return _market(playback, chosen, "synthetic", {})


async def _serve(
    playback: Playback, speed: float, port: int, *, once: bool, about: dict[str, Any], report: Report
) -> None:
    from ingestor.simulator.server import Simulator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    simulator = Simulator(playback, speed, report)
    url = await simulator.start(port)
    report("listening", {"url": url, **about})
    endings = [asyncio.create_task(stop.wait())]
    if once:
        endings.append(asyncio.create_task(simulator.played.wait()))
    await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
    for ending in endings:
        ending.cancel()
    await simulator.stop()
    report("finished" if simulator.played.is_set() else "stopped", playback.sent.as_dict())


def _print_json(event: str, detail: dict[str, Any]) -> None:
    click.echo(json.dumps({"event": event, **detail}))


def _print_text(event: str, detail: dict[str, Any]) -> None:
    words = [
        f"{name.removesuffix('_ns')}={ns_to_rfc3339(value) if name.endswith('_ns') else value}"
        for name, value in detail.items()
    ]
    click.echo(" ".join([f"{event}:", *(word for word in words if word != "simulated=True")]))

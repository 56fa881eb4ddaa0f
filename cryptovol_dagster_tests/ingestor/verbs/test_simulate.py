"""`cryptovol simulate` as people run it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.asyncio.client import connect

from cryptovol_dagster_tests.ingestor.simulator.test_playback import subscribe
from ingestor.cli_group import OneLineErrorsGroup
from ingestor.recordings import read_recording
from ingestor.simulator import faults
from ingestor.verbs.simulate import simulate

COMMAND = (sys.executable, "-m", "ingestor", "simulate", "--json")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(OneLineErrorsGroup(commands={"simulate": simulate}), ["simulate", *arguments])
    return result.exit_code, result.output


def test_help_shows_faults_and_examples() -> None:
    code, output = run("--help")
    assert code == 0
    for kind in faults._MAKERS:
        assert f"    {kind}@" in output
        assert f"* ``{kind}@" in (faults.__doc__ or "")
    assert "gap@600s:3" in output
    assert "--recording day.ndjson.gz" in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--faults", "meteor@1s"], 2, "unknown kind 'meteor'"),
        (["--speed", "0"], 2, "not above 0"),
        (["--speed", "fast"], 2, "neither a number nor 'max'"),
        (["--start", "tomorrow"], 2, "not a UTC time"),
        (["--products", "BTC-USD,BTC-USD"], 2, "names a product twice"),
        (["--products", "BTC USD"], 2, "not a list of products"),
        (["--recording", "absent.gz"], 1, "absent.gz: cannot be read"),
        (["--recording", "absent.gz", "--seed", "1"], 2, "--seed is for the synthetic market"),
        (
            ["--hours", "0.01", "--write", "/absent/market.ndjson"],
            1,
            "/absent/market.ndjson: cannot be written",
        ),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], code: int, message: str) -> None:
    found, output = run(*arguments)
    assert found == code
    error = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert "Traceback" not in output


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.ndjson"
    empty.touch()
    code, output = run("--recording", str(empty))
    assert (code, output) == (1, f"Error: {empty}: empty recording\n")


def test_write_says_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "market.ndjson.gz"
    code, output = run("--hours", "0.05", "--products", "BTC-USD", "--write", str(path), "--json")
    told = json.loads(output)
    assert code == 0
    assert told["simulated"] is True
    assert told["products"] == ["BTC-USD"]
    counts = read_recording(path).counts
    assert told["frames"] == counts.frames
    assert told["ticks"] == counts.ticks > 500


async def test_once_serves_one_playback_and_exits() -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--hours", "0.05", "--speed", "max", "--once", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    assert (first["event"], first["simulated"], first["source"]) == ("listening", True, "synthetic")
    async with connect(first["url"], proxy=None) as socket:
        await socket.send(subscribe("ticker", *first["products"]))
        # Iteration ends without an exception only at a close with 1000 or 1001.
        channels = [json.loads(frame)["channel"] async for frame in socket]
        assert socket.close_code == 1000
    ticks = channels.count("ticker")
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    last = json.loads(output.splitlines()[-1])
    assert (process.returncode, last["event"], last["ticks"]) == (0, "finished", ticks)


async def test_a_signal_ends_it_cleanly() -> None:
    process = await asyncio.create_subprocess_exec(*COMMAND, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[-1])["event"] == "stopped"

"""What people type: help, exit codes, one-line errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from ingestor import envelope
from ingestor.cli import cli
from ingestor.cli_group import OneLineErrorsGroup
from ingestor.envelope import EVENTS, TICKS, FeedEvent, TickMessage
from ingestor.kafka.broker import Broker, BrokerError, connect
from ingestor.kafka.check_stream import check_stream
from ingestor.kafka.publisher import Publisher
from ingestor.settings.load import SettingsError
from ingestor.settings.model import KafkaSettings


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


def one_line(result: Result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def test_help_lists_every_verb_and_shows_examples() -> None:
    overview = run("--help")
    assert overview.exit_code == 0
    for verb in ("ingest", "check-stream", "simulate", "convert-raw", "config"):
        assert verb in overview.output
        assert run(verb, "--help").exit_code == 0
    assert "cryptovol ingest --products BTC-USD --duration 60" in run("ingest", "--help").output
    assert "--bootstrap 127.0.0.1:" in run("check-stream", "--help").output


def test_config_shows_values_and_their_sources(environment: Path) -> None:
    file = environment / "other.yaml"
    file.write_text("kafka:\n  topic_prefix: mine.\n  security:\n    sasl.password: hunter2\n")
    result = run("--config", str(file), "config", "--json")
    assert result.exit_code == 0
    shown = json.loads(result.output)
    assert shown["kafka.topic_prefix"] == {"value": "mine.", "source": f"{file}:2"}
    assert shown["storage.data_dir"]["source"] == "environment CRYPTOVOL__STORAGE__DATA_DIR"
    assert shown["kafka.partitions"] == {"value": "3", "source": "default"}
    assert "hunter2" not in result.output
    table = run("--config", str(file), "config")
    assert table.exit_code == 0
    assert "topic_prefix" in table.output
    assert "hunter2" not in table.output


@pytest.mark.parametrize("verb", [["config"], ["ingest", "--duration", "1"], ["check-stream"]])
def test_a_broken_configuration_is_one_line_and_exit_2(environment: Path, verb: list[str]) -> None:
    (environment / "config.yaml").write_text("kafka:\n  topic_prefix: a\n  topicprefix: b\n")
    result = run(*verb)
    assert result.exit_code == 2
    assert "config.yaml:3" in one_line(result)
    assert "topicprefix" in one_line(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "--url", "http://127.0.0.1"],
        ["ingest", "--url", "ws://"],
        ["ingest", "--url", "ws://127.0.0.1:99999"],
        ["ingest", "--products", "BTC-USD,"],
        ["ingest", "--products", "BTC-USD,BTC-USD"],
        ["ingest", "--duration", "0"],
        ["ingest", "--no-archive"],
        ["ingest", "--no-feed"],
        ["check-stream"],
        ["no-such-verb"],
    ],
)
def test_wrong_usage_is_exit_2(environment: Path, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert one_line(result)


def test_nobody_at_the_other_end_is_exit_1(environment: Path) -> None:
    result = run("ingest", "--url", "ws://127.0.0.1:9", "--until-closed", "--connect-timeout", "0.2")
    assert result.exit_code == 1
    assert "ws://127.0.0.1:9" in one_line(result)
    result = run("check-stream", "--bootstrap", "127.0.0.1:9", "--duration", "1")
    assert result.exit_code == 1
    assert "127.0.0.1:9" in one_line(result)


def test_only_exceptions_of_ours_become_a_line() -> None:
    def failing(error: Exception) -> click.Group:
        group = OneLineErrorsGroup()

        @group.command("fail")
        def fail() -> None:
            raise error

        return group

    result = CliRunner().invoke(failing(SettingsError("config.yaml:1: what\nwhere")), ["fail"])
    assert (result.exit_code, result.stderr) == (2, "Error: config.yaml:1: what where\n")
    result = CliRunner().invoke(failing(BrokerError("no broker")), ["fail"])
    assert (result.exit_code, result.stderr) == (1, "Error: no broker\n")
    result = CliRunner().invoke(failing(ZeroDivisionError("a fault")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


# check-stream


@pytest.fixture
def broker() -> Iterator[Broker]:
    with connect(KafkaSettings()) as broker:
        broker.ensure_topics()
        yield broker


async def put(broker: Broker, *messages: tuple[str, bytes, bytes]) -> None:
    publisher = Publisher(broker, stored_offsets=dict, unarchived_limit_bytes=2**21)
    for message in messages:
        publisher.publish(*message)
    assert await publisher.drain(10)
    publisher.close()


def tick(product: str = "BTC-USD", inner: str = "BTC-USD", version: int = 1) -> bytes:
    entry = json.dumps({"type": "ticker", "product_id": inner, "price": "1"}).encode()
    message = TickMessage(
        schema_version=version,
        product_id=product,
        event_time_ns=1_777_629_600 * 10**9,
        received_at_ns=1_777_629_600 * 10**9,
        connection_id="c",
        sequence_num=0,
        event_index=0,
        entry_index=0,
        event_type="update",
        ticker=msgspec.Raw(entry),
    )
    return envelope.encode(message)


GAP = envelope.encode(FeedEvent(kind="gap", at_ns=1, connection_id="c", detail={"count": 3}))


async def test_a_healthy_stream_is_told_by_product(broker: Broker) -> None:
    await put(
        broker,
        *[(TICKS, b"BTC-USD", tick())] * 5,
        (TICKS, b"ETH-USD", tick("ETH-USD", "ETH-USD")),
        (EVENTS, b"c", GAP),
    )
    report = check_stream(broker, 2.0, from_beginning=True)
    assert report.problem is None
    numbers = report.as_dict()
    assert {name: seen["messages"] for name, seen in numbers["products"].items()} == {
        "BTC-USD": 5,
        "ETH-USD": 1,
    }
    assert numbers["products"]["BTC-USD"]["newest_event_time"] == "2026-05-01T10:00:00Z"
    assert numbers["products"]["BTC-USD"]["latency_ms_p50"] > 0
    assert (numbers["events"], numbers["missing_frames"], numbers["invalid"]) == ({"gap": 1}, 3, 0)


async def test_each_invalid_message_is_told_with_its_place(broker: Broker) -> None:
    invalid = {
        "JSON": (b"BTC-USD", b"no json"),
        "missing required field": (b"BTC-USD", b"{}"),
        "key": (b"ETH-USD", tick()),
        "entry of ETH-USD": (b"BTC-USD", tick(inner="ETH-USD")),
        "schema version 9": (b"BTC-USD", tick(version=9)),
    }
    good = (TICKS, b"BTC-USD", tick())
    await put(broker, good, *[(TICKS, key, value) for key, value in invalid.values()], good)
    report = check_stream(broker, 2.0, from_beginning=True)
    assert (report.messages, report.invalid) == (2, len(invalid))
    for reason in invalid:
        told = [line for line in report.first_errors if reason in line]
        assert len(told) == 1, report.first_errors
        assert re.match(r"ticks\.raw partition \d offset \d+: ", told[0])
    assert report.problem is not None
    assert report.first_errors[0] in report.problem


def test_looking_only_at_what_is_new_by_default(broker: Broker) -> None:
    import asyncio

    asyncio.run(put(broker, (TICKS, b"BTC-USD", tick())))
    report = check_stream(broker, 0.5)
    assert report.messages == 0
    assert report.problem is not None
    assert "nothing arrived" in report.problem


def test_the_verb_exits_1_and_prints_json_when_nothing_arrives(environment: Path, broker: Broker) -> None:
    result = run("check-stream", "--bootstrap", broker.bootstrap_servers, "--duration", "0.3", "--json")
    assert result.exit_code == 1
    assert "nothing arrived" in one_line(result)
    assert json.loads(result.stdout)["messages"] == 0

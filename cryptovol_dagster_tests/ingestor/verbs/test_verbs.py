"""What people type: help, exit codes, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ingestor.cli import cli
from ingestor.cli_group import OneLineErrorsGroup
from ingestor.kafka.broker import Broker, BrokerError
from ingestor.settings.load import SettingsError


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
    for verb in ("ingest", "check-stream", "audit", "dead-letters", "simulate", "convert-raw", "config"):
        assert verb in overview.output
        assert run(verb, "--help").exit_code == 0
    assert "cryptovol ingest --products BTC-USD --duration 60" in run("ingest", "--help").output
    assert "--bootstrap 127.0.0.1:" in run("check-stream", "--help").output
    assert "cryptovol dead-letters --retry" in run("dead-letters", "--help").output


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


def test_check_stream_exits_1_and_prints_json_when_nothing_arrives(
    environment: Path, embedded_broker: Broker
) -> None:
    bootstrap = ("--bootstrap", embedded_broker.bootstrap_servers)
    result = run("check-stream", *bootstrap, "--duration", "0.3", "--json")
    assert result.exit_code == 1
    assert "nothing arrived" in one_line(result)
    assert json.loads(result.stdout)["messages"] == {}
    result = run("check-stream", *bootstrap, "--duration", "0.3")
    assert result.exit_code == 1
    assert "feed.events: none" in result.stdout


def test_an_unknown_verb_of_the_recorder_says_where_the_pipeline_is() -> None:
    result = CliRunner().invoke(cli, ["backfill"])
    assert result.exit_code == 2
    assert "Error: No such command 'backfill'. This is the recorder alone" in result.output


def test_a_misspelt_verb_asks_for_the_similar_one() -> None:
    result = CliRunner().invoke(cli, ["ingets"])
    assert result.exit_code == 2
    assert one_line(result) == "Error: No such command 'ingets'. Did you mean 'ingest'?"
    assert "No such option '--cofig'. Did you mean '--config'?" in CliRunner().invoke(cli, ["--cofig"]).stderr


def test_the_configuration_after_the_verb_says_where_it_belongs() -> None:
    for arguments in (["audit", "--config", "other.yaml"], ["audit", "--config=other.yaml"]):
        result = CliRunner().invoke(cli, arguments, prog_name="cryptovol")
        assert result.exit_code == 2
        said = "Error: --config comes before the verb: cryptovol --config FILE audit"
        assert one_line(result) == said
    assert "No such option" in CliRunner().invoke(cli, ["audit", "--nothing"]).stderr

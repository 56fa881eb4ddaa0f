"""What the services of a machine have in common: ports, and what the recorder says of itself."""

from __future__ import annotations

import socket
from pathlib import Path

import dagster as dg
import pytest
import yaml

from cryptovol_dagster.machine.instance import InstanceError, ensure_dagster_home, open_instance
from cryptovol_dagster.machine.lost_runs import MESSAGE, SERVED_BY
from cryptovol_dagster.machine.run import frames_per_s
from cryptovol_dagster.machine.services import Machine, PortError, choose_port
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.feed.counters import FeedCounters
from ingestor.kafka.publisher import PublishCounters
from ingestor.settings.sections import KafkaSettings
from ingestor.verbs.ingest import _log_progress


def test_a_port_that_is_taken_is_refused_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"port {port} on 127\.0\.0\.1 cannot be used: .*; choose another with --dagster-port"
        with pytest.raises(PortError, match=message) as refused:
            choose_port(port, "--dagster-port")
        assert refused.value.exit_code == 2
    assert choose_port(port, "--dagster-port") == port
    assert 0 < choose_port(0, "--dagster-port") < 65_536


def test_links_lead_to_the_ports_that_were_chosen(tmp_path: Path) -> None:
    machine = Machine(small_settings(tmp_path), tmp_path / "home", 3001, 5001)
    for service in machine.dagster(essential=True):
        assert service.environment["CRYPTOVOL__DAGSTER__UI_URL"] == "http://127.0.0.1:3001"
        assert service.environment["CRYPTOVOL__MLFLOW__UI_URL"] == "http://127.0.0.1:5001"
    assert machine.recorder().environment["CRYPTOVOL__DAGSTER__REPORT_CLOSED_HOURS"] == "true"


def test_featurizer_and_scorer_use_the_embedded_broker_of_the_recorders_newest_start(tmp_path: Path) -> None:
    machine = Machine(small_settings(tmp_path), tmp_path / "home", 3001, 5001)
    recorder = machine.recorder()
    assert recorder.after is not None
    recorder.log.parent.mkdir(parents=True)
    recorder.log.write_text("")
    with pytest.raises(InstanceError, match=r"recorder\.log does not say where its broker is"):
        recorder.after()
    live = machine.live()
    assert [(one.name, one.needs, one.essential) for one in live] == [
        ("scorer", "recorder", False),
        ("featurizer", "recorder", False),
    ]
    for address in ("127.0.0.1:1111", "127.0.0.1:2222"):
        with recorder.log.open("a") as log:
            log.write(f'{{"event": "started", "bootstrap_servers": "{address}"}}\n12:00:00 INFO connected\n')
        recorder.after()
        for one, verb in zip(live, ("score", "featurize"), strict=True):
            assert callable(one.command)
            assert list(one.command()[-4:]) == [verb, "--json", "--bootstrap", address]


def test_with_a_real_broker_featurizer_and_scorer_live_without_the_recorder(tmp_path: Path) -> None:
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:9092")
    settings = small_settings(tmp_path).model_copy(update={"kafka": kafka})
    for one in Machine(settings, tmp_path / "home", 3001, 5001).live():
        assert one.needs is None
        assert not callable(one.command)
        assert "--bootstrap" not in one.command


def test_a_simulated_market_is_over_when_featurizer_and_scorer_count_nothing_more(tmp_path: Path) -> None:
    machine = Machine(small_settings(tmp_path), tmp_path / "home", 3001, 5001, simulator_port=1)
    recorder = machine.recorder()
    assert recorder.is_done is not None
    assert recorder.command[-1] == "--stay"  # type: ignore[index]
    recorder.log.parent.mkdir(parents=True)

    def count(featurizer: list[int], scorer: list[int]) -> None:
        for name, counts, what in (("featurizer", featurizer, "rows"), ("scorer", scorer, "bars")):
            lines = [f"12:00:{5 * i:02d} INFO {n} {what}, 0 revised" for i, n in enumerate(counts)]
            with (machine.logs / f"{name}.log").open("a") as log:
                log.write("\n".join([*lines, ""]))

    recorder.log.write_text('{"event": "started"}\n')
    count([7, 7, 7, 7], [6, 6, 6, 6])
    assert not recorder.is_done(0)
    recorder.log.write_text('{"event": "started"}\n{"event": "feed_ended"}\n')
    assert not recorder.is_done(0)  # what was counted before the end does not matter
    count([0, 0, 0, 0], [2, 5_002, 5_002, 5_002])
    assert not recorder.is_done(0)
    # The scorer goes on with a row a second and product, each without a probability.
    count([1, 5_007, 5_007, 5_007, 5_007], [6, 16, 26, 36])
    assert recorder.is_done(0)
    assert not recorder.is_done(recorder.log.stat().st_size)  # of a later start
    alone = Machine(small_settings(tmp_path), tmp_path, 1, 1, simulator_port=1, with_live=False).recorder()
    assert alone.is_done is None
    assert alone.command[-1] != "--stay"  # type: ignore[index]


@pytest.mark.parametrize(
    ("lines", "rate"),
    [
        ([], None),
        ([("12:00:00", 100)], None),
        ([("12:00:00", 100), ("12:00:05", 150)], 10.0),
        ([("23:59:58", 0), ("00:00:03", 10)], 2.0),
        ([("12:00:00", 5_000), ("12:00:05", 10)], None),
        ([(f"12:00:{2 * i:02d}", 4 * i) for i in range(20)], 2.0),
    ],
)
def test_the_rate_is_read_from_what_the_recorder_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: list[tuple[str, int]], rate: float | None
) -> None:
    log = tmp_path / "recorder.log"
    said = ["12:00:00 INFO connected"]
    for at, frames in lines:
        caplog.clear()
        with caplog.at_level("INFO"):
            _log_progress(FeedCounters(frames=frames), PublishCounters())
        said.append(f"{at} INFO {caplog.records[0].getMessage()}")
    log.write_text("\n".join(said) + "\n")
    assert frames_per_s(log) == rate
    assert frames_per_s(tmp_path / "none.log") is None


@pytest.mark.slow
def test_runs_that_an_earlier_dagster_left_are_ended_once_the_new_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.job
    def nothing() -> None: ...

    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = small_settings(tmp_path)
    home = ensure_dagster_home(settings)
    machine = Machine(settings, home, 3001, 5001)
    webserver, daemon, service = machine.dagster(essential=True)
    assert webserver.needs == daemon.needs == service.name
    assert service.before is not None
    assert service.after is not None
    service.before()  # nothing was launched here yet; the databases are made
    assert (home / "history").is_dir()
    (location,) = yaml.safe_load((home / "workspace.yaml").read_text())["load_from"]
    assert location["grpc_server"]["port"] == machine.code_port
    served = {SERVED_BY: "{}"}
    with open_instance(home) as instance:
        lost = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=served).run_id
        service.before()
        run = instance.get_run_by_id(lost)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.STARTED
        service.after()
        run = instance.get_run_by_id(lost)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert any(MESSAGE in record.message for record in instance.all_logs(lost))

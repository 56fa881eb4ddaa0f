"""The recorder's image, made by its Dockerfile's own lines, records with its container's user and volumes."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from cryptovol_dagster_tests.deployment.files import DOCKERFILES, compose
from cryptovol_dagster_tests.deployment.images import Host, build, may_enter
from ingestor.archive.reader import RawReader
from ingestor.cli import cli
from ingestor.envelope import TICKS

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
EVER_NS = 1 << 62


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    if not may_enter():
        pytest.skip("imitating a container needs root and mount namespaces")
    folder = tmp_path_factory.mktemp("containers")
    folder.chmod(0o755)  # others than root must find their files
    image = build(DOCKERFILES["ingestor"], folder / "image")
    return Host(compose(), {"docker/Dockerfile.ingestor": image}, folder / "host")


def run(host: Host, *command: str, entrypoint: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    line = host.command_line("ingestor", command, entrypoint=entrypoint, **env)
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_every_verb_teaches_and_the_pipelines_are_said_to_be_elsewhere(host: Host) -> None:
    listed = run(host, "--help")
    for verb in cli.list_commands(None):  # pyright: ignore[reportArgumentType] - the list needs no context
        assert verb in listed.stdout
        taught = run(host, verb, "--help")
        assert taught.returncode == 0, taught.stderr
        assert "Usage" in taught.stdout
    absent = run(host, "backfill")
    assert absent.returncode == 2
    assert absent.stderr.splitlines()[-1].startswith(
        "Error: No such command 'backfill'. This is the recorder alone"
    )


def test_nothing_of_the_pipeline_is_inside_and_only_volumes_can_be_written(host: Host) -> None:
    script = """
import importlib.util, os, pathlib
heavy = ("cryptovol_dagster", "dagster", "mlflow", "sklearn", "xgboost", "pandas", "evidently", "pip", "uv")
assert not [name for name in heavy if importlib.util.find_spec(name)]
assert (os.getuid(), os.getgid(), os.getgroups()) == (10001, 10001, [])
status = pathlib.Path("/proc/self/status").read_text()
assert "CapBnd:\\t0000000000000000" in status and "NoNewPrivs:\\t1" in status
for folder in ("/data", "/data/raw", "/tmp"):
    pathlib.Path(folder, "probe").touch(), pathlib.Path(folder, "probe").unlink()
for folder in ("/app", "/opt/venv", "/etc/cryptovol", "/usr/local", "/"):
    try:
        pathlib.Path(folder, "probe").touch()
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written")
"""
    seen = run(host, "python", "-c", script, entrypoint=False)
    assert (seen.returncode, seen.stderr) == (0, "")


@pytest.fixture
def market(host: Host) -> Iterator[str]:
    """A simulated exchange, out of the same image."""
    line = host.command_line("ingestor", ["simulate", "--json", "--hours", "1", "--speed", "60"])
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def test_the_container_records_is_healthy_and_stops_cleanly(host: Host, real_kafka: str, market: str) -> None:
    env = {
        "CRYPTOVOL__KAFKA__BOOTSTRAP_SERVERS": real_kafka,
        "CRYPTOVOL__KAFKA__TOPIC_PREFIX": f"test-{uuid.uuid4().hex[:8]}.",
        "CRYPTOVOL__COINBASE__URL": market,
        "CRYPTOVOL__STORAGE__FLUSH_S": "1",
        "CRYPTOVOL__INGEST__CHECKPOINT_S": "1",
    }
    before = health(host)
    assert before.returncode == 1
    assert "nothing stored yet" in before.stderr
    with subprocess.Popen(host.command_line("ingestor", **env), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert real_kafka in process.stdout.readline()
        while health(host).returncode != 0:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "ended: signal" in output
    raw = host.volume("raw")
    assert RawReader(raw).count(TICKS, 0, EVER_NS) > 0
    assert {(file.stat().st_uid, file.stat().st_gid) for file in raw.rglob("*")} == {(10001, 10001)}


def health(host: Host) -> subprocess.CompletedProcess[str]:
    line = host.health_command_line("ingestor")
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)

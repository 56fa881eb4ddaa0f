"""compose.yaml says what the documentation promises, for every service that is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

from cryptovol_dagster.machine.instance import DAGSTER_YAML
from cryptovol_dagster.machine.services import LIVE_STOP_S
from cryptovol_dagster_tests.deployment.files import (
    COMPOSE,
    DOCKER,
    REPOSITORY,
    SECRETS,
    MissingVariableError,
    compose,
)
from ingestor.recorder import ARCHIVE_TIMEOUT_S, FLUSH_TIMEOUT_S
from ingestor.settings import load_settings

PROJECT = compose()
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
#: The sensor of failed runs is evaluated by `code`; alerts about scores come from the scorer.
SENDERS = {"code", "scorer"}
each_service = pytest.mark.parametrize("service", SERVICES)
pinned_image = re.compile(r"[a-z0-9./-]+:\d[\w.-]*(@sha256:[0-9a-f]{64})?")


def seconds(text: str) -> float:
    units = {"s": 1, "m": 60}
    assert re.fullmatch(r"\d+[sm]", text), text
    return int(text[:-1]) * units[text[-1]]


@each_service
def test_a_service_is_confined(service: str) -> None:
    spec = SERVICES[service]
    assert not re.match(r"(root|0)(:|$)", spec["user"])
    assert spec["cap_drop"] == ["ALL"]
    assert "cap_add" not in spec
    assert spec["security_opt"] == ["no-new-privileges:true"]
    # Kafka's own image writes its configuration beside its programs.
    assert spec["read_only"] is (service != "kafka")
    assert spec["mem_limit"]
    assert spec["pids_limit"]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(spec)


@each_service
def test_a_service_is_pinned_watched_restarted_and_logs_within_bounds(service: str) -> None:
    spec = SERVICES[service]
    assert pinned_image.fullmatch(spec["image"]), spec["image"]
    health = spec["healthcheck"]
    assert health["test"][0] == "CMD"
    assert seconds(health["timeout"]) < seconds(health["interval"])
    assert {"retries", "start_period"} <= set(health)
    assert spec["restart"] == "unless-stopped"
    assert spec["init"] is True
    assert set(spec["logging"]["options"]) == {"max-size", "max-file"}
    assert seconds(spec["stop_grace_period"]) >= 30


@each_service
def test_a_service_waits_until_what_it_needs_is_healthy(service: str) -> None:
    needed = SERVICES[service].get("depends_on", {})
    assert set(needed) <= set(SERVICES)
    assert all(condition == {"condition": "service_healthy"} for condition in needed.values())


@each_service
def test_ports_are_published_on_loopback_only(service: str) -> None:
    for port in SERVICES[service].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_only_what_talks_to_people_the_exchange_or_a_receiver_of_alerts_reaches_outside() -> None:
    assert PROJECT["networks"]["inner"] == {"internal": True}
    outside = {name for name, spec in SERVICES.items() if "outer" in spec["networks"]}
    published = {name for name, spec in SERVICES.items() if spec.get("ports")}
    assert outside == published | {"ingestor", "code", "scorer"}
    assert all("inner" in spec["networks"] for spec in SERVICES.values())


def test_each_volume_is_named_and_only_archives_write_raw_storage() -> None:
    mounts = [
        (name, *volume.split(":")) for name, spec in SERVICES.items() for volume in spec.get("volumes", [])
    ]
    assert {volume for _, volume, *_ in mounts} == set(PROJECT["volumes"])
    writers = {service for service, volume, _, *mode in mounts if volume == "raw" and mode != ["ro"]}
    assert writers == {"ingestor", "scorer"}


@pytest.mark.parametrize("secret", SECRETS)
def test_a_password_has_no_default(secret: str) -> None:
    with pytest.raises(MissingVariableError, match=secret):
        compose({name: value for name, value in SECRETS.items() if name != secret})
    assert f"{secret}=\n" in (DOCKER / ".env.example").read_text()


def test_no_secret_stands_in_the_file() -> None:
    for line in COMPOSE.read_text().splitlines():
        match = re.match(r"\s*\w*(PASSWORD|SECRET|TOKEN)\w*:\s*(.*)", line)
        if match:
            assert re.match(r"\$\{\w+:\?set it in docker/\.env\}", match[2]), line


@pytest.mark.parametrize("service", ["ingestor", "featurizer", "scorer", "code", "webserver", "daemon"])
def test_the_settings_in_the_environment_are_settings(service: str, tmp_path: Path) -> None:
    spec = SERVICES[service]
    config = tmp_path / "config.yaml"
    config.write_text((REPOSITORY / "config.yaml").read_text())
    assert spec["environment"]["CRYPTOVOL_CONFIG"] == spec["configs"][0]["target"]
    loaded = load_settings(environ={**spec["environment"], "CRYPTOVOL_CONFIG": str(config)})
    assert loaded.settings.kafka.bootstrap_servers == "kafka:19092"
    if service not in ("ingestor", "featurizer"):
        assert loaded.settings.mlflow_tracking_uri == "http://mlflow:5000"


@pytest.mark.parametrize("url", [None, "https://example.org/hooks/s3cret"])
def test_the_webhook_of_docker_env_reaches_what_sends_alerts(url: str | None) -> None:
    name = "CRYPTOVOL__MONITORING__ALERT_WEBHOOK_URL"
    services = compose({**SECRETS, **({name: url} if url else {})})["services"]
    for service in SENDERS:
        loaded = load_settings(environ={name: services[service]["environment"][name]})
        found = loaded.settings.monitoring.alert_webhook_url
        assert (found.get_secret_value() if found else None) == url
    # A secret goes where it is needed and nowhere else.
    assert {service for service, spec in services.items() if name in spec["environment"]} == SENDERS


def test_targets_of_docker_env_reach_what_sends_alerts() -> None:
    name, targets = "CRYPTOVOL__ALERTS__TARGETS", '{"phone": "json://s3cret"}'
    for value, expected in ((targets, ["phone"]), ("", [])):
        services = compose({**SECRETS, **({name: value} if value else {})})["services"]
        for service in SENDERS:
            loaded = load_settings(environ={name: services[service]["environment"][name]})
            assert [*loaded.settings.alerts.targets] == expected
        assert {service for service, spec in services.items() if name in spec["environment"]} == SENDERS


def test_the_recorder_has_time_to_stop_cleanly_and_is_unhealthy_before_long() -> None:
    flush_s = load_settings(environ={}).settings.storage.flush_s
    spec = SERVICES["ingestor"]
    assert seconds(spec["stop_grace_period"]) > FLUSH_TIMEOUT_S + flush_s + ARCHIVE_TIMEOUT_S
    assert int(spec["healthcheck"]["test"][-1]) > 2 * flush_s
    assert seconds(spec["healthcheck"]["start_period"]) > 2 * flush_s


@pytest.mark.parametrize("service", ["featurizer", "scorer"])
def test_featurizer_and_scorer_have_time_to_stop_and_are_unhealthy_before_long(service: str) -> None:
    settings, spec = load_settings(environ={}).settings, SERVICES[service]
    flush_s = settings.live.flush_s if service == "featurizer" else settings.storage.flush_s
    assert seconds(spec["stop_grace_period"]) >= LIVE_STOP_S
    assert int(spec["healthcheck"]["test"][-1]) > 2 * flush_s
    assert seconds(spec["healthcheck"]["start_period"]) > 2 * flush_s


def test_the_scorer_keeps_its_outbox_where_the_sensor_keeps_it_and_reads_its_models() -> None:
    lakes = {name for name, spec in SERVICES.items() if "lake:/data" in spec.get("volumes", [])}
    assert lakes == SENDERS


def test_kafka_is_set_as_the_one_of_the_tests() -> None:
    lines = (DOCKER / "kafka" / "server.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    addresses = {name for name in properties if "listener" in name or name.endswith(("voters", "dirs"))}
    given = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in SERVICES["kafka"]["environment"].items()
    }
    compared = set(properties) - addresses
    assert len(compared) >= 12
    assert {name: given.get(name) for name in compared} == {name: properties[name] for name in compared}
    pom = (DOCKER / "kafka" / "pom.xml").read_text()
    assert f"<version>{SERVICES['kafka']['image'].partition(':')[2]}</version>" in pom


def test_the_dagster_instance_is_valid_and_agrees_with_the_one_of_a_single_machine() -> None:
    valid, _ = dagster_instance_config(str(DOCKER))
    given, local = yaml.safe_load((DOCKER / "dagster.yaml").read_text()), yaml.safe_load(DAGSTER_YAML)
    assert {name: given[name] for name in local} == local
    assert valid["run_monitoring"]["enabled"]
    assert valid["run_retries"] == {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
    named = {
        value["env"]
        for value in given["storage"]["postgres"]["postgres_db"].values()
        if isinstance(value, dict)
    }
    for service in ("code", "webserver", "daemon"):
        assert named <= set(SERVICES[service]["environment"])


def test_the_code_location_has_one_name_and_the_address_of_the_service() -> None:
    (server,) = yaml.safe_load((DOCKER / "workspace.yaml").read_text())["load_from"]
    script = (DOCKER / "code-server.sh").read_text()
    name = server["grpc_server"]["location_name"]
    assert name == "cryptovol_dagster.definitions"
    assert f"--location-name {name}" in script
    assert server["grpc_server"]["host"] in SERVICES
    assert f"--port {server['grpc_server']['port']}" in script
    assert SERVICES["code"]["healthcheck"]["test"][-1] == str(server["grpc_server"]["port"])

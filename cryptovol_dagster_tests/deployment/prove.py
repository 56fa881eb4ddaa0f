"""The whole of compose.yaml, run on this machine without an engine: ``make containers-check``.

The two images are made by their Dockerfiles' own lines (`images`), then every service's own command and
health check run in a network namespace, where the services have the names and ports of compose.yaml. Kafka
and PostgreSQL are this machine's programs with the settings of compose.yaml. Prints one line a fact; the
first that does not hold ends it with exit code 1.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptovol_dagster_tests.brokers import JARS, new_instance
from cryptovol_dagster_tests.deployment.files import DOCKER, DOCKERFILES, REPOSITORY, SECRETS, compose
from cryptovol_dagster_tests.deployment.images import Host, Image, build, may_enter

ALONE = "--alone"
MARKET_HOURS = 3
#: Hours that the market closes: the last one has no two minutes after it.
CLOSED = [f"2025-12-01-{hour:02d}:00" for hour in range(MARKET_HOURS - 1)]
#: Shared libraries that a slim Debian has; everything else must have come with a package.
SLIM = {
    "libc",
    "libm",
    "libdl",
    "libpthread",
    "librt",
    "libresolv",
    "libutil",
    "libgcc_s",
    "libstdc++",
    "libz",
}
SLIM |= {"ld-linux-x86-64", "ld-linux-aarch64", "libcrypt", "libuuid"}


class NotProvenError(Exception):
    """What does not hold, with the end of the log."""


@dataclass
class Proof:
    """Processes that stand for containers, and the facts about them.

    Attributes:
        host: images, volumes and names.
        began_s: for the time in front of each fact.
        running: process and log by service.
    """

    host: Host
    began_s: float = field(default_factory=time.monotonic)
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)

    def say(self, fact: str) -> None:
        """Print a fact that holds."""
        print(f"{time.monotonic() - self.began_s:6.1f} s  {fact}", flush=True)

    def start(self, service: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a process in a group of its own, its output in a log."""
        log = self.host.folder / "logs" / f"{service}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=env
            )
        self.running[service] = (process, log)

    def stop(self, service: str, signum: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Signal the first process, as ``docker stop`` does (a kill takes all); give its exit code."""
        process, _ = self.running.pop(service)
        if signum == signal.SIGKILL:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        return process.wait(timeout=timeout_s)

    def stop_all(self) -> None:
        """End what still runs."""
        for process, _ in self.running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float, service: str) -> None:
        """Wait for a condition while a service lives.

        Raises:
            NotProvenError: it ended, or the time passed.
        """
        process, log = self.running[service]
        deadline = time.monotonic() + timeout_s
        while not done():
            if process.poll() is not None or time.monotonic() > deadline:
                state = "runs" if process.poll() is None else f"ended with {process.returncode}"
                raise NotProvenError(f"{what}: not within {timeout_s:g} s; {service} {state}\n{tail(log)}")
            time.sleep(0.5)

    def healthy(self, service: str, command: Sequence[str], timeout_s: float = 400) -> None:
        """Wait until a service's health check passes."""
        self.wait(lambda: ran(command).returncode == 0, f"health check of {service}", timeout_s, service)
        shown = " ".join(self.host.project["services"][service]["healthcheck"]["test"][1:])
        self.say(f"{service}: healthy ({shown})")

    def inside(self, service: str, *command: str, entrypoint: bool = False) -> str:
        """Run a command in a new container of a service; give what it printed.

        Raises:
            NotProvenError: it failed.
        """
        done = ran(self.host.command_line(service, command, entrypoint=entrypoint), timeout_s=400)
        if done.returncode != 0:
            raise NotProvenError(
                f"{service}: {shlex.join(command)}: {done.returncode}\n{done.stderr[-3000:]}"
            )
        return done.stdout

    def up(self, service: str) -> None:
        """Start a service with its own command and wait until it is healthy."""
        self.start(service, self.host.command_line(service))
        self.healthy(service, self.host.health_command_line(service))


def ran(command: Sequence[str], timeout_s: float = 90, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, **options)


def tail(log: Path, lines: int = 30) -> str:
    """Give the end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def kafka(proof: Proof) -> None:
    """Start this machine's Kafka with the settings of compose.yaml, named as the image names them."""
    env = proof.host.project["services"]["kafka"]["environment"]
    data = proof.host.folder / "volumes" / "kafka"
    settings = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in env.items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    }
    settings["log.dirs"] = str(data)
    properties = proof.host.folder / "kafka.properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    java = ["java", *env["KAFKA_HEAP_OPTS"].split(), "-cp", f"{JARS}/*"]
    java.append("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    formatted = ran(
        [
            *java,
            "kafka.tools.StorageTool",
            "format",
            "--cluster-id",
            env["CLUSTER_ID"],
            "--config",
            str(properties),
        ]
    )
    if formatted.returncode != 0:
        raise NotProvenError(f"Kafka refuses the settings of compose.yaml: {formatted.stderr[-2000:]}")
    proof.start("kafka", named(proof.host, [*java, "kafka.Kafka", str(properties)]))
    proof.healthy("kafka", named(proof.host, health_test(proof, "kafka")))


def postgres(proof: Proof) -> None:
    """Start this machine's PostgreSQL as its image does: an empty volume is prepared with our script."""
    env = proof.host.project["services"]["postgres"]["environment"]
    programs = Path(shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"))).parent
    owner = pwd.getpwnam("postgres")
    data = proof.host.folder / "volumes" / "postgres"
    password = proof.host.folder / "postgres-password"
    password.write_text(env["POSTGRES_PASSWORD"])
    data.mkdir(parents=True)
    for path in (data, password):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    become = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    arguments = env["POSTGRES_INITDB_ARGS"].split()
    made = ran(
        [
            *become,
            str(programs / "initdb"),
            "--username=postgres",
            f"--pwfile={password}",
            *arguments,
            str(data),
        ]
    )
    if made.returncode != 0:
        raise NotProvenError(f"initdb: {made.stderr}")
    server = [str(programs / "postgres"), "-D", str(data), "-k", "/tmp"]
    proof.start("postgres", [*become, *server])
    probe = ["pg_isready", "--quiet", "--host=/tmp", "--username=postgres"]
    proof.wait(lambda: ran(probe).returncode == 0, "PostgreSQL", 120, "postgres")
    script = ran(
        [
            "psql",
            "--no-psqlrc",
            "--host=/tmp",
            "--username=postgres",
            "-f",
            str(DOCKER / "postgres" / "init.sql"),
        ],
        env={**os.environ, **env},
    )
    if script.returncode != 0:
        raise NotProvenError(f"init.sql: {script.stderr}")
    proof.healthy("postgres", health_test(proof, "postgres"))
    proof.say(f"postgres: init.sql made roles and databases ({ran([server[0], '-V']).stdout.strip()})")


def health_test(proof: Proof, service: str) -> list[str]:
    """Give a health check's command as it stands in compose.yaml."""
    return proof.host.project["services"][service]["healthcheck"]["test"][1:]


def named(host: Host, command: Sequence[str]) -> list[str]:
    """Run a program of this machine where the services' names are known."""
    script = f"hostname localhost && mount --bind {host.hosts()} /etc/hosts && exec {shlex.join(command)}"
    return ["unshare", "--mount", "--uts", "--propagation=private", "/bin/sh", "-c", script]


def shared_libraries(proof: Proof, image: Image) -> None:
    """Every shared library that a slim Debian lacks came with a package."""
    service = "ingestor" if image is proof.host.image_of("ingestor") else "code"
    told = proof.inside(
        service, "sh", "-c", "find /opt/venv -name '*.so*' -type f -exec ldd {} + 2>/dev/null || true"
    )
    needed = set(re.findall(r"^\s(\S+) => (?:/usr|/lib|not found)", told, re.MULTILINE))
    own = {path.name for path in (image.root / "opt/venv").rglob("*.so*")}
    foreign = {name for name in needed - own if name.partition(".so")[0] not in SLIM}
    if foreign:
        raise NotProvenError(f"{service}: a slim image lacks {sorted(foreign)}")
    proof.say(f"{service}: of the system its packages load {', '.join(sorted(needed - own))}")


def graphql(query: str) -> dict[str, Any]:
    """Ask the webserver."""
    request = urllib.request.Request(
        "http://127.0.0.1:3000/graphql",
        json.dumps({"query": query}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


def runs() -> list[dict[str, Any]]:
    """List Dagster's runs, newest first."""
    found = graphql("{runsOrError {... on Runs {results {runId jobName status tags {key value}}}}}")[
        "runsOrError"
    ]
    return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found["results"]]


def statuses(job: str) -> list[str]:
    """List the states of a job's runs, newest first."""
    return [run["status"] for run in runs() if run["jobName"] == job]


@contextmanager
def simulated(proof: Proof) -> Iterator[str]:
    """A market out of the recorder's image; gives its address."""
    arguments = [
        "simulate",
        "--json",
        "--once",
        "--hours",
        str(MARKET_HOURS),
        "--speed",
        "max",
        "--port",
        "8765",
    ]
    proof.start("market", proof.host.command_line("ingestor", arguments))
    yield "ws://127.0.0.1:8765"


def prove(proof: Proof) -> None:
    """Bring everything up as compose.yaml orders it, let it work, break it, and look."""
    for image in proof.host.images.values():
        shared_libraries(proof, image)
    kafka(proof)
    postgres(proof)
    proof.up("mlflow")
    proof.up("code")
    proof.inside("code", "dagster", "api", "grpc-health-check", "--port", "4000")
    proof.say("code: dagster api grpc-health-check passes")
    proof.up("webserver")
    locations = graphql(
        "{workspaceOrError {... on Workspace {"
        "locationEntries {name loadStatus locationOrLoadError {__typename}}}}}"
    )
    expected = {
        "name": "cryptovol_dagster.definitions",
        "loadStatus": "LOADED",
        "locationOrLoadError": {"__typename": "RepositoryLocation"},
    }
    if locations["workspaceOrError"]["locationEntries"] != [expected]:
        raise NotProvenError(f"webserver: {locations}")
    proof.say("webserver: the code location is loaded through the workspace")
    proof.up("daemon")
    record(proof)
    seconds_are_scored(proof)
    hours_are_computed(proof)
    a_killed_code_server_is_survived(proof)
    for service, grace_s in (("daemon", 60), ("webserver", 30), ("code", 60), ("mlflow", 30)):
        proof.say(f"{service}: stopped with exit code {proof.stop(service, timeout_s=grace_s)}")


def record(proof: Proof) -> None:
    """The recorder's own command records a market, is healthy, and stops cleanly."""
    with simulated(proof) as url:
        listening, log = proof.running["market"]
        proof.wait(lambda: url in log.read_text(), "the simulated exchange", 120, "market")
        proof.start("ingestor", proof.host.command_line("ingestor", CRYPTOVOL__COINBASE__URL=url))
        listening.wait(timeout=600)
        proof.running.pop("market")
    proof.healthy("ingestor", proof.host.health_command_line("ingestor"))
    seen = proof.inside(
        "ingestor", "check-stream", "--from-beginning", "--duration", "5", "--json", entrypoint=True
    )
    messages = sum(each["messages"] for each in json.loads(seen)["products"].values())
    began_s = time.monotonic()
    code = proof.stop("ingestor", timeout_s=150)
    if code != 0:
        raise NotProvenError(f"ingestor: exit code {code} after SIGTERM")
    proof.say(f"ingestor: {messages} ticks in Kafka; stopped cleanly in {time.monotonic() - began_s:.1f} s")


def seconds_are_scored(proof: Proof) -> None:
    """Featurizer and scorer read what Kafka holds, are healthy, and stop cleanly with all of it stored."""
    for service in ("featurizer", "scorer"):
        proof.up(service)
    for service in ("scorer", "featurizer"):
        code = proof.stop(service, timeout_s=75)
        if code != 0:
            raise NotProvenError(f"{service}: exit code {code} after SIGTERM")
    looked = json.loads(proof.inside("code", "cryptovol", "status", "--json"))["live"]
    if looked is None or not looked["scores"]:
        raise NotProvenError(f"scorer: no scores in raw storage: {looked}")
    proof.say(
        f"scorer: {looked['scores']} scores of the last 10 min in raw storage, mostly {looked['reason']}"
    )


def hours_are_computed(proof: Proof) -> None:
    """The daemon's sensor notices the closed hours and the code server computes them."""

    def done() -> bool:
        found = statuses("hourly_pipeline")
        if "FAILURE" in found:
            raise NotProvenError(f"hourly_pipeline failed\n{tail(proof.running['code'][1])}")
        return found.count("SUCCESS") >= len(CLOSED)

    proof.wait(done, f"{len(CLOSED)} closed hours", 900, "daemon")
    proof.say(f"daemon and code: {len(CLOSED)} closed hours noticed, queued and computed, labels in the lake")


def a_killed_code_server_is_survived(proof: Proof) -> None:
    """A retrain whose code server is killed is ended, tried again, and its models reach MLflow."""
    # As the schedule does. A job backfill is over once its runs are queued, so they are not tried again.
    tags = json.dumps({"dagster/partition": CLOSED[-1]})
    proof.inside(
        "code", "dagster", "job", "launch", "-w", "/app/workspace.yaml", "-j", "retrain", "--tags", tags
    )
    proof.wait(lambda: "STARTED" in statuses("retrain"), "a retrain", 400, "daemon")
    proof.stop("code", signal.SIGKILL)
    proof.up("code")
    proof.wait(lambda: "FAILURE" in statuses("retrain"), "the end of the lost run", 200, "daemon")
    proof.say("code: killed in a retrain; started again, it ended the lost run")
    proof.wait(lambda: statuses("retrain")[:1] == ["SUCCESS"], "the retrain's second try", 900, "daemon")
    retried = next(run for run in runs() if run["jobName"] == "retrain" and run["status"] == "SUCCESS")
    proof.say(
        f"daemon: tried it again (dagster/retry_number {retried['tags']['dagster/retry_number']}): SUCCESS"
    )
    script = (
        "import mlflow; client = mlflow.MlflowClient('http://mlflow:5000');"
        "found = client.search_runs(['1'], \"attributes.status = 'FINISHED'\");"
        "print(len(found), sum(bool(run.data.metrics) for run in found))"
    )
    finished, with_metrics = map(int, proof.inside("code", "python", "-c", script).split())
    files = sum(path.is_file() for path in proof.host.volume("mlflow").rglob("*"))
    if not (finished and with_metrics and files):
        raise NotProvenError(f"MLflow: {finished} runs, {with_metrics} with metrics, {files} files")
    proof.say(
        f"mlflow: {finished} finished runs, {with_metrics} with metrics, {files} artefact files in its volume"
    )


def main(arguments: Sequence[str]) -> int:
    """Make the images, then prove in a network namespace of its own."""
    if arguments[:1] == [ALONE]:
        return _alone(Path(arguments[1]))
    if not may_enter():
        print("imitating containers needs root and mount namespaces", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="cryptovol-containers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if not (JARS / "pom.xml").exists():
            broker = new_instance(folder / "kafka")
            broker.start()
            broker.run("wipe")
        for image in DOCKERFILES:
            _make(image, folder)
        again = [sys.executable, "-m", "cryptovol_dagster_tests.deployment.prove", ALONE, name]
        inner = f"ip link set lo up && exec {shlex.join(again)}"
        return subprocess.run(
            ["unshare", "--net", "/bin/sh", "-c", inner], check=False, cwd=REPOSITORY
        ).returncode


def _make(name: str, folder: Path) -> None:
    """Make an image and remember it for the process that proves."""
    began_s = time.monotonic()
    image = build(DOCKERFILES[name], folder / "images" / name)
    (folder / f"{name}.json").write_text(json.dumps({**vars(image), "root": str(image.root)}))
    parts = (image.root / "app", image.root / "opt" / "venv")
    size_mb = sum(path.lstat().st_size for part in parts for path in part.rglob("*")) / 1e6
    print(
        f"image {name}: made in {time.monotonic() - began_s:.0f} s, {size_mb:.0f} MB over the base",
        flush=True,
    )


def _alone(folder: Path) -> int:
    """Prove, in a network namespace where nothing else is."""
    images = {}
    for name, dockerfile in DOCKERFILES.items():
        stored = json.loads((folder / f"{name}.json").read_text())
        images[str(dockerfile.relative_to(REPOSITORY))] = Image(**{**stored, "root": Path(stored["root"])})
    proof = Proof(Host(compose(SECRETS), images, folder / "host"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave nothing behind
    try:
        prove(proof)
    except NotProvenError as error:
        print(f"NOT PROVEN: {error}", file=sys.stderr)
        return 1
    finally:
        proof.stop_all()
    proof.say("everything held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

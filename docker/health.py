"""Health checks of the containers: cheap enough for every few seconds; one line and exit code 1 on failure.

python health.py http URL               answers with a status below 400
python health.py grpc PORT              the code server serves (its health service, without importing Dagster)
python health.py stored FOLDER SECONDS  the archive published a raw file of a topic within so many seconds
python health.py written FOLDER SECONDS a file of the folder was written within so many seconds
"""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

TIMEOUT_S = 5.0


class UnhealthyError(Exception):
    """What is wrong, in one line."""


def http(url: str) -> None:
    """Ask a web server.

    Raises:
        OSError: no answer, or an error status.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_S):
        pass


def grpc(port: str) -> None:
    """Ask the health service of a Dagster code server.

    Raises:
        UnhealthyError: it does not answer or does not serve.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service="DagsterApi")
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise UnhealthyError(f"port {port}: {error.code().name}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnhealthyError(f"port {port}: not serving")


def stored(folder: str, seconds: str) -> None:
    """Look when a file last appeared in an hour's folder of raw storage (publishing touches the folder).

    Raises:
        UnhealthyError: too long ago, or never.
    """
    _require_recent(folder, Path(folder).glob("date=*/hour=*"), seconds)


def written(folder: str, seconds: str) -> None:
    """Look when a file of a folder was last written (each is replaced as a whole).

    Raises:
        UnhealthyError: too long ago, or never.
    """
    _require_recent(folder, Path(folder).glob("*"), seconds)


def _require_recent(folder: str, paths: Iterable[Path], seconds: str) -> None:
    newest_s = max((path.stat().st_mtime for path in paths), default=None)
    if newest_s is None:
        raise UnhealthyError(f"{folder}: nothing stored yet")
    age_s = time.time() - newest_s
    if age_s > float(seconds):
        raise UnhealthyError(f"{folder}: nothing stored for {age_s:.0f} s")


CHECKS: dict[str, Callable[..., None]] = {"http": http, "grpc": grpc, "stored": stored, "written": written}


def main(arguments: Sequence[str]) -> int:
    """Run one check; 0 healthy, 1 not, 2 wrong usage."""
    if not arguments or arguments[0] not in CHECKS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        CHECKS[arguments[0]](*arguments[1:])
    except (UnhealthyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

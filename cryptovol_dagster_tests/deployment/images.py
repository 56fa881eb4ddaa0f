"""An image without an engine: a folder made by the Dockerfile's own instructions, and commands run inside it.

What stands in for the base image is this machine's ``/usr`` and the Python that runs the tests, mounted
where the base image has them; everything else is what the Dockerfile says. Commands run in a mount namespace
with that folder as root, with the container's user, capabilities (none), environment, volumes and read-only
root. Needs root (mount namespaces); memory limits and networks are not imitated.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptovol_dagster_tests.deployment.files import DOCKER, REPOSITORY, Instruction, instructions

BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What a build inherits from this machine: how its package clients find their registries.
_BUILD_ENVIRONMENT = re.compile(r"PIP_|UV_|SSL_CERT|REQUESTS_CA|https?_proxy|no_proxy", re.IGNORECASE)
_CACHE_MOUNT = re.compile(r"--mount=type=cache,target=(\S+)\s*")
_HOSTS = "127.0.0.1 localhost {names}\n"


@dataclass
class Image:
    """What a Dockerfile made.

    Attributes:
        root: the file system.
        env: ``ENV`` (and, while building, ``ARG``).
        workdir: ``WORKDIR``.
        user: ``USER``, as uid:gid.
        entrypoint: ``ENTRYPOINT``.
        cmd: ``CMD``.
    """

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Mount:
    """Something seen inside: a file or folder of this machine, or (no source) a tmpfs with options."""

    target: str
    source: Path | None = None
    read_only: bool = False
    options: str = ""


def may_enter() -> bool:
    """Whether this process may make the namespaces that containers are imitated with."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "--uts", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def build(dockerfile: Path, folder: Path) -> Image:
    """Carry out a Dockerfile's instructions in `folder`; all its stages share one root.

    Args:
        dockerfile: it may copy from the repository and, at the same path, from an earlier stage.
        folder: becomes the root.

    Raises:
        subprocess.CalledProcessError: a ``RUN`` failed.
        ValueError: an instruction this does not imitate.
    """
    _lay_base(folder)
    image = Image(folder)
    arguments: dict[str, str] = {}
    for step in instructions(dockerfile):
        if step.name == "FROM":
            image = Image(folder)
        elif step.name == "ARG":
            name, _, default = step.value.partition("=")
            arguments[name] = default
        else:
            _carry_out(step, image, arguments)
    return image


def _carry_out(step: Instruction, image: Image, arguments: Mapping[str, str]) -> None:
    if step.name == "RUN":
        cache = Path(os.environ.get("UV_CACHE_DIR", "~/.cache/uv")).expanduser()
        caches = [Mount(target, cache) for target in _CACHE_MOUNT.findall(step.value)]
        _run(image, _CACHE_MOUNT.sub("", step.value), arguments, caches)
    elif step.name == "ENV":
        for pair in shlex.split(step.value):
            name, _, value = pair.partition("=")
            image.env[name] = value.replace("$PATH", image.env["PATH"])
    elif step.name == "COPY":
        _copy(step.value.split(), image)
    elif step.name == "WORKDIR":
        image.workdir = step.value
        _inside(image.root, step.value).mkdir(parents=True, exist_ok=True)
    elif step.name == "USER":
        image.user = step.value
    elif step.name in {"ENTRYPOINT", "CMD"}:
        setattr(image, step.name.lower(), json.loads(step.value))
    else:
        raise ValueError(f"{step.name} {step.value}: not imitated here")


def _run(image: Image, command: str, arguments: Mapping[str, str], caches: Sequence[Mount]) -> None:
    inherited = {name: value for name, value in os.environ.items() if _BUILD_ENVIRONMENT.match(name)}
    for mount in caches:
        assert mount.source is not None
        mount.source.mkdir(parents=True, exist_ok=True)
        _inside(image.root, mount.target).mkdir(parents=True, exist_ok=True)
    etc = [Mount(f"/etc/{name}", Path("/etc") / name, read_only=True) for name in ("resolv.conf", "hosts")]
    subprocess.run(
        entering(
            image.root,
            ["/bin/sh", "-c", command],
            env={"HOME": "/root", **inherited, **arguments, **image.env},
            mounts=[*etc, *caches],
            workdir=image.workdir,
        ),
        check=True,
    )


def _copy(words: Sequence[str], image: Image) -> None:
    *sources, target = [word for word in words if not word.startswith("--")]
    if any(word.startswith("--from=") for word in words):
        if sources != [target]:
            raise ValueError(f"COPY {words}: between stages only to the same path")
        return
    for source in sources:
        if not in_context(source):
            raise ValueError(f"COPY {source}: .dockerignore keeps it from the builder")
        destination = _inside(image.root, target + Path(source).name if target.endswith("/") else target)
        destination.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / source, destination, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(REPOSITORY / source, destination)


def in_context(source: str) -> bool:
    """Whether .dockerignore, which shuts out everything but a list, lets a path through."""
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    return "*" in lines and any(source == name or source.startswith(f"{name}/") for name in allowed)


def entering(
    root: Path,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    mounts: Iterable[Mount] = (),
    user: str = "0:0",
    workdir: str = "/",
    read_only: bool = False,
    hostname: str = "container",
) -> list[str]:
    """Give the command line that runs `command` with `root` as its file system, by exec: one process id."""
    base = [
        Mount("/usr", Path("/usr"), read_only=True),
        Mount("/usr/local", Path(sys.base_prefix), read_only=True),
        Mount("/etc/ssl", Path("/etc/ssl"), read_only=True),
        Mount("/dev", Path("/dev")),
        Mount("/proc", Path("/proc")),
    ]
    lines = ["set -e", f"hostname {shlex.quote(hostname)}", f"mount --bind {root} {root}"]
    for mount in (*base, *sorted(mounts, key=lambda mount: mount.target)):
        lines += _mount_lines(root, mount)
    if read_only:
        lines.append(f"mount -o remount,bind,ro {root}")
    uid, _, gid = user.partition(":")
    confined = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    become = [] if user == "0:0" else ["setpriv", f"--reuid={uid}", f"--regid={gid}", *confined]
    given = [f"{name}={value}" for name, value in env.items()]
    inner = [
        "chroot",
        str(root),
        *become,
        "env",
        "--ignore-environment",
        f"--chdir={workdir}",
        *given,
        *command,
    ]
    lines.append("exec " + shlex.join(inner))
    return ["unshare", "--mount", "--uts", "--propagation=private", "/bin/sh", "-c", "\n".join(lines)]


def _mount_lines(root: Path, mount: Mount) -> list[str]:
    inside = _inside(root, mount.target)
    at, above = shlex.quote(str(inside)), shlex.quote(str(inside.parent))
    if mount.source is None:
        return [f"mkdir -p {at}", f"mount -t tmpfs -o {shlex.quote(mount.options or 'mode=1777')} tmpfs {at}"]
    make = f"mkdir -p {above} && touch {at}" if mount.source.is_file() else f"mkdir -p {at}"
    lines = [make, f"mount --rbind {shlex.quote(str(mount.source))} {at}"]
    return [*lines, f"mount -o remount,bind,ro {at}"] if mount.read_only else lines


def _lay_base(root: Path) -> None:
    """Lay what a slim Debian has besides ``/usr``."""
    for name in ("etc", "tmp", "var", "root", "proc", "dev", "usr"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group", "shadow", "gshadow", "login.defs", "nsswitch.conf"):
        shutil.copy(Path("/etc") / name, root / "etc" / name)
    # The Python of the base image finds its own library through the loader's cache.
    (root / "etc" / "ld.so.conf").write_text(
        "/usr/local/lib\n/usr/lib/x86_64-linux-gnu\n/usr/lib/aarch64-linux-gnu\n"
    )
    subprocess.run(entering(root, ["/sbin/ldconfig"], env={"PATH": BASE_PATH}), check=True)


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


@dataclass(frozen=True)
class Host:
    """Where containers of one project run: their images, named volumes and each other's names.

    Attributes:
        project: compose.yaml, variables filled in.
        images: image of each built service's Dockerfile, by the Dockerfile's path in the repository.
        folder: holds the volumes, the hosts file and the logs.
    """

    project: Mapping[str, Any]
    images: Mapping[str, Image]
    folder: Path

    def image_of(self, service: str) -> Image:
        """Give the image that a service names, whichever service builds it."""
        named = self.project["services"][service]["image"]
        for other in self.project["services"].values():
            if other["image"] == named and "build" in other:
                return self.images[other["build"]["dockerfile"]]
        raise KeyError(f"{service}: nothing builds {named}")

    def command_line(
        self, service: str, command: Sequence[str] | None = None, *, entrypoint: bool = True, **env: str
    ) -> list[str]:
        """Give the command line of a service's container.

        Args:
            service: its name in compose.yaml.
            command: instead of the service's (as ``docker compose run`` and ``exec`` take it).
            entrypoint: put the image's entrypoint before it; ``exec`` and health checks do not.
            env: environment variables over the service's.
        """
        spec, image = self.project["services"][service], self.image_of(service)
        chosen = list(command if command is not None else spec.get("command", image.cmd))
        return entering(
            image.root,
            [*(image.entrypoint if entrypoint else []), *chosen],
            env={**image.env, **spec.get("environment", {}), **env},
            mounts=self._mounts(spec, image),
            user=spec["user"],
            workdir=image.workdir,
            read_only=spec["read_only"],
            hostname=spec.get("hostname", service),
        )

    def health_command_line(self, service: str) -> list[str]:
        """Give the command line of a service's health check."""
        kind, *command = self.project["services"][service]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.command_line(service, command, entrypoint=False)

    def volume(self, name: str) -> Path:
        """Give the folder of a named volume."""
        assert name in self.project["volumes"]
        return self.folder / "volumes" / name

    def _mounts(self, spec: Mapping[str, Any], image: Image) -> list[Mount]:
        mounts = [Mount("/etc/hosts", self.hosts(), read_only=True)]
        for entry in spec.get("configs", []):
            file = (DOCKER / self.project["configs"][entry["source"]]["file"]).resolve()
            mounts.append(Mount(entry["target"], file, read_only=True))
        for entry in spec.get("tmpfs", []):
            target, _, options = entry.partition(":")
            mounts.append(Mount(target, options=options))
        for entry in spec.get("volumes", []):
            name, target, *mode = entry.split(":")
            mounts.append(Mount(target, self._laid_volume(name, image, target), read_only=mode == ["ro"]))
        return mounts

    def _laid_volume(self, name: str, image: Image, target: str) -> Path:
        """Make a volume as the engine does: with the owner of what the image has at that place."""
        volume = self.volume(name)
        if not volume.exists():
            volume.mkdir(parents=True)
            owner = _inside(image.root, target).stat()
            os.chown(volume, owner.st_uid, owner.st_gid)
        return volume

    def hosts(self) -> Path:
        """Give the hosts file in which every service has its name."""
        hosts = self.folder / "hosts"
        if not hosts.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            hosts.write_text(_HOSTS.format(names=" ".join(self.project["services"])))
        return hosts

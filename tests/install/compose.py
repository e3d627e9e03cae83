"""A small reader of config/container/compose.yaml, which starts its services as containers without an engine.

Keys that it does not know are refused, so no key of the file goes unnoticed. Services of other projects run
with the programs of this machine (Debian's Redis, PostgreSQL and Prometheus), on a layer above its root.
"""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.install.containerfile import Image
from tests.install.containers import Container, Limits, Mount, Network, read_bytes
from tests.support.nodes import eventually

HEALTH_SECONDS = 90.0

_KNOWN = {
    "build", "cap_add", "cap_drop", "command", "cpus", "depends_on", "entrypoint", "environment",
    "healthcheck", "hostname", "image", "mem_limit", "network_mode", "pids_limit", "ports", "profiles",
    "read_only", "restart", "secrets", "security_opt", "shm_size", "stop_grace_period", "stop_signal",
    "tmpfs", "ulimits", "user", "volumes", "working_dir",
}  # fmt: skip


def to_words(value: "str | Sequence[str]") -> tuple[str, ...]:
    """Return a command as words, with `$$` read as compose does."""
    words = shlex.split(value) if isinstance(value, str) else list(value)
    return tuple(word.replace("$$", "$") for word in words)


class Project:
    """The services of one compose file.

    `users` may be a passwd(5) for services with the programs of this machine.

    Args:
        file: The compose file.
        folder: For volumes, logs and names of hosts.
        network: Connects the services.
        find_image: Returns the image for the name that a service has.
    """

    def __init__(
        self, file: Path, folder: Path, network: Network, find_image: Callable[[str], Image]
    ) -> None:
        content = yaml.safe_load(file.read_text())
        self.services: dict[str, dict[str, Any]] = content["services"]
        for name, service in self.services.items():
            assert service.keys() <= _KNOWN, (
                f"{name}: {service.keys() - _KNOWN} are not keys that this reader knows"
            )
        self._secrets = {
            name: (file.parent / each["file"]).resolve() for name, each in content["secrets"].items()
        }
        self._volumes = {name: folder / "volumes" / name for name in content["volumes"]}
        self._here = file.parent
        self._folder = folder
        self._find_image = find_image
        self.network = network
        self.containers: dict[str, Container] = {}
        self._namespaces = {
            name: network.add(name, is_connected=service.get("network_mode") != "none")
            for name, service in self.services.items()
        }
        self.users: Path | None = None
        self._hosts = folder / "hosts"
        names = [f"{address} {name}" for name, address in network.addresses.items()]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def up(self, *names: str) -> None:
        """Start services and what they depend on, with the conditions of depends_on."""
        for name in names:
            if name in self.containers:
                continue
            needs: Mapping[str, Mapping[str, str]] = self.services[name].get("depends_on", {})
            self.up(*needs)
            for needed, options in needs.items():
                self._wait_for(needed, options["condition"])
            self.containers[name] = self.create(name)
            self.containers[name].start()

    def _wait_for(self, name: str, condition: str) -> None:
        container = self.containers[name]
        if condition == "service_completed_successfully":
            if container.process is not None:
                code = container.wait(HEALTH_SECONDS)
                assert code == 0, f"{name} ended with {code}\n{self.log(name)}"
        elif condition == "service_healthy":
            try:
                eventually(lambda: self.is_healthy(name), HEALTH_SECONDS, f"{name} is healthy")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log(name)[-4000:]}") from None
        else:
            raise ValueError(f"{condition}: not a condition that this reader knows")

    def is_healthy(self, name: str) -> bool:
        """Run the health check of a service."""
        test = self.services[name]["healthcheck"]["test"]
        command = to_words(test[1:]) if test[0] == "CMD" else ("/bin/sh", "-c", *to_words(test[1:]))
        return self.containers[name].check_health(command)

    def create(self, name: str, command: Sequence[str] | None = None) -> Container:
        """Make the container of a service."""
        service = self.services[name]
        image = self._find_image(service["image"])
        given = service.get("command") if command is None else command
        entrypoint = service.get("entrypoint")
        tmpfs = {
            target: options
            for target, _, options in (each.partition(":") for each in service.get("tmpfs", []))
        }
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        mounts = [*self._list_volumes(name, image), Mount(self._hosts, "/etc/hosts")]
        mounts += [Mount(self._secrets[each], f"/run/secrets/{each}") for each in service.get("secrets", [])]
        if image.root == Path("/") and self.users is not None:
            mounts.append(Mount(self.users, "/etc/passwd"))
        return Container(
            image,
            service.get("hostname", name),
            command=None if given is None else to_words(given),
            entrypoint=None if entrypoint is None else to_words(entrypoint),
            environment=service.get("environment", {}),
            user=service.get("user", ""),
            folder=service.get("working_dir", ""),
            capabilities=service.get("cap_add", []),
            mounts=mounts,
            tmpfs=tmpfs,
            limits=Limits(float(service.get("cpus", 0)), read_bytes(service.get("mem_limit", "0"))),
            network=self._namespaces[name],
            is_read_only=service["read_only"],
            output=self._folder / f"{name}.log",
        )

    def _list_volumes(self, name: str, image: Image) -> Iterator[Mount]:
        for text in self.services[name].get("volumes", []):
            source, target, *options = text.split(":")
            if source in self._volumes:
                path = self._volumes[source]
                if not path.exists():
                    self._create_volume(path, image.root / target.lstrip("/"), self.services[name]["user"])
            else:
                path = (self._here / source).resolve()
                assert path.exists(), f"{name}: {source} does not exist"
            yield Mount(path, target, is_read_only=options == ["ro"])

    def _create_volume(self, path: Path, origin: Path, user: str) -> None:
        """A new volume has owner and mode of the folder in the image, if the image has one.

        Images of other projects have folders for their volumes, which belong to their users.
        """
        path.mkdir(parents=True)
        if user not in {"0:0", "10001:10001"}:
            os.chown(path, *map(int, user.split(":")))
        elif origin.is_dir():
            subprocess.run(["chown", f"--reference={origin}", str(path)], check=True)
            subprocess.run(["chmod", f"--reference={origin}", str(path)], check=True)

    def run(self, name: str, *command: str, seconds: float = 60.0) -> str:
        """Run a service once, as `docker compose run --rm` does, and return what it printed."""
        container = self.create(name, command or None)
        before = len(self.log(name)) if (self._folder / f"{name}.log").exists() else 0
        container.start()
        code = container.wait(seconds)
        assert code == 0, f"{name} ended with {code}\n{self.log(name)[before:]}"
        return self.log(name)[before:]

    def stop(self, name: str) -> int:
        """Stop a service within its grace period, and return the exit code."""
        service = self.services[name]
        container = self.containers.pop(name)
        container.image.stop_signal = service.get("stop_signal", container.image.stop_signal)
        return container.stop(float(service.get("stop_grace_period", "10s").removesuffix("s")))

    def down(self) -> None:
        """Kill everything."""
        for container in self.containers.values():
            with contextlib.suppress(Exception):
                container.remove()

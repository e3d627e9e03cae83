"""The commands of docs/how-to/install-containers.md without an engine.

bash expands each command as a shell would. A command `docker` is then done with the containers of this
folder, with the options that it was given; an option that is not known here fails the test. All other
commands run as they are.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.install.compose import Project
from tests.install.containerfile import Image
from tests.install.containers import Container, Limits, Mount, Network, read_bytes
from tests.support.nodes import eventually

RUN_SWITCHES = {"--rm", "--detach", "--read-only"}
RUN_OPTIONS = {
    "--cap-drop", "--cpus", "--memory", "--name", "--pids-limit", "--restart", "--security-opt",
    "--stop-timeout", "--tmpfs", "--user", "-p", "-v",
}  # fmt: skip
EXEC_SWITCHES = {"-i", "-t", "-it"}
EXEC_OPTIONS = {"-w"}

DEFAULT_CAPABILITIES = ("chown", "dac_override", "fowner", "setgid", "setuid")
"""Those of a container without --cap-drop that the page needs."""

RUN_SECONDS = 90.0


class Engine:
    """Containers that commands of a page start and use; they end with it.

    Args:
        image: What `dicom-ingest` means.
        folder: Where the commands run, and where volumes and logs are.
        network: Connects the containers.
        project: The services of `docker compose`, if the page is about them.
    """

    def __init__(self, image: Image, folder: Path, network: Network, project: Project | None = None) -> None:
        self._image = image
        self._here = folder
        self._folder = folder
        self._network = network
        self._project = project
        self._hosts = folder / "hosts-of-containers"
        self._hosts.write_text("127.0.0.1 localhost\n")
        self.containers: dict[str, Container] = {}
        self.typed = ""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        for container in self.containers.values():
            with contextlib.suppress(Exception):
                container.remove()

    def follow(self, commands: str) -> str:
        """Run the commands of a block, and return what they print."""
        said = ""
        for line in re.sub(r"\\\n\s*", " ", commands).splitlines():
            if line.startswith("docker "):
                said += self._call(self._expand(line))
            elif line.startswith("cd "):
                self._here = self._here / line.removeprefix("cd ")
            elif line.strip():
                said += self._sh(line)
        return said

    def _sh(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", line], cwd=self._here, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _expand(self, line: str) -> list[str]:
        return self._sh(f'docker() {{ printf "%s\\0" "$@"; }}; {line}').split("\0")[:-1]

    def _call(self, words: Sequence[str]) -> str:
        known: dict[str, Callable[[Sequence[str]], str]] = {
            "run": self._run, "exec": self._exec, "inspect": self._inspect, "compose": self._compose,
        }  # fmt: skip
        return known[words[0]](words[1:])

    def _run(self, words: Sequence[str]) -> str:
        options, (name, *command) = read_options(words, RUN_SWITCHES, RUN_OPTIONS)
        assert name == "dicom-ingest", name
        is_hardened = options.get("--cap-drop") == ["ALL"]
        called = options.get("--name", ["once"])[0]
        log = self._folder / f"{called}.log"
        container = Container(
            self._image,
            called,
            command=command or None,
            user=options.get("--user", [""])[0],
            capabilities=() if is_hardened else DEFAULT_CAPABILITIES,
            mounts=[*map(self._mount, options.get("-v", [])), Mount(self._hosts, "/etc/hosts")],
            tmpfs=dict.fromkeys(options.get("--tmpfs", []), "mode=1777"),
            limits=Limits(
                float(options.get("--cpus", ["0"])[0]), read_bytes(options.get("--memory", ["0"])[0])
            ),
            network=self._network.add(called),
            is_read_only="--read-only" in options,
            output=log,
        )
        self.containers[called] = container
        container.start()
        if "--detach" in options:
            return ""
        code = container.wait(RUN_SECONDS)
        assert code == 0, log.read_text()
        return log.read_text()

    def _mount(self, text: str) -> Mount:
        source, target, *options = text.split(":")
        path = Path(source) if source.startswith("/") else self._folder / "volumes" / source
        if not source.startswith("/") and not path.exists():
            # A new volume has owner and mode of the folder in the image.
            path.mkdir(parents=True)
            origin = (self._image.root / target.lstrip("/")).stat()
            os.chown(path, origin.st_uid, origin.st_gid)
            path.chmod(origin.st_mode & 0o7777)
        assert path.is_dir(), f"{path} is no folder"
        return Mount(path, target, is_read_only=options == ["ro"])

    def _exec(self, words: Sequence[str]) -> str:
        options, (name, *command) = read_options(words, EXEC_SWITCHES, EXEC_OPTIONS)
        folder = options.get("-w", [""])[0]
        if folder:
            command = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *command]
        is_asked = bool({"-i", "-it"} & options.keys())
        done = self.containers[name].run(*command, standard_input=self.typed if is_asked else "")
        # A node that a person should look at, or that has no ledger yet, is no fault of the page.
        assert done.returncode == 0 or command == ["ingest", "status"], done.stdout + done.stderr
        return done.stdout + done.stderr

    def _inspect(self, words: Sequence[str]) -> str:
        option, asked, name = words
        assert (option, asked) == ("--format", "{{.State.Health.Status}}")
        eventually(self.containers[name].check_health, 60, f"{name} is healthy")
        return "healthy\n"

    def _compose(self, words: Sequence[str]) -> str:
        assert self._project is not None
        project, services = self._project, self._project.services
        match words:
            case ["build", "setup"]:
                return ""  # the fixture `image` has run its steps
            case ["up", "--detach", "--wait"]:
                names = [name for name, each in services.items() if not each.get("profiles")]
                project.up(*names)
                for name in names:
                    if "healthcheck" in services[name]:
                        eventually(lambda name=name: project.is_healthy(name), 90, f"{name} is healthy")
                return ""
            case ["run", "--rm", name, *command]:
                return project.run(name, *command)
            case ["exec", name, *command]:
                done = project.containers[name].run(*command)
                # A node that a person should look at is no fault of the page.
                assert done.returncode == 0 or command[:2] == ["ingest", "status"], done.stdout + done.stderr
                return done.stdout
        raise AssertionError(f"docker compose {' '.join(words)}: not a command that this engine knows")


def read_options(
    words: Sequence[str], switches: set[str], valued: set[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Split words into options with their values, and what follows them."""
    options: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in switches | valued, f"{name}: not an option that this engine knows"
        options.setdefault(name, []).extend([rest.pop(0)] if name in valued else [])
    return options, rest

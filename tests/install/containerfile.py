"""A small builder of images: it reads a Containerfile and runs its steps for real, in chroots.

It knows the instructions that config/container/Containerfile uses, and refuses every other one. A step that
it does not run can therefore not go unnoticed. What an engine adds (layers, a registry, user namespaces) is
left out.
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction, with its lines joined."""

    name: str
    text: str


@dataclass
class Image:
    """A root folder and what the Containerfile says about processes in it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    user: str = "0:0"
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"


def parse(text: str) -> list[Instruction]:
    """Split a Containerfile into instructions."""
    found, pending = [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
        elif pending.strip():
            name, _, rest = pending.strip().partition(" ")
            found.append(Instruction(name.upper(), rest.strip()))
            pending = ""
        else:
            pending = ""
    return found


def read_list(text: str) -> tuple[str, ...]:
    """Read the exec form `["a", "b"]`; the shell form runs through a shell."""
    if not text.startswith("["):
        return ("/bin/sh", "-c", text)
    return tuple(re.findall(r'"([^"]*)"', text))


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Put the values of ARG and ENV into an instruction."""
    return _VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether the patterns of a .dockerignore leave out a path.

    The last pattern that matches the path or a folder above it decides.
    """
    ignored = False
    parts = path.split("/")
    prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for pattern in patterns:
        wanted = pattern.removeprefix("!").strip("/")
        if any(_matches(prefix, wanted) for prefix in prefixes):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """Compare part by part; `**/` stands for any number of folders."""
    if pattern.startswith("**/"):
        parts = path.split("/")
        return any(_matches("/".join(parts[start:]), pattern[3:]) for start in range(len(parts)))
    names, wanted = path.split("/"), pattern.split("/")
    return len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted))


def list_context(context: Path, patterns: list[str]) -> Iterator[Path]:
    """Yield the files and links of a build context that the patterns leave in."""
    for folder, names, files in os.walk(context):
        here = Path(folder)
        kept = []
        for name in names:
            path = here / name
            if not is_ignored(path.relative_to(context).as_posix(), patterns):
                if path.is_symlink():
                    yield path
                else:
                    kept.append(name)
        names[:] = kept
        for name in files:
            if not is_ignored((here / name).relative_to(context).as_posix(), patterns):
                yield here / name


class Builder:
    """Builds the stages of one Containerfile.

    Args:
        containerfile: The file; its ignore file lies beside it.
        context: Folder that COPY reads.
        folder: Holds the roots of the stages.
        find_base: Returns the root of a base image, which is copied.
        run: Runs a command in a root: see `tests.install.image.run_in_root`.
        given: Values of ARG, as `--build-arg` gives them.
    """

    def __init__(
        self,
        containerfile: Path,
        context: Path,
        folder: Path,
        find_base: Callable[[str], Path],
        run: Callable[..., "subprocess.CompletedProcess[str]"],
        given: Mapping[str, str],
    ) -> None:
        self._instructions = parse(containerfile.read_text())
        ignore = containerfile.with_name(f"{containerfile.name}.dockerignore").read_text().splitlines()
        self._patterns = [line for line in ignore if line and not line.startswith("#")]
        self._context = context
        self._folder = folder
        self._find_base = find_base
        self._run_in_root = run
        self._given = given
        self._global: dict[str, str] = {}
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, Image] = {}
        self._image: Image | None = None

    def build(self) -> Image:
        """Run every step, and return the image of the last stage."""
        for instruction in self._instructions:
            step = getattr(self, f"_do_{instruction.name.lower()}", None)
            if step is None:
                raise ValueError(f"{instruction.name}: not an instruction that this builder knows")
            step(instruction.text)
        assert self._image is not None
        return self._image

    @property
    def image(self) -> Image:
        """The stage that is being built."""
        assert self._image is not None, "an instruction before FROM"
        return self._image

    def _values(self) -> dict[str, str]:
        return {**self._arguments, **self.image.environment}

    def _do_arg(self, text: str) -> None:
        name, _, value = text.partition("=")
        (self._global if self._image is None else self._arguments)[name] = self._given.get(name, value)

    def _do_from(self, text: str) -> None:
        words = substitute(text, self._global).split()
        name = words[2] if len(words) == 3 and words[1].upper() == "AS" else str(len(self._stages))
        root = self._folder / name
        source = self._stages[words[0]].root if words[0] in self._stages else self._find_base(words[0])
        root.mkdir(parents=True)
        subprocess.run(["cp", "-a", "--reflink=auto", f"{source}/.", str(root)], check=True)
        self._arguments = {}
        self._image = self._stages[name] = Image(root)

    def _do_env(self, text: str) -> None:
        for word in shlex.split(substitute(text, self._values())):
            name, _, value = word.partition("=")
            self.image.environment[name] = value

    def _do_label(self, text: str) -> None:
        for word in shlex.split(substitute(text, self._values())):
            name, _, value = word.partition("=")
            self.image.labels[name] = value

    def _do_run(self, text: str) -> None:
        done = self._run_in_root(
            self.image.root,
            ["/bin/sh", "-c", text],
            environment=self._values(),
            folder=self.image.folder,
            user=self.image.user,
        )
        if done.returncode:
            raise AssertionError(
                f"RUN {text}\nexit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
            )

    def _do_copy(self, text: str) -> None:
        words = shlex.split(substitute(text, self._values()))
        options = [word for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        place = self._resolve(target)
        if options:
            (option,) = options
            assert option.startswith("--from="), f"COPY {option}: not an option that this builder knows"
            stage = self._stages[option.removeprefix("--from=")]
            for source in sources:
                place.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", f"{stage.root}/{source.strip('/')}/.", str(place)], check=True)
            return
        for source in sources:
            self._copy_from_context(source, place, is_folder=target.endswith(("/", ".")))

    def _copy_from_context(self, source: str, place: Path, *, is_folder: bool) -> None:
        origin = self._context / source
        if origin.is_file():
            place = place / origin.name if is_folder else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, place)
            return
        for path in list_context(self._context, self._patterns):
            if path.is_relative_to(origin):
                copy = place / path.relative_to(origin)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy, follow_symlinks=False)

    def _resolve(self, path: str) -> Path:
        return self.image.root / os.path.normpath(os.path.join(self.image.folder, path)).lstrip("/")

    def _do_workdir(self, text: str) -> None:
        self.image.folder = text
        self._resolve(text).mkdir(parents=True, exist_ok=True)

    def _do_user(self, text: str) -> None:
        self.image.user = text

    def _do_volume(self, text: str) -> None:
        self.image.volumes = read_list(text)

    def _do_expose(self, text: str) -> None:
        self.image.ports = tuple(map(int, text.split()))

    def _do_stopsignal(self, text: str) -> None:
        self.image.stop_signal = text

    def _do_healthcheck(self, text: str) -> None:
        _, _, command = text.partition("CMD ")
        self.image.healthcheck = read_list(command)

    def _do_entrypoint(self, text: str) -> None:
        self.image.entrypoint = read_list(text)

    def _do_cmd(self, text: str) -> None:
        self.image.command = read_list(text)

"""Build the Debian package: `make deb`, or `python3 config/debian/build.py`.

The package is for the Debian release that this runs on: its Python, its OpenSSL, its libc. A virtual
environment with the node, its extras and its dependencies goes to /usr/lib/dicom-ingest, in the versions of
requirements.lock.

Nothing in the package depends on the folder, the machine or the time of the build. Times are those of the
commit, or SOURCE_DATE_EPOCH. Files with the path of the build (scripts, pip's notes) are removed or written
anew.

Needs python3-venv, python3-dev, gcc, libssl-dev, dpkg-dev and binutils. Uses the standard library only.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parents[2]
PARTS: Final = Path(__file__).resolve().parent
PYTHON: Final = "/usr/bin/python3"
"""The interpreter of Debian: the only one that the package may depend on."""

HOME: Final = "usr/lib/dicom-ingest"
PIP_HOME: Final = "/opt/dicom-ingest"
"""Where the units and pages expect a virtual environment that an administrator made."""

EXTRAS: Final = "console,postgresql"
SCRIPTS: Final = ("postinst", "prerm", "postrm")
REVISION: Final = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the package and print its path."""
    parser = argparse.ArgumentParser(description="Build the Debian package of this checkout.")
    parser.add_argument("--output", type=Path, default=SOURCE / "dist", help="folder of the package")
    parser.add_argument("--wheel", type=Path, help="a wheel for this Python; default: build one")
    parser.add_argument("--work", type=Path, default=SOURCE / "build" / "deb", help="folder for the build")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    os.environ.setdefault("SOURCE_DATE_EPOCH", _read_commit_time())
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    work, root = options.work, options.work / "root"
    shutil.rmtree(work, ignore_errors=True)
    root.mkdir(parents=True)
    _report("Installing the tools of the build …")
    tools = _make_tools(work / "tools")
    if options.wheel is None:
        _report("Compiling the extensions; this takes a minute or two …")
    wheel = options.wheel or _build_wheel(tools, work / "wheel")
    _report("Installing the node and its dependencies …")
    _install(tools, wheel, root)
    _install_documents(root)
    _install_configuration(root)
    (root / "DEBIAN").mkdir()
    _write_control(root, work)
    _report("Packing …")
    options.output.mkdir(parents=True, exist_ok=True)
    print(_pack(root, options.output))  # noqa: T201


def _report(step: str) -> None:
    """Say what takes time. Standard output is for the path of the package."""
    print(step, file=sys.stderr, flush=True)  # noqa: T201


def _run(*command: str | Path, cwd: Path = SOURCE, **environment: str) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def _read_commit_time() -> str:
    git = subprocess.run(
        ["git", "log", "-1", "--format=%ct"],  # noqa: S607
        cwd=SOURCE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return git.stdout.strip() or str(int((SOURCE / "CHANGELOG.md").stat().st_mtime))


# --- the virtual environment


def _make_tools(folder: Path) -> Path:
    """Make the environment that builds, and return its Python."""
    _run(PYTHON, "-m", "venv", folder)
    python = folder / "bin" / "python"
    pins = _write_pins({"setuptools", "cython", "click", "click-man"}, folder / "tools.txt")
    _pip(python, "install", "--no-deps", "--require-hashes", "-r", pins)
    return python


def _write_pins(names: Collection[str], path: Path) -> Path:
    """Write the versions and hashes of these packages, as requirements.lock has them."""
    entries = re.split(r"\n(?=\S)", (SOURCE / "requirements.lock").read_text())
    pinned = {match[1]: entry for entry in entries if (match := re.match(r"([\w.-]+)==", entry))}
    if missing := set(names) - set(pinned):
        raise SystemExit(f"requirements.lock lacks {', '.join(sorted(missing))}; run make lock")
    return _write(path, "".join(f"{pinned[name]}\n" for name in sorted(names)))


def _find_dependencies(tools: Path, wheel: str, work: Path) -> set[str]:
    """Return the names of all packages that a wheel with its extras needs on this Python."""
    lock = (SOURCE / "requirements.lock").read_text()
    versions = "\n".join(re.findall(r"^([^\s#]+==.*?) \\$", lock, re.MULTILINE))
    constraints = _write(work / "constraints.txt", f"{versions}\n")
    report = work / "report.json"
    dry = ("--dry-run", "--ignore-installed", "--report", report)
    _pip(tools, "install", *dry, "-c", constraints, wheel)
    found = [each["metadata"]["name"] for each in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found} - {"dicom-ingest"}


def _pip(python: Path, *arguments: str | Path) -> None:
    _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _build_wheel(tools: Path, folder: Path) -> Path:
    _pip(tools, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ".")
    return next(folder.glob("*.whl"))


def _install(tools: Path, wheel: Path, root: Path) -> None:
    home = root / HOME
    _run(tools, "-m", "venv", "--without-pip", "--symlinks", home)
    names = _find_dependencies(tools, f"{wheel.resolve()}[{EXTRAS}]", root.parent)
    pins = _write_pins(names, root.parent / "requirements.txt")
    install = ("--python", home / "bin" / "python", "install", "--no-compile", "--no-deps")
    _pip(tools, *install, "--require-hashes", "-r", pins)
    _pip(tools, *install, wheel.resolve())
    _make_independent_of_build(home)
    for library in home.glob("lib/python3*/site-packages/ingest/ext/*.so"):
        _run("strip", "--strip-unneeded", library)
    packages = f"{home}/lib"
    # A pyc that names the hash of its source, and is not compared with it: no time in it, and none needed.
    mode = ("--invalidation-mode", "unchecked-hash")
    _run(home / "bin" / "python", "-m", "compileall", "-q", "-f", *mode, "-s", root, "-p", "/", packages)


def _make_independent_of_build(home: Path) -> None:
    """Remove the paths of the build from a virtual environment, and every script but `ingest`."""
    version = _run(PYTHON, "-c", "import sys; print('{}.{}'.format(*sys.version_info))").strip()
    binaries = home / "bin"
    shutil.rmtree(binaries)
    binaries.mkdir()
    (binaries / "python").symlink_to(f"/usr/bin/python{version}")
    (binaries / "python3").symlink_to("python")
    script = binaries / "ingest"
    # -I: no variable of an administrator's shell changes what the node imports.
    script.write_text(
        f"#!/{HOME}/bin/python -I\nimport sys\n\nfrom ingest.cli import main\n\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    for name in ("direct_url.json", "REQUESTED"):
        for path in home.rglob(f"*.dist-info/{name}"):
            path.unlink()
    removed = re.compile(r"\.\./|.*\.dist-info/(direct_url\.json|REQUESTED),")
    for record in home.rglob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not removed.match(line)]
        record.write_text("".join(kept))
    shutil.rmtree(home / "include", ignore_errors=True)


# --- documents


def _install_documents(root: Path) -> None:
    """Put manual pages, examples and completions where Debian looks for them."""
    home = root / HOME
    # A wheel can only install below its own environment.
    (root / "usr/share").mkdir(parents=True)
    for name in ("man", "dicom-ingest"):
        (home / "share" / name).rename(root / "usr/share" / name)
    (home / "share").rmdir()
    for page in sorted((root / "usr/share/man/man1").iterdir()):
        _compress(page)
    completions = {
        "bash": "usr/share/bash-completion/completions/ingest",
        "zsh": "usr/share/zsh/vendor-completions/_ingest",
        "fish": "usr/share/fish/vendor_completions.d/ingest.fish",
    }
    for shell, name in completions.items():
        _write(root / name, _run(home / "bin" / "python", "-m", "ingest.cli", "completion", shell))
    folder = root / "usr/share/doc/dicom-ingest"
    _write(folder / "changelog", (SOURCE / "CHANGELOG.md").read_text())
    _compress(folder / "changelog")
    _write(folder / "README.Debian", (PARTS / "README.Debian").read_text())
    _write(folder / "copyright", _make_copyright())
    packages = next(home.glob("lib/python3*/site-packages"))
    _write(folder / "third-party.txt", _list_third_party(packages))


def _make_copyright() -> str:
    licence = (SOURCE / "LICENSE").read_text().splitlines()
    holder = next(line for line in licence if line.startswith("Copyright"))
    text = "\n".join(f" {line}" if line else " ." for line in licence[licence.index(holder) + 2 :])
    template = (PARTS / "copyright").read_text()
    return template.replace("@COPYRIGHT@", holder.removeprefix("Copyright (c) ")) + f"{text}\n"


def _list_third_party(packages: Path) -> str:
    lines = []
    for metadata in sorted(packages.glob("*.dist-info/METADATA")):
        fields = HeaderParser().parsestr(metadata.read_text("utf-8"))
        classified = [
            each.rpartition(" :: ")[2]
            for each in fields.get_all("Classifier", [])
            if each.startswith("License :: ")
        ]
        named = fields.get("License-Expression") or ", ".join(classified) or fields.get("License", "")
        if fields["Name"] != "dicom-ingest":
            lines.append(f"{fields['Name']} {fields['Version']}: {(named or 'unknown').splitlines()[0]}\n")
    return "".join(lines)


# --- configuration and control


def _install_configuration(root: Path) -> None:
    _copy(PARTS / "logrotate", root / "etc/logrotate.d/dicom-ingest")
    examples = root / "usr/share/dicom-ingest/systemd"
    for path in sorted(examples.iterdir()):
        _write(path, _use_home(path.read_text()))
        if path.suffix == ".service":
            (root / "usr/lib/systemd/system").mkdir(parents=True, exist_ok=True)
            path.rename(root / "usr/lib/systemd/system" / path.name)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/ingest").symlink_to(f"../../{HOME}/bin/ingest")


def _use_home(text: str) -> str:
    return text.replace(PIP_HOME, f"/{HOME}")


def _write_control(root: Path, work: Path) -> None:
    folder = root / "DEBIAN"
    with (SOURCE / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    values = {
        "VERSION": f"{_to_debian_version(version)}-{REVISION}+deb{_read_release()}",
        "ARCHITECTURE": _run("dpkg", "--print-architecture").strip(),
        "INSTALLED_SIZE": str(sum(path.stat().st_size for path in files) // 1024),
        "PYTHON": _depend_on_python(),
        "LIBRARIES": _find_libraries(files, work),
    }
    text = (PARTS / "control").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    _write(folder / "control", text)
    _copy(PARTS / "conffiles", folder / "conffiles")
    _copy(PARTS / "templates", folder / "templates")
    for name in SCRIPTS:
        _copy(PARTS / name, folder / name)
        (folder / name).chmod(0o755)
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]  # noqa: S324
    _write(folder / "md5sums", "".join(sums))


def _to_debian_version(version: str) -> str:
    """Return a version whose previews and development versions sort before the release."""
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", version)


def _read_release() -> str:
    """Return the number of this Debian; testing has none, and comes after all that have one."""
    found = re.search(r'^VERSION_ID="?(\d+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else "99"


def _depend_on_python() -> str:
    # Extensions and compiled files are for one minor version.
    minor = int(_run(PYTHON, "-c", "import sys; print(sys.version_info.minor)"))
    return f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1}~), python3.{minor}"


def _find_libraries(files: Iterable[Path], work: Path) -> str:
    """Return the packages of the shared libraries that ours and those of the dependencies are linked to."""
    binaries = [path for path in files if path.open("rb").read(4) == b"\x7fELF"]
    # dpkg-shlibdeps reads a control file of sources below the current folder.
    _write(work / "debian" / "control", "Source: dicom-ingest\n\nPackage: dicom-ingest\nArchitecture: any\n")
    # Its warnings are about the libraries inside of wheels.
    command = ("dpkg-shlibdeps", "-O", "--ignore-missing-info", "--warnings=0")
    found = _run(*command, *binaries, cwd=work)
    return found.strip().removeprefix("shlibs:Depends=")


def _pack(root: Path, output: Path) -> Path:
    fields = dict(re.findall(r"^(\w+): (.*)$", (root / "DEBIAN/control").read_text(), re.MULTILINE))
    package = output / f"{fields['Package']}_{fields['Version']}_{fields['Architecture']}.deb"
    package.unlink(missing_ok=True)
    # Newer times become SOURCE_DATE_EPOCH, and no older ones exist: every file was written just now.
    # zstd needs a tenth of the time of xz. Debian 12 and later unpack it.
    _run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", root, package)
    return package


# --- files


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _compress(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


if __name__ == "__main__":
    sys.exit(main())

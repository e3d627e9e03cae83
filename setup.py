"""The build: extension modules, build info, manual pages, and an sdist that is complete.

Everything else is in pyproject.toml.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

from distutils.command.install_data import install_data  # isort: skip - setuptools brings it

# A build imports modules of the sources. They need no extension and no package but click.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ingest.build_info import BUILD_MODULE, find_commit, format_build_module

CORES = len(os.sched_getaffinity(0))
UP_TO_DATE_SECONDS = 0.1
"""Longest time that an extension takes if it is not compiled."""

LINKS = {"ingest/ext": "../ext", "ingest/workers": "../workers"}
"""Folders of the package that are links; docs/decisions/0019 says why."""

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": False,
}

PROBES = (
    ("#include <stdio.h>\nint main(void) { return 0; }", "no C compiler runs; apt-get install gcc libc6-dev"),
    (
        "#include <Python.h>\nint main(void) { return 0; }",
        "Python.h of this Python is missing; apt-get install python3-dev",
    ),
    (
        """
        #include <openssl/ssl.h>
        #if OPENSSL_VERSION_NUMBER < 0x30000000L
        #error "too old"
        #endif
        int main(void) { return SSL_CTX_new(TLS_method()) == NULL; }
        """,
        "openssl/ssl.h or libssl (3.0 or newer) is missing; apt-get install libssl-dev",
    ),
)
"""Small programs, and what is missing where one of them cannot be built."""


def refuse(cause: str) -> SystemExit:
    """Return the end of a build that would lack a part: a wheel without extensions fails at its first use."""
    return SystemExit(f"dicom-ingest: {cause}")


def list_extensions() -> list[Extension]:
    """Return one extension for each Cython module."""
    names = sorted(path.stem for path in Path("ext").glob("*.pyx"))
    if not names:
        raise refuse("ext/*.pyx are missing; build from a checkout or from the sdist")
    if not all(Path(link, "__init__.py").is_file() for link in LINKS):
        raise refuse(
            f"{' and '.join(LINKS)} are no links to folders; unpack where symbolic links can be made"
        )
    return [
        Extension(
            f"ingest.ext.{name}",
            [f"ext/{name}.pyx"],
            extra_compile_args=["-O3", "-Wall", "-Wno-unused-function"],
            libraries=["ssl", "crypto"] if name.startswith("tls_") else [],
        )
        for name in names
    ]


class BuildExtensions(build_ext):
    """Translates Cython to C and compiles it, once everything that this needs was found.

    Both steps use every core, and tell their progress.
    """

    def finalize_options(self) -> None:
        """Compile one extension on each core, unless `-j` names another number."""
        super().finalize_options()
        if self.parallel is None:
            self.parallel = CORES

    def run(self) -> None:
        """Remember whether the extensions stay in the checkout: the base class forgets it meanwhile."""
        self._stays_here = self.inplace or self.editable_mode
        super().run()

    def build_extensions(self) -> None:
        """Look for the tools first: without them the compiler's own messages fill a screen."""
        self._require_tools()
        self._translate()
        if not self._stays_here:
            self._leave_out_paths()
        self._counting, self._done = threading.Lock(), 0
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Build one extension, and name it with its time unless it is up to date."""
        started = time.monotonic()
        super().build_extension(ext)
        seconds = time.monotonic() - started
        with self._counting:
            self._done += 1
            if seconds > UP_TO_DATE_SECONDS:
                progress = f"[{self._done:2}/{len(self.extensions)}]"
                sys.stderr.write(f"{progress} Compiled {ext.name} in {seconds:.1f} s\n")

    def _require_tools(self) -> None:
        includes = [f"-I{folder}" for folder in self.compiler.include_dirs]
        for source, missing in PROBES:
            libraries = ["-lssl", "-lcrypto"] if "openssl" in source else []
            with tempfile.TemporaryDirectory() as folder:
                command = [*self.compiler.compiler, *includes, "-x", "c", "-", "-o", f"{folder}/probe"]
                try:
                    probe = subprocess.run(
                        [*command, *libraries], input=source, text=True, capture_output=True, check=False
                    )
                except OSError:
                    raise refuse(missing) from None
            if probe.returncode:
                raise refuse(missing)

    def _translate(self) -> None:
        """Translate the Cython modules. Their C files stay beside them for the next build."""
        try:
            from Cython.Build import cythonize  # noqa: PLC0415 - an sdist needs no Cython
        except ImportError:
            raise refuse(
                "Cython is missing; pip install 'cython>=3.1', or build without --no-build-isolation"
            ) from None
        # Python 3.14 would start each process of Cython by running this file again.
        multiprocessing.set_start_method("fork", force=True)
        found = cythonize(self.extensions, compiler_directives=DIRECTIVES, nthreads=CORES)
        translated = {each.name: each for each in found}
        for extension in self.extensions:
            extension.sources = translated[extension.name].sources
            extension.depends = translated[extension.name].depends

    def _leave_out_paths(self) -> None:
        """Build without the paths of this machine: debug information and the rpath of this Python have some.

        The rpath would also decide which OpenSSL another machine uses.
        """
        for extension in self.extensions:
            extension.extra_compile_args += ["-g0", f"-ffile-prefix-map={Path.cwd()}=."]
        self.compiler.linker_so = [
            word for word in self.compiler.linker_so if not word.startswith(("-Wl,-rpath", "-Wl,-R"))
        ]


class BuildModules(build_py):
    """Adds the module with the commit that a wheel was built from."""

    def run(self) -> None:
        """Write the module into the wheel, never into the checkout, where it would become old."""
        super().run()
        commit = find_commit()
        if commit is not None and not self.editable_mode:
            Path(self.build_lib, BUILD_MODULE).write_text(format_build_module(commit), "utf-8")


class InstallData(install_data):
    """Adds the manual pages, which are made from the commands."""

    def run(self) -> None:
        """Make the pages with the date of the commit, so that a build can be repeated."""
        try:
            from ingest.cli._man_pages import write_man_pages  # noqa: PLC0415 - an sdist needs no click
        except ImportError as error:
            raise refuse(
                f"{error.name} is missing; pip install click click-man, or build without --no-build-isolation"
            ) from None
        commit = find_commit()
        date = datetime.fromisoformat(commit.date) if commit is not None else datetime.now(UTC)
        with tempfile.TemporaryDirectory() as folder:
            pages = write_man_pages(Path(folder), date, self.distribution.get_version())
            self.data_files = [*self.data_files, ("share/man/man1", [str(page) for page in pages])]
            super().run()


class CompleteSdist(sdist):
    """Packs every file that git knows: sources, tests, documentation and configuration."""

    def finalize_options(self) -> None:
        """Leave the name of the user out of the archive."""
        super().finalize_options()
        self.owner = self.owner or "root"
        self.group = self.group or "root"

    def make_distribution(self) -> None:
        """Replace the list of setuptools, which has only the modules, by that of git.

        An unpacked sdist has its list in SOURCES.txt, and setuptools reads that one.
        """
        generated = self.get_finalized_command("egg_info").egg_info
        if Path(".git").exists():
            kept = [name for name in self.filelist.files if name.startswith(f"{generated}/")]
            self.filelist.files = sorted({*list_tracked_files(), *kept})
            Path(generated, "SOURCES.txt").write_text("\n".join(self.filelist.files) + "\n", "utf-8")
        elif not Path("PKG-INFO").exists():
            raise refuse("an sdist is made in a checkout of git, or in an unpacked sdist")
        super().make_distribution()

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files, and make the links anew: setuptools would copy the folders behind them."""
        behind_links = tuple(f"{link}/" for link in LINKS)
        super().make_release_tree(base_dir, [name for name in files if not name.startswith(behind_links)])
        for link, target in LINKS.items():
            Path(base_dir, link).symlink_to(target)
        commit = find_commit()
        if commit is not None:
            Path(base_dir, BUILD_MODULE).write_text(format_build_module(commit), "utf-8")


def list_tracked_files() -> list[str]:
    """Return the files that git knows and that are there, without links."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise refuse(f"git does not list the files: {listed.stderr.strip()}")
    names = [name for name in listed.stdout.split("\0") if name]
    return [name for name in names if Path(name).is_file() and not Path(name).is_symlink()]


setup(
    cmdclass={
        "build_ext": BuildExtensions,
        "build_py": BuildModules,
        "install_data": InstallData,
        "sdist": CompleteSdist,
    },
    ext_modules=list_extensions(),
)

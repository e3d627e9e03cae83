"""The extension modules; everything else is in pyproject.toml."""

import subprocess
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

OPENSSL_PROBE = """
#include <openssl/ssl.h>
#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "too old"
#endif
int main(void) { return SSL_CTX_new(TLS_method()) == NULL; }
"""


class BuildExtensions(build_ext):
    """Builds the extension modules once OpenSSL was found."""

    def build_extensions(self) -> None:
        """Look for OpenSSL first: without it the compiler's own messages fill a screen."""
        with tempfile.TemporaryDirectory() as folder:
            command = [*self.compiler.compiler, "-x", "c", "-", "-o", f"{folder}/probe", "-lssl", "-lcrypto"]
            probe = subprocess.run(command, input=OPENSSL_PROBE, text=True, capture_output=True, check=False)
        if probe.returncode:
            raise SystemExit(
                "dicom-ingest: openssl/ssl.h or libssl (3.0 or newer) is missing; apt-get install libssl-dev"
            )
        super().build_extensions()


DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": False,
}

setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=cythonize(
        [
            Extension(
                f"ingest.ext.{name}",
                [f"ext/{name}.pyx"],
                extra_compile_args=["-O3", "-Wall", "-Wno-unused-function"],
                libraries=["ssl", "crypto"] if name.startswith("tls_") else [],
            )
            for name in sorted(path.stem for path in Path("ext").glob("*.pyx"))
        ],
        compiler_directives=DIRECTIVES,
    ),
)

"""The extension modules; everything else is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

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
    ext_modules=cythonize(
        [
            Extension(
                f"ingest.ext.{name}",
                [f"ext/{name}.pyx"],
                extra_compile_args=["-O3", "-Wall", "-Wno-unused-function"],
            )
            for name in sorted(path.stem for path in Path("ext").glob("*.pyx"))
        ],
        compiler_directives=DIRECTIVES,
    )
)

# Targets of README and docs/; paths are relative, so that a folder with a space in its name works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONDONTWRITEBYTECODE :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: all setup demo run man docs dist test test-failed test-fast test-long test-install coverage test-pythons bench bench-scale \
  screenshots licences lint lock release clean
all: setup

setup: $(VENV)/stamp

$(VENV)/packages: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dicom-ingest needs Python 3.11 or newer; set PYTHON=python3.11")'
	@echo "Installing $$(grep -c '^[a-zA-Z].*==' requirements.lock) pinned packages into $(VENV); pip prints nothing for one or two minutes …"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	touch $@

$(VENV)/stamp: $(VENV)/packages pyproject.toml setup.py $(wildcard ext/*.pyx ext/*.pxd)
	@echo "Compiling the extensions: first to C, then with the C compiler …"
	$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/ingest demo

run: setup
	test -e config/pki/node.key || $(BIN)/ingest certs new config/pki/node --name localhost --trust config/pki/trusted.crt
	$(BIN)/ingest serve --config config/ingest.toml

# Manual pages of all commands, in build/man; `man -l build/man/ingest-retry.1` shows one.
man: setup
	$(BIN)/python -m ingest.cli._man_pages build/man

# The documentation site, in build/site; open build/site/index.html. Every warning is an error. Needs npm, for the
# scripts that the site carries with it. With --quiet MkDocs would not count its warnings.
docs: setup
	npm ci --prefix config/docs --ignore-scripts --no-audit --no-fund
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file config/docs/mkdocs.yml

# The sdist, and the wheel for this Python with the tag of the systems that it runs on. The OpenSSL of the system is
# left out of the wheel, so that its security updates reach the node. No other library has to be put into it, so
# auditwheel patches nothing. constraints.txt has the versions of all dependencies that the tests ran with. Folders in
# DIST are no part of the release.
DIST ?= dist
dist: setup
	rm -rf build/wheel
	mkdir -p "$(DIST)" build
	@echo "Building sdist and wheel; build/dist.log has the details …"
	rm -f "$(DIST)"/dicom_ingest-* "$(DIST)"/dicom-ingest_*.deb "$(DIST)/constraints.txt" "$(DIST)"/SHA256SUMS*
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || date +%s) \
	  $(BIN)/python -m build --outdir build/wheel . >build/dist.log 2>&1 || { tail -n 60 build/dist.log; exit 1; }
	$(BIN)/auditwheel repair --patcher none --exclude libssl.so.3 --exclude libcrypto.so.3 --wheel-dir "$(DIST)" \
	  build/wheel/*.whl
	cp build/wheel/*.tar.gz "$(DIST)"
	sed -n 's/^\([^ #][^ ]*==.*\) \\$$/\1/p' config/container/runtime.lock >"$(DIST)/constraints.txt"
	cd "$(DIST)" && find . -maxdepth 1 -type f ! -name 'SHA256SUMS*' -printf '%P\0' | sort -z | xargs -0 sha256sum -- >SHA256SUMS && \
	   cat SHA256SUMS

# The Debian package for the release that this runs on, with Debian's own Python; docs/how-to/install-debian.md.
.PHONY: deb
deb:
	/usr/bin/python3 config/debian/build.py

# Tests wait about half of their time: three workers keep two cores busy. More make tests with deadlines fail.
TEST_WORKERS ?= 3
LONG ?=
COVERED ?=

test: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not long and not install"

# The tests that failed in the last run of `make test`, one after another: a deadline may pass on a busy machine.
test-failed: setup
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m "not long and not install"

# What is built, as users install it: the wheel in a fresh virtual environment, packages in chroots (as root, with
# debootstrap). INGEST_DIST=dist takes what `make dist` has built, INGEST_DEB a package of `make deb`; INSTALL names
# tests or folders. DEBIAN=trixie builds and installs the package on another release.
INSTALL ?= tests/install
test-install: setup
	$(BIN)/python -m pytest -m install $(INSTALL)

# Only tests that start no process: no servers, no nodes, no programs.
test-fast: setup
	$(BIN)/python -m pytest -q -rfE -n 2 --dist worksteal --fast -m "not long and not slow" tests/unit tests/fuzz

# What only repeats, and each property with ten times the examples. LONG=--share-of-today runs the share that the
# date chooses, as CI does with NIGHTLY=true.
test-long: setup
	EXAMPLES_FACTOR=10 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "(long or hypothesis) and not install" $(LONG)

# The unit tests and the demo with the Python and OpenSSL of other Debian suites; needs root and debootstrap. Testing
# changes from day to day, and CI itself runs on Debian 12, so CI runs trixie only. PYTHONS_TESTS names tests; with
# `--fast tests/unit` those that start no process.
PYTHONS ?= bookworm trixie testing
PYTHONS_TESTS ?= tests/unit
test-pythons:
	set -e; for suite in $(PYTHONS); do \
	  tests/pythons.sh $$suite -q -n $(TEST_WORKERS) --dist worksteal -m "not long and not install" $(PYTHONS_TESTS); done

# Lines and branches of ingest that `make test` runs, in pytest and in every node that a test starts.
# Apart from `make test`, because measuring costs 40% more CPU time. COVERED names tests or folders.
coverage: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest -q -p pytest_cov -n $(TEST_WORKERS) --dist worksteal -m "not long and not install" --cov $(COVERED)

bench: setup
	$(BIN)/python -m benchmarks

# Ten million instances: lists, pages and recording. Needs 30 GB and half an hour; SCALE="--url URL" for PostgreSQL.
SCALE ?=
bench-scale: setup
	$(BIN)/python -m benchmarks scale $(SCALE)

# The pictures of docs/images/console: a real node, real senders, Debian's Chromium.
screenshots: setup
	$(BIN)/python -m tests.support.screenshots docs/images/console

# The licences of all dependencies, as pip-licenses finds them in the virtual environment.
licences: setup
	$(BIN)/python -m tests.support.licences docs/reference/licences.md

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint ext

# Check and build a release; nothing is changed. TAG=yes signs the hashes of what was built, and tags the commit. Nothing
# is pushed.
TAG ?=
release: setup
	$(BIN)/python .ci/release.py $(if $(filter yes,$(TAG)),--tag)

lock:
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-header \
	  pyproject.toml --all-extras --group dev --output-file requirements.lock
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-header --no-annotate \
	  pyproject.toml --all-extras --constraint requirements.lock --output-file config/container/runtime.lock

clean:
	rm -rf $(VENV) build dist *.egg-info ext/*.c ext/*.so

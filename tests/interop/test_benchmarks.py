"""The benchmarks as their users run them, with real receivers, for a few seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import instructions
from benchmarks.peers import find_program
from benchmarks.receivers import Unavailable, make_pki
from benchmarks.suite import RECEIVERS
from tests.support.peers import require_program

ROOT = Path(__file__).parents[2]
SECONDS = 120
SMALL = ("--size", "64K", "--instances", "20", "--associations", "2")


def benchmarks(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
        # pytest-benchmark times nothing in a worker of pytest-xdist, and takes this program for one.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def ran(results: Path, receiver: str) -> list[dict[str, float]]:
    """The samples of one receiver in the only work."""
    (work,) = json.loads(results.read_text())["works"]
    assert not work["broken"]
    samples: list[dict[str, float]] = work["entrants"][receiver]["samples"]
    return samples


def test_ours_and_the_floor_take_turns(tmp_path):
    require_program("cc")
    results = tmp_path / "results.json"
    said = benchmarks("compare", "ours", "floor", *SMALL, "--pairs", "2", "--json", results)
    assert "128 KB" in said
    for receiver in ("ours", "floor"):
        samples = ran(results, receiver)
        assert [sample["instances"] for sample in samples] == [40, 40]
        assert all(sample["missing"] == sample["failed"] == 0 < sample["cpu_ms"] for sample in samples)


def test_with_fsync_each_run_has_a_new_folder(tmp_path):
    require_program("cc")
    results, disk = tmp_path / "results.json", tmp_path / "disk"
    disk.mkdir()
    arguments = ("--durability", "fsync", "--pairs", "1", "--disk", disk, "--json", results)
    benchmarks("compare", "floor", *SMALL, *arguments)
    assert len(ran(results, "floor")) == 1
    assert os.listdir(disk) == []


@pytest.mark.parametrize("receiver", ["dcmtk", "dcmtk-nodelay", "pynetdicom", "orthanc-nodelay"])
def test_peers_store_what_they_acknowledge(tmp_path, receiver):
    if receiver != "pynetdicom":
        require_program("Orthanc" if receiver.startswith("orthanc") else "storescp")
    said = benchmarks("load", "--receiver", receiver, "--instances", "5", "--size", "8K")
    assert "0000H: 20" in said


def test_peers_are_cleared_between_runs(tmp_path):
    require_program("Orthanc")
    require_program("storescu")
    results = tmp_path / "results.json"
    benchmarks("compare", "orthanc-nodelay", "dcmtk-nodelay", *SMALL, "--pairs", "2", "--json", results)
    for receiver in ("orthanc-nodelay", "dcmtk-nodelay"):
        assert all(sample["missing"] == 0 for sample in ran(results, receiver))


def test_load_goes_to_any_receiver_by_its_address(tmp_path):
    require_program("cc")
    keys = make_pki(tmp_path / "pki")
    with RECEIVERS["floor"](tmp_path / "floor", keys, durability="page-cache") as floor:
        said = benchmarks(
            "load",
            f"127.0.0.1:{floor.target.port}",
            *("--certificate", keys.load_certificate, "--key", keys.load_key, "--trusted", keys.trusted),
            *SMALL,
        )
        assert "0000H: 40" in said
        assert floor.stored() == 40


def test_a_receiver_that_does_not_answer_is_said_in_one_line():
    said = benchmarks("load", "127.0.0.1:1", *SMALL, code=1)
    assert "Error" in said
    assert "Traceback" not in said


def test_what_is_not_installed_is_said(tmp_path):
    with (
        pytest.raises(Unavailable, match="no such storescp"),
        RECEIVERS["dcm4che"](tmp_path, make_pki(tmp_path), durability="fsync"),
    ):
        pytest.fail("it runs")


def test_dcmtk_and_dcm4che_are_told_apart(tmp_path, monkeypatch):
    for name, script in (("java", "MAIN_CLASS=org.dcm4che3.tool.storescp.StoreSCP"), ("c", "exit 0")):
        program = tmp_path / name / "storescp"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'java'}:{tmp_path / 'c'}")
    assert find_program("storescp") == str(tmp_path / "java" / "storescp")
    assert find_program("storescp", lambda path: b"dcm4che" not in path.read_bytes()).endswith("c/storescp")


def test_the_same_stream_takes_the_same_instructions():
    require_program("valgrind")
    first, again = (instructions.count(0) for _ in range(2))
    assert first.total > 0
    assert first == again


def test_every_piece_of_ext_is_timed():
    said = benchmarks("micro", "--benchmark-max-time", "0.01", "--benchmark-min-rounds", "1")
    assert "9 passed" in said


def test_senders_take_turns(tmp_path):
    require_program("cc")
    require_program("storescu")
    results = tmp_path / "results.json"
    benchmarks("send", "--size", "512K", "--files", "20", "--pairs", "1", "--json", results)
    for sender in ("ours", "storescu"):
        assert [sample["instances"] for sample in ran(results, sender)] == [19]
    assert [sample["missing"] for sample in ran(results, "pynetdicom")] == [0]


def test_transit_is_measured_from_node_to_floor(tmp_path):
    require_program("cc")
    results = tmp_path / "results.json"
    benchmarks("forward", "--transit", "--seconds", "2", "--json", results)
    (sample,) = ran(results, "ours")
    assert sample["missing"] == sample["failed"] == 0 < sample["p50_ms"] <= sample["p99_ms"]


@pytest.mark.long
def test_forwarders_take_turns(tmp_path):
    require_program("Orthanc")
    results = tmp_path / "results.json"
    benchmarks("forward", "--size", "8K", "--seconds", "1", "--pairs", "1", "--json", results)
    for forwarder in ("ours", "ours-one-by-one", "orthanc-nodelay", "pynetdicom"):
        assert [sample["missing"] for sample in ran(results, forwarder)] == [0]


def test_browsers_beside_a_load(tmp_path):
    said = benchmarks("browsers", "--browsers", "12", "--rounds", "1", *SMALL, "--memory", tmp_path)
    assert "12 browsers, 1 rounds" in said
    assert all(measure in said for measure in ("listener_ms", "p99_ms", "console_share"))

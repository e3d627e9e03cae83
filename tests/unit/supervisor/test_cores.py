"""How many cores a node plans for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.config.model import Config, ReceiveSettings
from ingest.cores import usable_cores
from ingest.supervisor.generation import plan_worker_slots


def groups(folder: Path, line: str, **files: str) -> tuple[Path, Path]:
    """A tree of control groups with the given files, and the membership file of a process."""
    for name, text in files.items():
        path = folder / "cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    membership = folder / "membership"
    membership.write_text(line)
    return folder / "cgroup", membership


@pytest.mark.parametrize(
    ("line", "files", "quota"),
    [
        ("0::/node\n", {"node__cpu_dot_max": "150000 100000\n"}, 2),
        (
            "0::/slice/node\n",
            {"slice__cpu_dot_max": "50000 100000\n", "slice__node__cpu_dot_max": "max 100000\n"},
            1,
        ),
        ("0::/elsewhere/on/the/host\n", {"cpu_dot_max": "100000 100000\n"}, 1),
        (
            "3:cpu,cpuacct:/node\n",
            {"cpu__node__cpu_dot_cfs_quota_us": "100000\n", "cpu__node__cpu_dot_cfs_period_us": "100000\n"},
            1,
        ),
        (
            "3:cpu,cpuacct:/node\n",
            {"cpu__node__cpu_dot_cfs_quota_us": "-1\n", "cpu__node__cpu_dot_cfs_period_us": "100000\n"},
            None,
        ),
        ("0::/node\n", {"node__cpu_dot_max": "max 100000\n"}, None),
        ("0::/node\n", {"node__cpu_dot_max": "rubbish\n"}, None),
        ("0::/node\n", {}, None),
    ],
)
def test_a_quota_of_any_group_above_binds(
    tmp_path: Path, line: str, files: dict[str, str], quota: int | None
) -> None:
    allowed = len(os.sched_getaffinity(0))
    expected = allowed if quota is None else min(allowed, quota)
    assert usable_cores(*groups(tmp_path, line, **files)) == expected


def test_without_control_groups_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "missing") == len(os.sched_getaffinity(0))


def test_a_process_bound_to_one_core_plans_for_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from ingest.cores import usable_cores; print(usable_cores())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


def test_a_node_has_a_listener_for_each_usable_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.supervisor.generation.usable_cores", lambda: 3)
    listen = frozenset({"listen"})
    assert len(plan_worker_slots(Config(), listen)) == 3
    assert len(plan_worker_slots(Config(receive=ReceiveSettings(processes=5)), listen)) == 5

"""How many cores a node plans for."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.config.model import Config, ReceiveSettings
from ingest.cores import Cores, plan_listeners, read_cores
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
        # Docker on version 2, in the namespace of the host: systemd's groups above have a quota too.
        (
            "0::/system.slice/docker-3f2a.scope\n",
            {
                "system_dot_slice__cpu_dot_max": "200000 100000\n",
                "system_dot_slice__docker-3f2a_dot_scope__cpu_dot_max": "50000 100000\n",
            },
            1,
        ),
        # A pod of Kubernetes on version 2: only the group of the container is mounted.
        ("0::/\n", {"cpu_dot_max": "150000 100000\n", "cpu_dot_weight": "39\n"}, 2),
        # A process that joined a container from outside sees a path above its root.
        ("0::/../other\n", {"cpu_dot_max": "100000 100000\n"}, 1),
        # Version 1 on a host that links no "cpu": the mount has the names of both controllers.
        (
            "4:cpu,cpuacct:/kubepods/burstable/pod1/c1\n1:name=systemd:/\n",
            {
                "cpu,cpuacct__kubepods__burstable__pod1__cpu_dot_cfs_quota_us": "100000\n",
                "cpu,cpuacct__kubepods__burstable__pod1__cpu_dot_cfs_period_us": "100000\n",
                "cpu,cpuacct__kubepods__burstable__pod1__c1__cpu_dot_cfs_quota_us": "-1\n",
                "cpu,cpuacct__kubepods__burstable__pod1__c1__cpu_dot_cfs_period_us": "100000\n",
            },
            1,
        ),
        # Both versions at once: the controller is with version 1.
        (
            "2:cpu:/\n0::/node\n",
            {"cpu__cpu_dot_cfs_quota_us": "50000\n", "cpu__cpu_dot_cfs_period_us": "100000\n"},
            1,
        ),
    ],
)
def test_a_quota_of_any_group_above_binds(
    tmp_path: Path, line: str, files: dict[str, str], quota: int | None
) -> None:
    allowed = len(os.sched_getaffinity(0))
    expected = allowed if quota is None else min(allowed, quota)
    assert read_cores(None, *groups(tmp_path, line, **files)).usable == expected


def test_without_control_groups_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert read_cores(None, tmp_path, tmp_path / "missing") == Cores(len(os.sched_getaffinity(0)), None)


def test_a_process_bound_to_one_core_plans_for_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from ingest.cores import usable_cores; print(usable_cores())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


def test_a_node_has_a_listener_for_each_usable_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.cores.usable_cores", lambda: 3)
    listen = frozenset({"listen"})
    assert len(plan_worker_slots(Config(), listen)) == 3
    assert len(plan_worker_slots(Config(receive=ReceiveSettings(processes=5)), listen)) == 5


def test_a_large_machine_gets_no_more_listeners_than_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.cores.usable_cores", lambda: 192)
    assert (plan_listeners(0), plan_listeners(100)) == (32, 100)


def test_a_quota_is_rounded_up_to_whole_cores() -> None:
    assert [Cores(8, quota).usable for quota in (0.01, 1.0, 1.5, 7.01, 100.0, None)] == [1, 1, 2, 8, 8, 8]


def test_the_quota_of_a_real_group_above_binds() -> None:
    # Given a group with a quota of 30% of a core, and a group without one below it
    here = _find_own_group("cpu")
    if os.getuid() != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("control groups need root")
    if here is None:
        # In CI too: the kernel of a machine decides this, and no package.
        pytest.skip("the group of this test is one of version 1; this machine mounts none for cpu")
    outer = here / f"dicom-ingest-test-{os.getpid()}"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    try:
        (outer / "cpu.cfs_period_us").write_text("50000")
        (outer / "cpu.cfs_quota_us").write_text("15000")
        # When a process of the lower group asks for itself, and this one asks for it
        code = (
            "import json, sys; from ingest.cores import read_cores\n"
            "cores = read_cores(); print(json.dumps([cores.usable, cores.quota]), flush=True)\n"
            "sys.stdin.read()"
        )
        command = ["sh", "-c", f'echo $$ >{inner}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            answer = json.loads(process.stdout.readline())
            seen = read_cores(process.pid)
            process.communicate()
        # Then the upper quota counts
        assert answer == [1, 0.3]
        assert (seen.usable, seen.quota) == (1, 0.3)
        assert read_cores().quota != 0.3
    finally:
        for folder in (inner, outer):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def _find_own_group(controller: str) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = Path("/sys/fs/cgroup") / controller / path.lstrip("/")
            # In a chroot nothing may be mounted there.
            return folder if (folder / "cgroup.procs").exists() else None
    return None

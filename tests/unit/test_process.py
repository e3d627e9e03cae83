"""Properties of a process that the node sets for itself."""

import resource
import subprocess
import sys

import pytest

SET_LIMIT = """
import resource
from ingest.process import disable_core_dumps
disable_core_dumps()
print(*resource.getrlimit(resource.RLIMIT_CORE))
"""


@pytest.mark.parametrize(("limit", "expected"), [("0", "0 0"), ("1", "1 1")])
def test_core_dumps_are_off_whatever_the_limit_was_before(limit: str, expected: str) -> None:
    # A shell counts blocks, so its 1 is more than one byte.
    command = f'ulimit -c {limit} && exec "$0" -c "$1"'
    hard_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if limit == "1" and 0 <= hard_limit < 1024:
        # It was lowered for this process, by another test or by the system.
        command, expected = 'exec "$0" -c "$1"', f"{min(hard_limit, 1)} {min(hard_limit, 1)}"
    done = subprocess.run(["sh", "-c", command, sys.executable, SET_LIMIT], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")

"""How the benchmark gives a process a share of a core."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.bench.quota import quota

LEGACY = Path("/sys/fs/cgroup/cpu")
CGROUPS = LEGACY if LEGACY.is_dir() else Path("/sys/fs/cgroup")


def may_limit() -> bool:
    shared = CGROUPS / "cgroup.subtree_control"
    return os.access(CGROUPS, os.W_OK) and (
        LEGACY.is_dir() or (shared.exists() and "cpu" in shared.read_text().split())
    )


@pytest.mark.skipif(not may_limit(), reason="this user, or this machine, cannot limit processes")
def test_a_share_of_a_core_is_given_and_taken_back() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        home = Path(f"/proc/{process.pid}/cgroup")
        before = home.read_text()
        with quota(process.pid, 0.25):
            group = CGROUPS / f"headrace-bench-{process.pid}"
            limit = group / "cpu.cfs_quota_us"
            assert (limit.read_text() if limit.exists() else (group / "cpu.max").read_text()).startswith("2500")
            assert str(process.pid) in (group / "cgroup.procs").read_text().split()
        assert home.read_text() == before
        assert not group.exists()

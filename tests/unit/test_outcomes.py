"""How the benchmark tells what came of every event in trouble, and how it gives a process a share of a core."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from loadtest.bench.quota import quota
from loadtest.outcomes import OneBroken, Tally, tally

LEGACY = Path("/sys/fs/cgroup/cpu")
CGROUPS = LEGACY if LEGACY.is_dir() else Path("/sys/fs/cgroup")


def test_an_event_without_an_outcome_is_lost_where_the_group_has_passed_it_and_waits_where_not() -> None:
    # Two partitions: events 0, 2, 4, 6 and 1, 3, 5, 7. The group goes on at offsets 3 and 1.
    results = Counter({0: 1, 1: 3, 4: 1})
    found = tally(8, results, {2}, [3, 1], 1)
    assert found == Tally(events=8, results=3, doubled=2, letters=1, lost=0, waiting=4, ended=1)
    assert tally(8, results, set(), [3, 1], 0).lost == 1
    assert tally(8, results, set(), [-1, -1], 0).lost == 0


def test_exactly_one_event_is_broken() -> None:
    def readable(value: bytes) -> bool:
        try:
            return bool(orjson.loads(value))
        except orjson.JSONDecodeError:
            return False

    values = OneBroken().values()
    assert [number for number, value in enumerate(values) if not readable(value)] == [len(values) // 2]


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

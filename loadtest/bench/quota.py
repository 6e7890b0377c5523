"""A share of a core for a process, so that several have cores to themselves where a machine has too few; for root."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import HeadraceError

_CONTROLLER = Path("/sys/fs/cgroup/cpu")  # version 1
_UNIFIED = Path("/sys/fs/cgroup")  # version 2
_PERIOD_US = 10_000


@contextlib.contextmanager
def quota(pid: int, cores: float) -> Iterator[None]:
    """While this lasts, the process gets no more than so many cores.

    Raises:
        HeadraceError: this user, or this machine, cannot limit processes.
    """
    legacy = _CONTROLLER.is_dir()
    root = _CONTROLLER if legacy else _UNIFIED
    group = root / f"headrace-bench-{pid}"
    before = root
    try:
        try:
            before = root / _group(pid, "cpu" if legacy else "")
            group.mkdir()
            if legacy:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(int(cores * _PERIOD_US)))
            else:
                (group / "cpu.max").write_text(f"{int(cores * _PERIOD_US)} {_PERIOD_US}")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise HeadraceError(f"{group}: cannot limit the CPU of a process here: {error.strerror}") from None
        yield
    finally:
        with contextlib.suppress(OSError):  # it may have ended, or the group never begun
            ((before if before.is_dir() else root) / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(OSError):
            group.rmdir()


def _group(pid: int, controller: str) -> str:
    """Where the process is now, below the root of its controller."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""

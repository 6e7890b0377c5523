"""A short schedule of random faults under load; `make faults` runs long ones."""

from pathlib import Path

from headrace.rig.triton import TritonRig
from tests.faults.soak import Report, soak


def test_a_schedule_of_faults_from_a_seed(triton: TritonRig, tmp_path: Path, seed: int) -> None:
    report = soak(Report(seed, "exactly_once", 0.4, 500, 3, 9), tmp_path, triton, killable=False)
    assert report.violations == [], report.table()
    assert sum(report.faults.values()) > 0
    assert (report.lost, report.repeats, report.disordered) == (0, 0, 0)
    assert report.results + report.letters >= report.events > 0.4 * 60 * 500 / 2  # some: a busy machine writes fewer

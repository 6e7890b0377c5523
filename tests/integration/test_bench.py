"""`headrace bench`, as a user runs it."""

import json
from pathlib import Path

from tests.support import headrace


def test_a_backlog_is_measured_beside_a_copy(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = headrace("bench", "--events", "100000", "--rounds", "1", "--json", "--out", str(out), timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    rows = {row["case"]: row for row in found["backlog"]}
    assert list(rows) == ["copy, json", "headrace, json", "copy, raw", "headrace, raw"]
    for row in rows.values():
        (figures,) = row["rounds"]
        assert figures["events_per_second"] > 0
        assert set(figures["cpu_us"]) == {"subject", "model", "kafka"}
        assert figures["cpu_us"]["subject"] > 0
    assert rows["headrace, json"]["rounds"][0]["cpu_us"]["model"] > 0
    assert "<svg" in out.with_suffix(".html").read_text()


def test_what_is_not_there_is_named_with_what_is() -> None:
    done = headrace("bench", "backlok")
    assert done.returncode == 2
    assert "'backlok' is no scenario; there are backlog, rates," in " ".join(done.stderr.replace("│", " ").split())
    done = headrace("bench", "--peer", "nobody")
    assert done.returncode == 2
    assert "'nobody' is no peer; there are bytewax," in " ".join(done.stderr.replace("│", " ").split())

"""The alerts: by promtool, each fires when it should and is silent again afterwards; and they name what exists."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

from bridge.observe.telemetry import STAGES, Telemetry
from tests.deploy.test_chart import CHART, PIPELINE, one, render
from tests.deploy.tools import needs

RUNBOOK = CHART.parents[2] / "docs" / "runbook.md"
WATCHER = CHART.parents[2] / "headrace" / "watching.py"


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    with Chart.load(CHART) as chart:
        objects = render(chart, {"pipeline": PIPELINE, "monitoring": {"prometheusRule": True}})
    return one(objects, "PrometheusRule")["spec"]


def bridge(name: str, values: str, **labels: str) -> dict[str, str]:
    """A series of one bridge, in promtool's notation: "0+10x5" begins with 0 and adds 10, five times."""
    own = {"pipeline": "fraud", "namespace": "scoring", "pod": "x-headrace-bridge-1", **labels}
    return {
        "series": f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in own.items())}}}",
        "values": values,
    }


def _buckets(slow: bool) -> list[dict[str, str]]:
    """A hundred events a minute, of which none, or all for a quarter of an hour, take 5 s."""
    fast = "0+100x20 2000+0x20 2000+100x60" if slow else "0+100x100"
    return [
        bridge("headrace_end_to_end_seconds_bucket", fast, le="0.5"),
        bridge("headrace_end_to_end_seconds_bucket", "0+100x100", le="5.0"),
        bridge("headrace_end_to_end_seconds_bucket", "0+100x100", le="+Inf"),
    ]


# alert -> series at one sample a minute; minute at which it fires; minute by which it has resolved.
CASES: dict[str, tuple[list[dict[str, str]], int, int]] = {
    "EndToEndSlow": (_buckets(slow=True), 35, 60),
    "Stalled": (
        [
            bridge("headrace_last_progress_timestamp_seconds", "0+60x5 300+0x10 960+60x30"),
            bridge("headrace_consumer_lag_records", "100x60", topic="pages", partition="0"),
        ],
        12,
        25,
    ),
    "PartitionHalted": ([bridge("headrace_halted_partitions", "0x5 1x10 0x20")], 10, 25),
    "DeadLetters": ([bridge("headrace_dead_letters_total", "0x5 0+60x10 600x30", reason="decode")], 12, 30),
    "BackendErrors": (
        [bridge("headrace_inference_seconds_count", "0x5 0+60x10 600x30", code="UNAVAILABLE", model="m", version="1")],
        12,
        30,
    ),
    "LagGrowing": (
        [
            bridge("headrace_consumer_lag_records", "0x5 100000x20 0x30", topic="pages", partition="0"),
            bridge("headrace_records_total", "0+6000x60", stage="sink", outcome="result"),
        ],
        15,
        40,
    ),
    "RebalanceStorm": ([bridge("headrace_rebalances_total", "0x5 0+2x5 10x40")], 10, 40),
    "ModelVersionMismatch": (
        [
            bridge("headrace_inference_seconds_count", "0+60x90", code="OK", model="m", version="1"),
            bridge("headrace_inference_seconds_count", "0x5 0+60x30 1800x60", code="OK", model="m", version="2"),
        ],
        30,
        60,
    ),
    "OffsetOutOfRange": (
        [bridge("headrace_records_total", "0x5 7x120", stage="source", outcome="out_of_range")],
        10,
        100,
    ),
    "ConsumerRebuilt": ([bridge("headrace_consumer_rebuilds_total", "0x5 1x120")], 10, 100),
    "Down": ([bridge("up", "1x5 0x10 1x30"), bridge("headrace_build_info", "1x60", version="0.1.0")], 12, 25),
}


def test_that_there_is_no_bridge_at_all_is_told(rules: dict[str, Any], tmp_path: Path) -> None:
    """Pods that cannot be pulled or placed have no series to alarm by."""
    assert fires(
        "Down", [bridge("headrace_build_info", "1x5", version="0.1.0")], [("4m", 0), ("20m", 1)], rules, tmp_path
    )


def test_every_alert_has_a_case(rules: dict[str, Any]) -> None:
    assert [rule["alert"] for group in rules["groups"] for rule in group["rules"]] == list(CASES)


def fires(
    alert: str, series: list[dict[str, str]], at: list[tuple[str, int]], rules: dict[str, Any], folder: Path
) -> bool:
    """Whether so many of an alert fire at these times; promtool says what is otherwise."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    questions = [
        {
            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
            "eval_time": time,
            "exp_samples": [{"labels": "{}", "value": value}],
        }
        for time, value in at
    ]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": questions}
    test = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    command = [needs("promtool"), "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


@pytest.mark.parametrize("alert", CASES)
def test_it_fires_and_resolves(alert: str, rules: dict[str, Any], tmp_path: Path) -> None:
    series, when, resolved = CASES[alert]
    assert fires(alert, series, [("1m", 0), (f"{when}m", 1), (f"{resolved}m", 0)], rules, tmp_path)


def test_promtool_finds_nothing_wrong(rules: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    done = subprocess.run(
        [needs("promtool"), "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def known_metrics() -> set[str]:
    """Every name of ours that can stand in an expression."""
    suffixes = ("", "_total", "_bucket", "_count", "_sum")
    families = [family.name for family in Telemetry("pipeline").registry.collect()]
    watcher = re.findall(r'"(headrace_[a-z_]+)"', WATCHER.read_text())
    return {name + suffix for name in (*families, *watcher) for suffix in suffixes}


def expressions(text: str) -> set[str]:
    """The metric names of our own in an expression."""
    return set(re.findall(r"\bheadrace_[a-z_]+", text))


def test_alerts_name_metrics_and_labels_that_exist(rules: dict[str, Any]) -> None:
    known = known_metrics()
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert expressions(rule["expr"]) <= known, rule["alert"]
            for stage in re.findall(r'stage="([^"]+)"', rule["expr"]):
                assert stage in STAGES
            for outcome in re.findall(r'outcome!?="([^"]+)"', rule["expr"]):
                assert any(outcome in outcomes for outcomes in STAGES.values())


def test_every_alert_is_in_the_runbook(rules: dict[str, Any]) -> None:
    headings = {line[3:].strip() for line in RUNBOOK.read_text().splitlines() if line.startswith("## ")}
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["alert"] in headings
            assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
            assert rule["annotations"]["summary"].startswith("fraud: ")


def test_dashboards_name_metrics_that_exist() -> None:
    known = known_metrics()
    dashboards = list((CHART / "files" / "dashboards").glob("*.json"))
    assert dashboards
    for path in dashboards:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                names = expressions(target["expr"])
                assert names <= known, (path.name, panel["title"])


def test_promtool_understands_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    promtool = needs("promtool")
    rules = []
    for path in (CHART / "files" / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                text = (
                    target["expr"]
                    .replace("$__rate_interval", "5m")
                    .replace("$pipeline", "fraud")
                    .replace("$namespace", "scoring")
                )
                rules.append({"record": f"panel:{len(rules)}", "expr": text})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=none", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

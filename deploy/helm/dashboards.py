"""The Grafana dashboards of the chart, written as JSON by `make docs`.

One overview that is understood in ten seconds: does it flow, how late is it, which version answers, what got no result.
Below that, why.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "headrace" / "files" / "dashboards"
_OF = 'namespace="$namespace",pipeline="$pipeline"'
_RATE = "[$__rate_interval]"
_DONE = f'rate(headrace_records_total{{{_OF},stage="sink",outcome!="alert"}}{_RATE})'
_GREEN, _ORANGE, _RED = "green", "orange", "red"

Target = tuple[str, str]
"""An expression, and what its series are called."""


def overview() -> dict[str, Any]:
    """The dashboard."""
    rows: list[list[dict[str, Any]]] = [
        [
            _stat("Events finished", "events with a result or a dead letter", f"sum({_DONE})", "cps", []),
            _stat("Lag", "time until a new event has its turn", _lag_seconds(), "s", [(_ORANGE, 10), (_RED, 60)]),
            _stat("p99 latency", "from the event's timestamp to its result", _quantile(0.99), "s", [(_ORANGE, 0.5), (_RED, 2)]),
            _stat("Dead letters", "events without a result", f"sum(rate(headrace_dead_letters_total{{{_OF}}}{_RATE}))", "cps", [(_RED, 0.001)]),
            _stat("Model versions answering", "two for a moment while one takes over", f'count(sum by (version) (rate(headrace_inference_seconds_count{{{_OF},code="OK"}}{_RATE})) > 0)', "none", [(_ORANGE, 2)]),
            _stat("Bridges", "that are up", f"count(headrace_build_info{{{_OF}}})", "none", []),
        ],
        [
            _plot("Flow", "cps", [(f'sum by (outcome) (rate(headrace_records_total{{{_OF},stage="sink"}}{_RATE}))', "{{outcome}}"), (f'sum(rate(headrace_records_total{{{_OF},stage="source",outcome="consumed"}}{_RATE}))', "consumed")]),
            _plot("Lag", "short", [(f"sum by (topic) (headrace_consumer_lag_records{{{_OF}}})", "{{topic}}")]),
            _plot("Latency, topic to topic", "s", [(_quantile(q), f"p{q * 100:g}") for q in (0.5, 0.99, 0.999)]),
        ],
        [
            _plot("Events by model version", "cps", [(f'sum by (version) (rate(headrace_inference_seconds_count{{{_OF},code="OK"}}{_RATE})) / ignoring (version) group_left sum(rate(headrace_inference_seconds_count{{{_OF},code="OK"}}{_RATE})) * ignoring (version) group_left sum({_DONE})', "version {{version}}")], stacked=True),
            _plot("Dead letters", "cps", [(f"sum by (reason) (rate(headrace_dead_letters_total{{{_OF}}}{_RATE}))", "{{reason}}")], stacked=True),
            _plot("Failed calls to the model", "cps", [(f'sum by (code) (rate(headrace_inference_seconds_count{{{_OF},code!="OK"}}{_RATE}))', "{{code}}")], stacked=True),
        ],
        [
            _plot("A call to the model", "s", [(f'histogram_quantile({q}, sum by (le, version) (rate(headrace_inference_seconds_bucket{{{_OF},code="OK"}}{_RATE})))', f"p{q * 100:g} version {{{{version}}}}") for q in (0.5, 0.99)]),
            _plot("Events in a batch", "short", [(f"sum(rate(headrace_batch_records_sum{{{_OF}}}{_RATE})) / sum(rate(headrace_batch_records_count{{{_OF}}}{_RATE}))", "mean"), (f"histogram_quantile(0.99, sum by (le) (rate(headrace_batch_records_bucket{{{_OF}}}{_RATE})))", "p99")]),
            _plot("Batches in flight, partitions paused or halted", "short", [(f"sum(headrace_in_flight_batches{{{_OF}}})", "in flight"), (f"sum(headrace_paused_partitions{{{_OF}}})", "paused"), (f"sum(headrace_halted_partitions{{{_OF}}})", "halted")]),
        ],
        [
            _plot("A commit", "s", [(f"histogram_quantile({q}, sum by (le) (rate(headrace_commit_seconds_bucket{{{_OF}}}{_RATE})))", f"p{q * 100:g}") for q in (0.5, 0.99)]),
            _plot("Rebalances and retries", "short", [(f"sum(increase(headrace_rebalances_total{{{_OF}}}[5m]))", "rebalances in 5 min"), (f"sum by (cause) (rate(headrace_retries_total{{{_OF}}}{_RATE}))", "retries/s, {{cause}}")]),
            _plot("Event loop, late by", "s", [(f"max by (pod) (headrace_event_loop_lag_seconds{{{_OF}}})", "{{pod}}")]),
        ],
    ]  # fmt: skip
    return {
        "uid": "headrace-overview",
        "title": "Headrace: overview",
        "tags": ["headrace"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": _placed(rows),
    }


def _lag_seconds() -> str:
    return f"sum(headrace_consumer_lag_records{{{_OF}}}) / clamp_min(sum({_DONE}), 1)"


def _quantile(q: float) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate(headrace_end_to_end_seconds_bucket{{{_OF}}}{_RATE})))"


def _variables() -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    chosen = [
        ("namespace", "label_values(headrace_build_info, namespace)"),
        ("pipeline", 'label_values(headrace_build_info{namespace="$namespace"}, pipeline)'),
    ]
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        *(
            {"name": name, "type": "query", "datasource": source, "query": query, "refresh": 2, "sort": 1}
            for name, query in chosen
        ),
    ]


def _panel(title: str, kind: str, unit: str, targets: Sequence[Target]) -> dict[str, Any]:
    return {
        "title": title,
        "type": kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": name}
            for number, (expression, name) in enumerate(targets)
        ],
    }


def _stat(title: str, meaning: str, expression: str, unit: str, steps: Sequence[tuple[str, float]]) -> dict[str, Any]:
    panel = _panel(title, "stat", unit, [(expression, title)])
    colours = [{"color": _GREEN, "value": None}, *({"color": colour, "value": value} for colour, value in steps)]
    panel["description"] = meaning
    panel["fieldConfig"]["defaults"] |= {"thresholds": {"mode": "absolute", "steps": colours}, "decimals": 1}
    panel["options"] = {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return panel


def _plot(title: str, unit: str, targets: Sequence[Target], stacked: bool = False) -> dict[str, Any]:
    panel = _panel(title, "timeseries", unit, targets)
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if stacked else "none"}}
    panel["fieldConfig"]["defaults"] |= {"custom": custom, "min": 0}
    panel["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return panel


def _placed(rows: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """On Grafana's grid of 24 columns."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        height = 4 if row[0]["type"] == "stat" else 8
        width = 24 // len(row)
        for column, panel in enumerate(row):
            place = {"x": column * width, "y": top, "w": width, "h": height}
            panels.append({"id": len(panels) + 1, **panel, "gridPos": place})
        top += height
    return panels


def _text() -> str:
    return json.dumps(overview(), indent=1) + "\n"


PAGES = {FOLDER / "overview.json": _text}

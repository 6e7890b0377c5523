"""Draws the chart's Grafana dashboard from a real Prometheus, without Grafana: the same panels, the same expressions.

A Prometheus of its own scrapes bridges for as long as the context lasts; Debian's package brings the program.
"""

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bridge.errors import HeadraceError
from headrace.rig.process import ServerProcess, free_port
from loadtest.page import svg

DASHBOARD = Path(__file__).parents[1] / "deploy" / "helm" / "headrace" / "files" / "dashboards" / "overview.json"
_RATE = "30s"
_UNITS = {"s": ("ms", 1000.0), "cps": ("/s", 1.0), "short": ("", 1.0), "none": ("", 1.0)}


@contextmanager
def prometheus(targets: Sequence[str], labels: Mapping[str, str], home: Path) -> Iterator[str]:
    """A Prometheus that scrapes `targets` (host:port) every second and adds `labels`; yields its URL.

    Raises:
        HeadraceError: there is none on this machine.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise HeadraceError("prometheus is not installed here; make chart-tools brings it")
    port = free_port()
    scraped = [{"job_name": "headrace", "static_configs": [{"targets": list(targets), "labels": dict(labels)}]}]
    config = home / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": scraped}))
    address = f"127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={home / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    process = ServerProcess("Prometheus", command, home / "prometheus.log")
    try:
        process.wait_ready(lambda: _answers(f"http://{address}/-/ready"), 30)
        yield f"http://{address}"
    finally:
        process.stop()


def draw(url: str, begin: float, end: float, variables: Mapping[str, str]) -> str:
    """The dashboard between two times (seconds since 1970), as SVG.

    Args:
        url: of the Prometheus.
        begin: of what is shown.
        end: of it.
        variables: of the dashboard: namespace and pipeline.
    """
    from matplotlib.figure import Figure

    panels = json.loads(DASHBOARD.read_text())["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(15, 0.34 * bottom))
    for panel in panels:
        place = panel["gridPos"]
        height = (place["h"] - (1.0 if panel["type"] == "stat" else 2.2)) / bottom
        box = (place["x"] / 24 + 0.03, 1 - (place["y"] + 0.9) / bottom - height, place["w"] / 24 - 0.045, height)
        axis = figure.add_axes(box)
        series = [found for target in panel["targets"] for found in _series(url, target, begin, end, variables)]
        (_stat if panel["type"] == "stat" else _plot)(axis, panel, series)
    return svg(figure)


Series = tuple[str, Any, Any]
"""Name, seconds since the beginning, values."""


def _series(
    url: str, target: Mapping[str, str], begin: float, end: float, variables: Mapping[str, str]
) -> list[Series]:
    expression = target["expr"].replace("$__rate_interval", _RATE)
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    asked = urllib.parse.urlencode(
        {"query": expression, "start": begin, "end": end, "step": max(1, (end - begin) / 300)}
    )
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=30) as answer:  # noqa: S310 - our own
        results = json.load(answer)["data"]["result"]
    found = []
    for result in results:
        name = target["legendFormat"]
        for label, value in result["metric"].items():
            name = name.replace(f"{{{{{label}}}}}", value)
        at, values = np.array(result["values"], dtype=float).T
        found.append((name, at - begin, values))
    return found


def _stat(axis: Any, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    unit, factor = _UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    values = series[0][2] if series else np.zeros(1)
    finite = values[np.isfinite(values)]
    last = finite[-1] if len(finite) else 0.0
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [step["color"] for step in steps if step["value"] is None or last >= step["value"]][-1]
    axis.fill_between(range(len(values)), values, color=color, alpha=0.15)
    axis.text(0.5, 0.4, f"{last * factor:,.4g} {unit}", transform=axis.transAxes, ha="center", color=color, fontsize=20)
    axis.set_title(panel["title"], fontsize=10, loc="left")
    axis.set_axis_off()


def _plot(axis: Any, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    unit, factor = _UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    for name, at, values in series:
        axis.plot(at, values * factor, linewidth=1.2, label=name)
    axis.set_title(f"{panel['title']}{f' ({unit})' if unit else ''}", fontsize=10, loc="left")
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if series:
        axis.legend(frameon=False, fontsize=7, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.1))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own
            return bool(answer.status == 200)
    except OSError:
        return False

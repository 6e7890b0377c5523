"""What a run found: tables for a terminal, JSON for programs, a page with plots for people."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from loadtest.bench.measure import Figures
from loadtest.bench.run import Results, Row
from loadtest.page import html, svg
from loadtest.page import table as html_table

Column = tuple[str, Callable[[Figures], float | None], str]
COLUMNS: Sequence[Column] = (
    ("events/s", lambda f: f.events_per_second, ",.0f"),
    ("CPU µs/event", lambda f: f.cpu_us.get("subject"), ",.2f"),
    ("with model and Kafka", lambda f: sum(f.cpu_us.values()) if f.cpu_us else None, ",.2f"),
    ("RSS MiB", lambda f: max(f.rss_mib) if f.rss_mib else None, ",.0f"),
    ("p50 ms", lambda f: f.latency_ms.get("50"), ",.1f"),
    ("p99 ms", lambda f: f.latency_ms.get("99"), ",.1f"),
    ("p99.9 ms", lambda f: f.latency_ms.get("99.9"), ",.1f"),
)
"""Title, figure, format."""


def as_json(results: Results) -> Any:
    """Every round's figures, for programs."""
    return {
        name: [
            {
                "case": row.label,
                "beside": row.beside,
                "rounds": [asdict(found) for found in row.rounds],
                "failure": row.failure,
            }
            for row in rows
        ]
        for name, rows in results.items()
    }


def columns(rows: Sequence[Row]) -> list[Column]:
    """Those that some row has figures for."""
    return [column for column in COLUMNS if any(column[1](found) is not None for row in rows for found in row.rounds)]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles, and for each row its texts: median (least to most), then the ratios to the row beside which it stands."""
    by_label = {row.label: row for row in rows}
    shown = columns(rows) or COLUMNS[:1]
    compared = any(row.beside for row in rows)
    body = []
    for row in rows:
        cells = [row.label, *(_spread(_values(row, column), column[2]) for column in shown)]
        if compared:
            cells.append(_ratios(row, by_label[row.beside], shown) if row.beside else "")
        if row.failure is not None:
            cells[-1] = row.failure.splitlines()[0]
        body.append(cells)
    return ["", *(column[0] for column in shown), *(["beside"] if compared else [])], body


def ratio(row: Row, other: Row, column: Column) -> float | None:
    """The median over the rounds of this row's figure by the other's of the same round."""
    pairs = zip(_values(row, column), _values(other, column), strict=False)  # a case that failed has fewer rounds
    found = [a / b for a, b in pairs if a is not None and b]
    return statistics.median(found) if found else None


def page(results: Results, title: str) -> str:
    """An HTML page that needs nothing else."""
    parts = [f"<h2>{escape(name)}</h2>{html_table(*table(rows))}{_plot(rows)}" for name, rows in results.items()]
    return html(title, parts)


def _plot(rows: Sequence[Row]) -> str:
    """Bars: throughput, CPU by process, and latency, as far as there are figures."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.rounds]
    if not rows:
        return ""
    panels: list[Callable[[Sequence[Row], Any], None]] = [_throughput]
    panels += [_cpu] if any(row.rounds[0].cpu_us for row in rows) else []
    panels += [_latency] if any(row.rounds[0].latency_ms for row in rows) else []
    figure = Figure(figsize=(5 * len(panels), 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        panel(rows, axis)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return svg(figure)


def _throughput(rows: Sequence[Row], axis: Any) -> None:
    _bars(axis, rows, COLUMNS[0], "events/s")


def _cpu(rows: Sequence[Row], axis: Any) -> None:
    left = [0.0] * len(rows)
    for process, color in (("subject", "#2a6f97"), ("model", "#e09f3e"), ("kafka", "#9a8c98")):
        width = [statistics.median(f.cpu_us.get(process, 0.0) for f in row.rounds) for row in rows]
        axis.barh([row.label for row in rows], width, left=left, color=color, label=process)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axis.set_title("CPU µs/event")
    axis.legend(frameon=False, fontsize="small")


def _latency(rows: Sequence[Row], axis: Any) -> None:
    _bars(axis, rows, COLUMNS[5], "p99 ms")


def _bars(axis: Any, rows: Sequence[Row], column: Column, title: str) -> None:
    values = [[value or 0.0 for value in _values(row, column)] for row in rows]
    medians = [statistics.median(found) for found in values]
    reach = [
        [m - min(v) for m, v in zip(medians, values, strict=True)],
        [max(v) - m for m, v in zip(medians, values, strict=True)],
    ]
    axis.barh([row.label for row in rows], medians, xerr=reach, color="#2a6f97", ecolor="#888")
    axis.set_title(title)


def _values(row: Row, column: Column) -> list[float | None]:
    return [column[1](found) for found in row.rounds]


def _spread(values: Sequence[float | None], form: str) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return ""
    if len(found) == 1:
        return f"{found[0]:{form}}"
    return f"{statistics.median(found):{form}} ({min(found):{form}} to {max(found):{form}})"


def _ratios(row: Row, other: Row, shown: Sequence[Column]) -> str:
    found = [(column[0], ratio(row, other, column)) for column in shown if column[0] != "RSS MiB"]
    return ", ".join(f"{value:.2f} x {title}" for title, value in found if value is not None)

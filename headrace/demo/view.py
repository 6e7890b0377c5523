"""What the demo shows while it runs, and at its end."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from headrace.demo.tally import Tally


class View:
    """The live picture of one run.

    Args:
        title: of the panel.
        tally: what is counted.
    """

    def __init__(self, title: str, tally: Tally) -> None:
        self._title = title
        self._tally = tally
        self._bars = Progress(TextColumn("{task.description:>8}"), BarColumn(bar_width=48), MofNCompleteColumn())
        self._in = self._bars.add_task("events", total=tally.events)
        self._out = self._bars.add_task("outcomes", total=tally.events)
        self.rate = 0.0
        self.batch_size = 0.0
        self.note = ""

    def __rich__(self) -> RenderableType:
        tally = self._tally
        self._bars.update(self._in, completed=tally.sent)
        self._bars.update(self._out, completed=tally.accounted)
        figures = Table.grid(padding=(0, 3))
        figures.add_row("rate", f"{self.rate:,.0f} events/s", "latency p50", f"{tally.latency_ms(0.5):.1f} ms")
        figures.add_row("batch", f"{self.batch_size:.1f} events", "latency p99", f"{tally.latency_ms(0.99):.1f} ms")
        versions = "   ".join(f"version {name}: {count:,}" for name, count in sorted(tally.versions.items()))
        return Panel(Group(self._bars, figures, versions or "no result yet", self.note), title=self._title, width=90)

    def line(self) -> str:
        """The same in one line, for where there is no terminal."""
        versions = " ".join(f"v{name}={count}" for name, count in sorted(self._tally.versions.items()))
        return (
            f"sent {self._tally.sent}/{self._tally.events}, outcomes {self._tally.accounted}, "
            f"{self.rate:.0f} events/s, batch {self.batch_size:.1f}, {versions} {self.note}"
        )


def print_summary(console: Console, summary: dict[str, Any], metric: str) -> None:
    """The end of the demo as a table."""
    table = Table.grid(padding=(0, 2))
    for key in ("events", "results", "dead_letters", "lost", "duplicated", "out_of_order"):
        wrong = key in ("lost", "duplicated", "out_of_order") and summary[key]
        table.add_row(key.replace("_", " "), f"{summary[key]:,}", style="bold red" if wrong else "")
    for version, count in summary["versions"].items():
        quality = summary["quality"][version]
        table.add_row(
            f"by version {version}", f"{count:,}", f"{metric.replace('_', ' ')} {quality:.3f} against the labels"
        )
    table.add_row("events/s", f"{summary['events_per_second']:,.0f}")
    table.add_row("latency", f"p50 {summary['p50_ms']:.1f} ms, p99 {summary['p99_ms']:.1f} ms", "topic to topic")
    console.print(Panel(table, title="summary", width=90))

"""`make bench-check`: does an event still cost what it did? CPU beside a copy in the same run, against a stored ratio.

The copy is the yardstick, since it goes through the same client, broker and machine; only the ratio is compared.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.bench.report import COLUMNS, ratio
from loadtest.bench.run import run

STORED = Path(__file__).with_name("cost.json")
_TOLERANCE = 1.12
"""Two runs of five rounds have been seen to differ by 5 %."""


def main() -> None:
    """Measure, compare, and fail when something has become dearer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", action="store_true", help="take what is measured now as the measure from now on")
    arguments = parser.parse_args()
    console = Console()
    with console.status("measuring"):
        rows = run(["backlog"], arguments.events, arguments.rounds, 1.0, lambda *_: None)["backlog"]
    by_label = {row.label: row for row in rows}
    found = {row.label: ratio(row, by_label[row.beside], COLUMNS[1]) for row in rows if row.beside}
    missing = [row.failure for row in rows if row.failure]
    if missing:
        sys.exit("\n".join(missing))
    now = {label: round(value, 3) for label, value in found.items() if value is not None}
    if arguments.store:
        STORED.write_text(json.dumps(now, indent=1) + "\n")
    stored = json.loads(STORED.read_text())
    table = Table(title="CPU of an event, in copies of it", title_justify="left")
    for column in ("", "stored", "now"):
        table.add_column(column, justify="right" if column else "left")
    for label, value in now.items():
        table.add_row(label, f"{stored[label]:.2f}", f"{value:.2f}")
    console.print(table)
    dearer = [label for label, value in now.items() if value > stored[label] * _TOLERANCE]
    if dearer:
        sys.exit(f"{', '.join(dearer)}: more than {_TOLERANCE - 1:.0%} dearer than stored; find out why, or --store it")


if __name__ == "__main__":
    main()

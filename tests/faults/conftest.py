"""What the rows share: the model server of the rows that are not about the model, and the seeds."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.v2_server import v2_server


def double(rows: np.ndarray) -> np.ndarray:
    """y = 2x; refuses a batch with a negative x."""
    if (rows < 0).any():
        raise grpc.RpcError(grpc.StatusCode.INVALID_ARGUMENT)
    return rows * 2


@pytest.fixture(scope="session")
def model() -> Iterator[str]:
    """Address of a model server that doubles."""
    with v2_server(double) as (_, address):
        yield address


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each row with so many seeds as asked for (--seeds), one by default."""
    if "seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--seeds")
        metafunc.parametrize("seed", range(1, count + 1))


SHORT = (
    "row_1_broker_killed_or_bounced[1-kill-exactly", "row_2_bridge_killed_in_mid_transaction[1-exactly", "row_4_",
    "row_6_rebalance_while_batches_are_at_the_model[1-at_least", "row_7_a_zombie_wakes[1-exactly", "row_9_the_answer",
    "row_10_what_the_result_topic_would_not_take[1-exactly", "row_11_", "range[1-earliest",
    "row_12_a_start_at_the_end_is_chosen_once[1-exactly", "row_13_the_model_is_away[1-gone-exactly",
    "row_14_the_model_hangs[1-at_least", "row_15_answers_sliced_in_the_middle[1-exactly",
    "row_16_one_poison_event_in_a_batch[1-INTERNAL-exactly", "row_17_undecodable_events[1-exactly",
    "row_18_wrong_answers[1-rows-at_least", "another_signature[1-exactly", "row_20_dead_letters_cannot_be_written[1-exact",
    "row_21_sigterm_under_load[1-exactly", "row_22_one_trans", "row_23_a_foreign_open_transaction_on_the_input[1-at_least",
    "row_26_a_version_is_swapped_rolled_back_corrupted_and_half_copied[1-exactly",
)  # fmt: skip
"""What `make test` runs of the catalogue; `make fault-rows` runs all of it, in both modes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long rows unless they are asked for."""
    if config.getoption("--all-rows"):
        return
    rows = [item for item in items if "_row_" in item.name]
    if len(items) > len(rows) > len(SHORT):  # not when single tests were named
        gone = [name for name in SHORT if not any(name in item.name for item in rows)]
        assert not gone, f"no row is called {gone}"
    left_out = [item for item in rows if not any(name in item.name for name in SHORT)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Passes on what the checker counted in this test, for the summary."""
    yield
    for path in sorted(tmp_path.glob("verdict-*.json")):
        request.node.user_properties.append(("verdict", path.read_text()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line for each row of the catalogue: runs, and what became of the events."""
    if not config.getoption("--all-rows"):
        return
    runs: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            found = re.search(r"test_row_(\d+)_", getattr(report, "nodeid", ""))
            if found is None or outcome not in ("passed", "failed", "error", ""):
                continue
            row = runs[int(found[1])]
            if report.when == "call":
                row[outcome] += 1
            for name, value in report.user_properties if report.when == "teardown" else ():
                if name == "verdict":
                    verdict = json.loads(value)
                    row["twice, at least once"] += (
                        verdict["duplicated"] if verdict["delivery"] == "at_least_once" else 0
                    )
                    row["twice, exactly once"] += verdict["duplicated"] if verdict["delivery"] == "exactly_once" else 0
                    row.update({key: verdict[key] for key in ("events", "letters", "lost")})
    columns = ("passed", "failed", "events", "letters", "lost", "twice, exactly once", "twice, at least once")
    terminalreporter.write_line(f"| row | {' | '.join(columns)} |")
    for number, row in sorted(runs.items()):
        terminalreporter.write_line(f"| {number} | {' | '.join(f'{row[name]:,}' for name in columns)} |")

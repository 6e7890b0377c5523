"""What the tests of model versions share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.rig.served import ServedRepository
from serving.watch import Event
from tests.served import Served

FRAUD = Path(__file__).parents[2] / "model_repository" / "fraud"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    events: list[Event] = []
    with ServedRepository(repository, settle=1.0, probe=1.0, told=events.append) as server:
        found = Served(repository, server.address, events)
        yield found
        found.control.close()

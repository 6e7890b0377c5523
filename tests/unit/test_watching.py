"""When a watcher at work says that it is ready: a pod of a model server gets calls by it."""

import shutil
import threading
from pathlib import Path

import pytest

from headrace.watching import Watching
from serving.fake import FakeControl
from serving.store import Folder
from serving.view import View

FRAUD = Path(__file__).parents[2] / "model_repository" / "fraud"


class Turns(threading.Event):
    """Set after so many waits, none of which takes time."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


class At:
    """A watcher, its repository and its server."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self.repository.mkdir()
        (folder / "view").mkdir()
        self.control = FakeControl(folder / "view")
        self.watching = Watching(Folder(self.repository), View(folder / "view"), self.control, settle=0.0, interval=0.0)

    def turns(self, count: int) -> None:
        self.watching.run(Turns(count))


@pytest.fixture
def at(tmp_path: Path) -> At:
    return At(tmp_path)


def test_it_is_not_ready_before_it_has_looked(at: At) -> None:
    assert at.watching.ready() == (False, "versions are being loaded")


def test_it_is_ready_when_there_is_nothing_to_load(at: At) -> None:
    """Somebody is about to drop the first model into the pod's volume."""
    at.turns(3)
    assert at.watching.ready() == (True, "watching")


def test_it_is_ready_once_a_model_serves(at: At) -> None:
    shutil.copytree(FRAUD, at.repository / "fraud")
    at.turns(10)
    assert at.control.loaded["fraud"] == {1, 2}
    assert at.watching.ready() == (True, "watching")


def test_it_is_not_ready_while_every_version_is_refused(at: At) -> None:
    """Else a rollout would put a server that serves nothing in the place of one that serves."""
    shutil.copytree(FRAUD, at.repository / "fraud")
    at.control.refuses = {("fraud", 1): "no", ("fraud", 2): "no"}
    at.turns(10)
    ready, why = at.watching.ready()
    assert not ready
    assert why == "no model has a version that can be served; the log says why"


def test_a_refused_version_beside_one_that_serves_changes_nothing(at: At) -> None:
    shutil.copytree(FRAUD, at.repository / "fraud")
    at.control.refuses = {("fraud", 2): "no"}
    at.turns(10)
    assert at.control.loaded["fraud"] == {1}
    assert at.watching.ready() == (True, "watching")

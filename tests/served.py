"""A model repository that is served and watched on a real Triton, as tests use it."""

import shutil
from pathlib import Path

import numpy as np

from serving.control import TritonControl
from serving.marks import withdrawn
from serving.watch import Event
from tests.support import until


class Served:
    """A repository with one model, served and watched."""

    def __init__(self, repository: Path, address: str, events: list[Event]) -> None:
        self.repository = repository
        self.model = repository / "fraud"
        self.address = address
        self.control = TritonControl(address)
        self.events = events

    @property
    def ready(self) -> set[int]:
        return self.control.ready().get("fraud", set())

    @property
    def misnamed(self) -> set[str]:
        """What the watcher has named as no version, so far."""
        refused = [event.reason for event in self.events if event.what == "refused" and event.version == 0]
        return {reason.partition(": ")[0].rpartition("/")[2] for reason in refused}

    def next(self) -> int:
        return 1 + max(int(path.name) for path in self.model.iterdir() if path.name.isdigit())

    def drop(self, source: Path) -> int:
        """A version copied in by hand, without a manifest."""
        number = self.next()
        aside = self.model / f".{number}"
        shutil.copytree(source, aside)
        (aside / "manifest.json").unlink(missing_ok=True)
        aside.rename(self.model / str(number))
        return number

    def refused(self, number: int) -> str:
        """Why, once it is; what served before serves on."""
        before = self.ready
        until(lambda: number in withdrawn(self.model), 60, f"version {number} is refused")
        assert self.ready == before
        assert self.answers()
        return withdrawn(self.model)[number].reason

    def answers(self) -> bool:
        rows = np.zeros((3, 9), np.float32)
        return self.control.ask("fraud", max(self.ready), {"features": rows}, ["score"])["score"].size == 3

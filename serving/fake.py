"""A model server in memory, for tests of what controls one: the same behaviour as `TritonControl` on a real Triton."""

from collections.abc import Callable, Sequence, Set
from pathlib import Path

from serving.arrays import Arrays
from serving.completeness import VERSION
from serving.errors import ServerAway, ServingError
from serving.formats import read_signature


class FakeControl:
    """`Control` of a server that keeps the names of what it has loaded.

    Args:
        root: its model repository.

    Attributes:
        loaded: model -> versions that serve.
        loads: (model, version) for each version loaded so far, in order.
        available: while cleared, nothing is answered.
        refuses: (model, version) -> why it cannot be loaded.
        kills: versions under which the server goes away; it comes back empty once `available` is set again.
        answer: what a version answers.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.loaded: dict[str, set[int]] = {}
        self.loads: list[tuple[str, int]] = []
        self.available = True
        self.refuses: dict[tuple[str, int], str] = {}
        self.kills: set[tuple[str, int]] = set()
        self.answer: Callable[[str, int, Arrays], Arrays] = lambda model, version, inputs: {}

    def load(self, model: str) -> None:
        """See `TritonControl`."""
        self._check_available()
        folder = self._root / model
        if not (folder / "config.pbtxt").is_file():
            raise ServingError(f"the fake: model {model!r} cannot be loaded: it has no configuration")
        there = {int(path.name) for path in folder.iterdir() if VERSION.fullmatch(path.name)}
        new = sorted(there - self.loaded.get(model, set()))
        for version in new:
            if (model, version) in self.kills:
                self.available = False
                self.loaded.clear()
                self._check_available()
            reason = self.refuses.get((model, version))
            if reason is None:
                try:
                    read_signature(folder / str(version))
                except ServingError as error:
                    reason = str(error)
            if reason is not None:
                raise ServingError(f"the fake: model {model!r} cannot be loaded: {reason}")
        self.loads += [(model, version) for version in new]
        self.loaded[model] = there

    def unload(self, model: str, versions: Set[int], remove: Callable[[], None]) -> None:
        """See `TritonControl`."""
        self._check_available()
        remove()
        self.load(model)

    def ready(self) -> dict[str, set[int]]:
        """See `TritonControl`."""
        self._check_available()
        return {model: set(found) for model, found in self.loaded.items() if found}

    def ask(self, model: str, version: int, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """See `TritonControl`."""
        self._check_available()
        if version not in self.loaded.get(model, set()):
            raise ServingError(f"the fake: version {version} of model {model!r} does not answer: it is not loaded")
        return self.answer(model, version, inputs)

    def _check_available(self) -> None:
        if not self.available:
            raise ServerAway("the fake server is away")

"""The watcher: brings a model server to serve the newest good version of each model in a repository, and no other.

A version is dropped into the repository by any means. It is looked at until it is whole; then it is copied into the
server's own view, loaded beside the one that serves, warmed, asked its golden requests (all that by the server's
backend, before the version is announced), and from then on it serves. The version before stays loaded for a rollback.
One that fails on the way is withdrawn with the reason, once; what served before serves on.

Nothing is remembered that could not be found out again: after a crash at any point the next watcher looks at the
repository, its marks, the view and the server, and goes on.
"""

import hashlib
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from serving.arrays import Arrays
from serving.completeness import MODEL, NO_MODEL, NO_VERSION, check, fingerprint, misnamed
from serving.errors import ServerAway, ServerBusy, ServingError
from serving.formats import read_signature
from serving.golden import ask_golden, read_golden
from serving.manifest import FILE as MANIFEST
from serving.manifest import read_manifest
from serving.marks import Mark, pinned, restore, withdraw, withdrawn
from serving.modelconfig import ModelConfig, read_config
from serving.repository import models, numbers
from serving.signature import breaks
from serving.view import View

_TRIES = 2  # of a version under which the server goes away
_SOON = 3  # changes of a version's files after which it may take its time
_WRONG = 3  # golden requests in a row that a serving version answers wrongly


class Control(Protocol):
    """What a watcher needs of a model server."""

    def load(self, model: str) -> None:
        """See `TritonControl`."""
        ...

    def unload(self, model: str, versions: Set[int], remove: Callable[[], None]) -> None:
        """See `TritonControl`."""
        ...

    def ready(self) -> dict[str, set[int]]:
        """See `TritonControl`."""
        ...

    def ask(self, model: str, version: int, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """See `TritonControl`."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the watcher has done or found.

    Attributes:
        what: `loaded`, `unloaded`, `refused`; or `trouble`, which it waits out.
        model: its name; empty where all are meant.
        version: 0 where the model as a whole is meant.
        reason: one sentence; empty where all is well.
        seconds: it took.
    """

    what: Literal["loaded", "unloaded", "refused", "trouble"]
    model: str
    version: int
    reason: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class _Look:
    """What was seen of a version that is not loaded."""

    fingerprint: str
    since: float
    changes: int = 0
    checked: bool = False
    problem: str | None = None


class Watcher:
    """Looks and acts, a turn at a time. Not for several threads.

    Args:
        repository: where versions are dropped in.
        view: the server's own.
        control: the server.
        told: of everything that happens.
        settle: seconds for which a version without a manifest must be still until it is taken, and one with something
            wrong until it is refused.
        probe: seconds between golden requests to the versions that serve.
        clock: a monotonic clock; the age of files is never asked.
        wall: seconds since 1970, for marks.
    """

    def __init__(
        self,
        repository: Path,
        view: View,
        control: Control,
        told: Callable[[Event], None],
        settle: float = 3.0,
        probe: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._view = view
        self._control = control
        self._told = told
        self._settle = settle
        self._probe = probe
        self._clock = clock
        self._wall = wall
        self._looks: dict[tuple[str, int], _Look] = {}
        self._refused: dict[tuple[str, int], Mark] = {}  # where the repository cannot be written to
        self._troubles: dict[str, str] = {}
        self._away: dict[tuple[str, int], int] = {}
        self._wrong: dict[tuple[str, int], int] = {}
        self._probed = clock()
        self._condemned: set[tuple[str, int]] = set()  # served here, and were wrong
        self._configs: dict[str, ModelConfig] = {}  # that the server goes by
        self._bad_configs: dict[str, str] = {}
        self._misnamed: set[tuple[str, str]] = set()
        self._acted = False
        self.serving: dict[str, int] = {}
        """Model -> the version that answers, as of the last turn."""

    def turn(self) -> bool:
        """Look at everything once, and do what there is to do.

        Returns:
            Whether more is under way: something was done just now, a version has just come, or the server is away. A
            version that is still being written to after some turns is not waited for.
        """
        self._acted = False
        try:
            ready = self._control.ready()
            self.serving = {model: max(versions) for model, versions in ready.items()}
            probing = self._clock() - self._probed >= self._probe
            if probing:
                self._probed = self._clock()
            for model in models(self._repository):
                if not MODEL.fullmatch(model.name):
                    self._name(model, "", f"{model}: {NO_MODEL}")
                    continue
                loaded = ready.get(model.name, set())
                try:
                    self._bring(model, loaded)
                    if probing and loaded:
                        self._ask(model, loaded)
                except ServerAway:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever lies in one model's folder, the others go on
                    self._trouble(model.name, str(error) or repr(error))
                else:
                    self._troubles.pop(model.name, None)
                if loaded:
                    self.serving[model.name] = max(loaded)
        except (ServingError, OSError) as error:
            self._trouble("", str(error))
            return True
        self._troubles.pop("", None)
        return self._acted or any(look.changes < _SOON for look in self._looks.values())

    def _bring(self, model: Path, loaded: set[int]) -> None:
        """The model to the versions that are wanted; `loaded` follows."""
        for name in misnamed(model):
            self._name(model, name, f"{model / name}: {NO_VERSION}")
        config = self._configured(model, read_config(model), loaded)
        wanted = self._wanted(model, config, loaded)
        if not wanted:
            return  # whatever serves, serves on
        newest, rest = wanted[0], wanted[1:]
        if newest not in loaded and not self._load(model, newest, config, loaded):
            return
        surplus = loaded - set(wanted)
        if surplus:  # at once, before an older one is loaded: it may be a rollback

            def remove(surplus: Set[int] = surplus) -> None:
                for number in surplus:
                    self._view.drop(model.name, number)

            self._control.unload(model.name, surplus, remove)
            loaded -= surplus
            for number in sorted(surplus):
                self._tell(Event("unloaded", model.name, number))
        for number in rest:
            if number not in loaded and not self._load(model, number, config, loaded):
                return

    def _name(self, model: Path, name: str, reason: str) -> None:
        """What can be no model or version by its name, told once."""
        if (model.name, name) not in self._misnamed:
            self._misnamed.add((model.name, name))
            self._told(Event("refused", model.name, 0, reason))

    def _wanted(self, model: Path, config: ModelConfig, loaded: set[int]) -> list[int]:
        """The versions to have loaded, newest first."""
        marks = {n: mark for (name, n), mark in self._refused.items() if name == model.name} | withdrawn(model)
        pin = pinned(model)
        found: list[int] = []
        there = sorted(numbers(model), reverse=True)
        for key in [key for key in self._looks if key[0] == model.name and key[1] not in there]:
            del self._looks[key]  # it is gone
        for number in there:
            if (pin is not None and number > pin) or (config.only is not None and number not in config.only):
                continue
            if number in marks and not self._overruled(model, number, marks[number], config, loaded):
                continue
            if number in loaded or self._whole(model, number, config, loaded):
                found.append(number)
            if config.keep is not None and len(found) == config.keep:
                for key in [key for key in self._looks if key[0] == model.name and key[1] < number]:
                    del self._looks[key]  # it will not be wanted
                break
        if pin is not None and pin not in found:
            if (model.name, pin) in self._looks:
                return []  # it is arriving
            raise ServingError(f"{model}: pinned to version {pin}, which cannot be served; nothing is changed")
        return found

    def _overruled(self, model: Path, number: int, mark: Mark, config: ModelConfig, loaded: set[int]) -> bool:
        """Whether a version may serve though it was found wrong."""
        if mark.by == "watcher" and number in loaded and (model.name, number) not in self._condemned:
            return True  # another watcher could not load it; here it serves
        if mark.fingerprint is None or mark.fingerprint == _fingerprint(model / str(number), config):
            return False
        self._refused.pop((model.name, number), None)
        self._condemned.discard((model.name, number))
        restore(model, number)
        return True

    def _whole(self, model: Path, number: int, config: ModelConfig, loaded: set[int]) -> bool:
        """Whether a version can be taken now; one that is wrong and does not change any more is refused."""
        folder = model / str(number)
        now, found = self._clock(), _fingerprint(folder, config)
        look = self._looks.get((model.name, number))
        if look is None or look.fingerprint != found:
            self._looks[model.name, number] = _Look(found, now, look.changes + 1 if look else 0)
            return False  # it may be arriving: looked into when it has been still for a turn
        if not look.checked:
            try:
                check(folder, self._repository, config.signature)
                self._check_contract(model, number, config, loaded)
                look.problem = None
            except ServingError as error:
                look.problem = str(error)
            look.checked = True
        if look.problem is None and ((folder / MANIFEST).is_file() or now - look.since >= self._settle):
            return True
        if look.problem is not None and now - look.since >= self._settle:
            self._refuse(model, number, look.problem, config)
        return False

    def _check_contract(self, model: Path, number: int, config: ModelConfig, loaded: set[int]) -> None:
        new = read_signature(model / str(number), config.signature)
        manifest = read_manifest(model / str(number))
        if not loaded or number < max(loaded) or (manifest is not None and manifest.new_contract):
            return
        try:
            before = read_signature(self._view.root / model.name / str(max(loaded)), config.signature)
        except ServingError as error:
            raise OSError(f"the server's own copy is damaged: {error}") from None  # not the new version's fault
        problem = breaks(before, new)
        if problem:
            raise ServingError(
                f"{model / str(number)}: not what version {max(loaded)} is asked for: {problem}; "
                "publish it with --new-contract if pipelines are ready for it"
            )

    def _load(self, model: Path, number: int, config: ModelConfig, loaded: set[int]) -> bool:
        """Take a version in; False where it is refused, or has to wait."""
        begun = self._clock()
        for other in self._view.versions(model.name) - loaded:
            self._view.drop(model.name, other)  # of a watcher that was killed: it could fail this version
        key = (model.name, number)
        seen = _fingerprint(model / str(number), config)
        try:
            self._view.add(model.name, number, model / str(number), config.signature)
        except ServingError:
            self._looks.pop(key, None)  # it has changed since it was looked at
            return False
        if _fingerprint(model / str(number), config) != seen:
            self._view.drop(model.name, number)
            self._looks.pop(key, None)  # it has changed while it was copied
            return False
        try:
            self._control.load(model.name)
        except ServerBusy:
            raise
        except ServerAway:
            self._view.drop(model.name, number)
            self._away[key] = self._away.get(key, 0) + 1
            if self._away[key] == _TRIES:
                self._refuse(model, number, f"the server went away {_TRIES} times while it was loaded", config)
            raise
        except ServingError as error:
            self._view.drop(model.name, number)
            self._refuse(model, number, str(error), config)
            return False
        self._away.pop(key, None)
        self._looks.pop(key, None)
        loaded.add(number)
        self._tell(Event("loaded", model.name, number, seconds=self._clock() - begun))
        return True

    def _configured(self, model: Path, config: ModelConfig, loaded: set[int]) -> ModelConfig:
        """The configuration that the server goes by: the repository's, unless the server refuses it."""
        if self._bad_configs.get(model.name) == config.text:
            return self._configs.get(model.name, config)
        if self._view.config(model.name) != config.text:
            with self._view.configured(model.name, config.text):
                if loaded:
                    try:
                        self._control.load(model.name)
                    except ServerAway:
                        raise
                    except ServingError as error:
                        self._bad_configs[model.name] = config.text
                        sentence = f"{model}: its config.pbtxt is refused, the one before holds: {error}"
                        raise ServingError(sentence) from None
        self._configs[model.name] = config
        return config

    def _ask(self, model: Path, loaded: set[int]) -> None:
        """The golden requests to the version that serves; wrong again and again it is refused, if another is there."""
        number = max(loaded)
        folder = self._view.root / model.name / str(number)
        golden = read_golden(folder)
        if golden is None:
            return
        key = (model.name, number)
        try:
            config = self._configs[model.name]
            signature = read_signature(folder, config.signature)
            ask_golden(golden, signature, lambda inputs: self._control.ask(*key, inputs, list(golden.outputs)))
        except ServerAway:
            raise
        except ServingError as error:
            self._wrong[key] = self._wrong.get(key, 0) + 1
            if self._wrong[key] >= _WRONG and len(loaded) > 1:
                self._condemned.add(key)
                self._refuse(model, number, f"while it served: {error}", config)
            raise
        else:
            self._wrong.pop(key, None)

    def _refuse(self, model: Path, number: int, reason: str, config: ModelConfig) -> None:
        key, seen = (model.name, number), _fingerprint(model / str(number), config)
        mark = Mark(by="watcher", reason=reason, at=self._wall(), fingerprint=seen)
        self._looks.pop(key, None)
        self._wrong.pop(key, None)
        self._away.pop(key, None)
        try:
            withdraw(model, number, mark)
        except ServingError:
            self._refused[key] = mark  # a repository that is only read from: remembered until this process ends
        self._tell(Event("refused", model.name, number, reason))

    def _tell(self, event: Event) -> None:
        self._acted = True
        self._told(event)

    def _trouble(self, model: str, reason: str) -> None:
        """Tell it, once for as long as it lasts."""
        if self._troubles.get(model) != reason:
            self._troubles[model] = reason
            self._told(Event("trouble", model, 0, reason))


def _fingerprint(folder: Path, config: ModelConfig) -> str:
    """Of a version and how it is served: with either changed, it may be looked at again."""
    try:
        return hashlib.sha256(f"{fingerprint(folder)} {config.text}".encode()).hexdigest()
    except (ServingError, OSError) as error:
        return str(error)

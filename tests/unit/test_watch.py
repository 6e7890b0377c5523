"""The watcher, on a server in memory and by a clock of the test's own: what it takes, refuses, keeps and takes back."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving.view
from serving.errors import ServingError
from serving.fake import FakeControl
from serving.golden import FILE as GOLDEN
from serving.manifest import read_manifest
from serving.marks import Mark, pin, restore, withdraw, withdrawn
from serving.publish import publish
from serving.view import View
from serving.watch import Event, Watcher
from tests.spoiled import SPOILED

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FRAUD = REPOSITORY / "fraud"
SETTLE = 3.0


class World:
    """A repository, a server, and a watcher between them."""

    def __init__(self, tmp_path: Path) -> None:
        self.repository = tmp_path / "repository"
        self.model = self.repository / "fraud"
        self.model.mkdir(parents=True)
        self.root = tmp_path / "view"
        self.root.mkdir()
        self.control = FakeControl(self.root)
        self.now = 100.0
        self.events: list[Event] = []
        self.watcher = self.start()

    def start(self) -> Watcher:
        """Another watcher in the place of the one before."""
        if hasattr(self, "view"):
            self.view.close()
        self.view = View(self.root)
        self.watcher = Watcher(
            self.repository,
            self.view,
            self.control,
            self.events.append,
            SETTLE,
            clock=lambda: self.now,
            wall=lambda: 1e9,
        )
        return self.watcher

    def turn(self, seconds: float = 0.5) -> None:
        self.now += seconds
        self.watcher.turn()

    def turns(self, count: int = 12) -> None:
        for _ in range(count):
            self.turn()

    def drop(self, number: int, version: int = 1, manifest: bool = False, model: str = "fraud") -> Path:
        """A version copied in by hand."""
        target = self.repository / model / str(number)
        shutil.copytree(REPOSITORY / model / str(version), target)
        if not manifest:
            (target / "manifest.json").unlink()
        return target

    @property
    def serving(self) -> set[int]:
        return self.control.loaded.get("fraud", set())

    def told(self, what: str) -> list[Event]:
        return [event for event in self.events if event.what == what]


@pytest.fixture
def w(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_is_there_is_loaded_newest_first_and_no_more_than_is_kept(w: World) -> None:
    for number in (1, 2, 3):
        w.drop(number, manifest=True)
    w.turns()
    assert w.control.loads == [("fraud", 3), ("fraud", 2)]
    assert w.serving == {2, 3}
    assert w.watcher.serving == {"fraud": 3}
    assert not w.watcher.turn()


def test_a_version_with_a_manifest_is_taken_as_soon_as_its_hashes_agree(w: World) -> None:
    publish(FRAUD / "1", w.repository)
    w.turn()
    assert w.serving == set()  # seen for the first time
    w.turn()
    assert w.serving == {1}


def test_one_without_a_manifest_is_taken_when_it_has_been_still_for_the_time_set(w: World) -> None:
    folder = w.drop(1)
    w.turn()
    w.turn(SETTLE - 0.1)
    assert w.serving == set()
    (folder / "more").write_text("")  # it is still being written
    w.turn(SETTLE - 0.1)
    w.turn(SETTLE - 0.1)
    assert w.serving == set()
    w.turn(0.2)
    assert w.serving == {1}


def test_a_copy_that_grows_is_never_taken_and_never_refused_until_it_is_whole(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    whole = sorted(path for path in (FRAUD / "2").rglob("*") if path.is_file())
    target = w.model / "2"
    for path in whole:
        place = target / path.relative_to(FRAUD / "2")
        place.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        for part in (len(data) // 2, len(data)):
            assert w.serving == {1}
            place.write_bytes(data[:part])
            w.turn()
    w.turn()
    assert w.serving == {1, 2}
    assert w.told("refused") == []


def test_half_a_copy_is_refused_once_and_taken_when_the_rest_has_come(w: World) -> None:
    w.drop(1, manifest=True)
    folder = w.drop(2, 2, manifest=True)
    data = next(folder.rglob("variables.data-*"))
    whole = data.read_bytes()
    data.write_bytes(whole[:100])
    w.turns(20)
    assert w.serving == {1}
    (refusal,) = w.told("refused")
    assert (refusal.version, "its content is not what the manifest says" in refusal.reason) == (2, True)
    assert withdrawn(w.model)[2].by == "watcher"
    data.write_bytes(whole)
    w.turns(4)
    assert w.serving == {1, 2}
    assert withdrawn(w.model) == {}


def test_one_that_the_server_refuses_is_refused_for_every_watcher(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    w.control.refuses["fraud", 2] = "output 'score': value 0 is nan"
    w.drop(2, manifest=True)
    w.turns()
    assert w.serving == {1}
    assert [(e.version, "value 0 is nan" in e.reason) for e in w.told("refused")] == [(2, True)]
    assert w.view.versions("fraud") == {1}
    w.control.refuses.clear()
    w.start()
    w.turns()
    assert w.serving == {1}  # the other one has read why
    assert len(w.told("refused")) == 1
    restore(w.model, 2)
    w.turns(3)
    assert w.serving == {1, 2}


def test_a_version_may_serve_again_under_the_watcher_that_refused_it(w: World) -> None:
    w.drop(1, manifest=True)
    w.control.refuses["fraud", 2] = "broken"
    w.drop(2, manifest=True)
    w.turns()
    assert w.serving == {1}
    w.control.refuses.clear()
    restore(w.model, 2)
    w.turns(3)
    assert w.serving == {1, 2}


def test_what_another_watcher_could_not_load_serves_on_where_it_serves(w: World) -> None:
    for number in (1, 2):
        w.drop(number, manifest=True)
    w.turns()
    withdraw(w.model, 2, Mark(by="watcher", reason="no memory there", at=0.0))
    w.turns()
    assert w.serving == {1, 2}
    withdraw(w.model, 2, Mark(by="rollback", reason="worse", at=0.0))
    w.turns()
    assert w.serving == {1}


def test_with_another_configuration_a_refused_version_is_looked_at_again(w: World) -> None:
    w.control.refuses["fraud", 1] = "no such signature"
    w.drop(1, manifest=True)
    w.turns()
    assert w.serving == set()
    w.control.refuses.clear()
    (w.model / "config.pbtxt").write_text('platform: "tensorflow_savedmodel" max_batch_size: 8\n')
    w.turns()
    assert w.serving == {1}


def test_a_view_is_filled_by_one_watcher(w: World) -> None:
    with pytest.raises(ServingError, match="another watcher fills it; give each server a folder of its own"):
        View(w.root)
    w.view.close()
    View(w.root).close()
    w.view = View(w.root)


def test_a_watcher_that_comes_before_its_server_is_not_settled(w: World) -> None:
    w.control.available = False
    w.drop(1, manifest=True)
    assert w.watcher.turn()
    w.control.available = True
    w.turns()
    assert not w.watcher.turn()


def test_a_version_that_is_written_to_for_long_does_not_keep_the_others_unsettled(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    folder = w.drop(2, 2)
    for number in range(5):
        (folder / "more").write_text("x" * number)
        w.turn()
    assert not w.watcher.turn()


def test_a_name_that_is_no_text_stops_nobody(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    (w.drop(2, 2) / os.fsdecode(b"\xff")).write_text("")
    w.turns(20)
    assert w.serving == {1, 2}


def test_a_broken_newest_version_does_not_keep_the_others_from_loading_at_the_start(w: World) -> None:
    for number in (1, 2, 3):
        w.drop(number, manifest=True)
    w.control.refuses["fraud", 3] = "broken"
    w.turns()
    assert w.serving == {1, 2}


def test_a_rollback_serves_the_version_before_without_loading_anything_first(w: World) -> None:
    for number in (1, 2, 3):
        w.drop(number, manifest=True)
    w.turns()
    w.events.clear()
    withdraw(w.model, 3, Mark(by="rollback", reason="worse", at=0.0))
    w.turn()
    assert w.serving == {2}
    w.turns(3)
    assert w.serving == {1, 2}  # 1, for the next rollback
    assert [(event.what, event.version) for event in w.events] == [("unloaded", 3), ("loaded", 1)]
    w.drop(4, manifest=True)
    w.turns(3)
    assert w.serving == {2, 4}


def test_a_pin_holds_against_what_is_newer_until_it_is_taken_away(w: World) -> None:
    for number in (1, 2, 3):
        w.drop(number, manifest=True)
    pin(w.model, 1)
    w.turns()
    assert w.serving == {1}
    pin(w.model, 2)
    w.turns(3)
    assert w.serving == {1, 2}
    pin(w.model, None)
    w.turns(3)
    assert w.serving == {2, 3}


def test_a_pin_to_what_is_not_there_changes_nothing_and_says_so_once(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns()
    pin(w.model, 7)
    w.turns()
    assert w.serving == {1}
    assert ["pinned to version 7, which cannot be served" in event.reason for event in w.told("trouble")] == [True]
    w.drop(7, manifest=True)
    w.turns()
    assert w.serving == {1, 7}


def test_another_signature_is_refused_unless_its_manifest_says_that_it_is_meant(w: World, tmp_path: Path) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    other = tmp_path / "other"
    shutil.copytree(REPOSITORY / "personalization" / "1", other)
    shutil.copytree(other, w.model / "2")
    w.turns()
    assert w.serving == {1}
    (refusal,) = w.told("refused")
    assert "not what version 1 is asked for: its inputs are item, user in place of features" in refusal.reason
    with pytest.raises(ServingError, match="if the pipelines are ready for that, say --new-contract"):
        publish(other, w.repository, "fraud")
    target = publish(other, w.repository, "fraud", new_contract=True)
    manifest = read_manifest(target)
    assert manifest is not None
    assert (target.name, manifest.new_contract) == ("3", True)
    w.turns(3)
    assert w.serving == {1, 3}


def test_while_the_server_is_away_nothing_is_refused_and_it_is_told_once(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    w.drop(2, manifest=True)
    w.control.available = False
    w.turns()
    assert [(e.model, e.reason) for e in w.told("trouble")] == [("", "the fake server is away")]
    assert w.told("refused") == []
    w.control.available = True
    w.control.loaded.clear()  # it has been started again, empty
    w.control.loads.clear()
    w.turns()
    assert w.control.loads == [("fraud", 2), ("fraud", 1)]


def test_a_version_under_which_the_server_dies_is_refused_at_the_second_time(w: World) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    w.control.kills.add(("fraud", 2))
    w.drop(2, manifest=True)
    w.turns(3)
    assert not w.control.available
    assert w.told("refused") == []  # it may have been something else
    for _ in range(6):
        w.control.available = True
        w.turns(3)
    w.control.available = True
    w.turns(3)
    assert w.serving == {1}
    assert ["went away 2 times" in event.reason for event in w.told("refused")] == [True]


def test_one_that_answers_its_golden_requests_wrongly_while_it_serves_is_taken_back(w: World) -> None:
    golden = json.loads((FRAUD / "1" / GOLDEN).read_text())
    right = {name: np.array(rows) for name, rows in golden["outputs"].items()}
    for number in (1, 2):
        w.drop(number, manifest=True)
    bad: list[int] = []

    def answer(model: str, version: int, inputs: Any) -> Any:
        if version in bad:
            raise ServingError("Stub process is not healthy")
        return right

    w.control.answer = answer
    w.turns()
    for _ in range(5):
        w.turn(10.0)
    assert w.serving == {1, 2}
    bad.append(2)
    w.turn(10.0)
    w.turn(10.0)
    assert w.serving == {1, 2}  # it may have been something else
    w.turn(10.0)
    w.turns(2)
    assert w.serving == {1}
    assert ["while it served: Stub process is not healthy" in event.reason for event in w.told("refused")] == [True]
    bad.append(1)
    for _ in range(6):
        w.turn(10.0)
    assert w.serving == {1}  # there is nothing else to serve
    bad.clear()
    restore(w.model, 2)
    w.turns()
    assert w.serving == {1, 2}


@pytest.mark.parametrize("name", ["abc", "0", "01", "-1", "12345678901234567890"])
def test_what_is_no_version_is_named_once_and_left_alone(w: World, name: str) -> None:
    w.drop(1, manifest=True)
    shutil.copytree(FRAUD / "2", w.model / name)
    w.turns()
    assert w.serving == {1}
    assert [event.reason for event in w.told("refused")] == [
        f"{w.model / name}: no version; a version is called by a number from 1, without leading zeros"
    ]


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.values(), ids=SPOILED)
def test_what_is_wrong_with_a_version_is_said_and_the_one_before_serves_on(
    w: World, spoil: Callable[[Path], None], reason: str
) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    spoil(w.drop(2, 2))
    w.turns(20)
    assert w.serving == {1}
    (refusal,) = w.told("refused")
    assert (refusal.version, reason in refusal.reason) == (2, True), refusal
    assert {path.name for path in w.root.iterdir()} - {".incoming", ".lock"} == {"fraud"}
    assert w.view.versions("fraud") == {1}


def test_a_model_whose_name_no_server_can_take_is_named_once_and_left_alone(w: World) -> None:
    shutil.copytree(FRAUD / "1", w.repository / "a b" / "1")
    w.drop(1)
    w.turns(20)
    assert w.serving == {1}
    assert [event.reason.partition(";")[0] for event in w.told("refused")] == [f"{w.repository / 'a b'}: no model"]


def test_links_within_the_repository_are_followed(w: World) -> None:
    w.drop(1, manifest=True)
    (w.repository / ".store").mkdir()
    (w.model / "1").rename(w.repository / ".store" / "abc")
    (w.model / "1").symlink_to("../.store/abc")
    w.turns()
    assert w.serving == {1}
    assert not any(path.is_symlink() for path in w.root.rglob("*"))


def test_a_repository_that_is_a_link_may_be_swapped_as_a_whole(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.drop(1, manifest=True)
    w.repository.rename(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(FRAUD / "2", tmp_path / "b" / "fraud" / "2")
    w.repository.symlink_to("a")
    w.turns()
    assert w.serving == {1}
    aside = tmp_path / "link"
    aside.symlink_to("b")
    os.rename(aside, w.repository)  # noqa: PTH104
    w.turns()
    assert w.serving == {1, 2}


def test_a_configuration_that_cannot_be_read_is_told_once_and_the_one_before_holds(w: World) -> None:
    (w.model / "config.pbtxt").write_text(
        'platform: "tensorflow_savedmodel"\nversion_policy { latest { num_versions: 1 } }\n'
    )
    w.drop(1, manifest=True)
    w.turns()
    (w.model / "config.pbtxt").write_text("platform: tensorflow\n")
    w.drop(2, manifest=True)
    w.turns()
    assert w.serving == {1}
    (trouble,) = w.told("trouble")
    assert "config.pbtxt: line 1:" in trouble.reason
    (w.model / "config.pbtxt").write_text("version_policy { specific { versions: [1] } }\n")
    w.turns()
    assert w.serving == {1}
    (w.model / "config.pbtxt").write_text("version_policy { all { } }\n")
    w.turns()
    assert w.serving == {1, 2}


def test_a_model_whose_versions_are_gone_serves_on(w: World) -> None:
    for number in (1, 2):
        w.drop(number, manifest=True)
    w.turns()
    shutil.rmtree(w.model / "2")
    w.turns()
    assert w.serving == {1}
    shutil.rmtree(w.model / "1")
    w.turns()
    assert w.serving == {1}
    shutil.rmtree(w.repository)
    w.turns()
    assert w.serving == {1}
    assert "no such model repository" in w.told("trouble")[-1].reason


def test_a_full_disk_is_waited_out_and_is_no_versions_fault(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    w.drop(1, manifest=True)
    w.turns()
    w.drop(2, manifest=True)

    def full(*_: Any, **__: Any) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    with monkeypatch.context() as patch:
        patch.setattr(serving.view.shutil, "copytree", full)
        w.turns()
    assert w.serving == {1}
    assert [event.reason for event in w.events if event.reason] == ["[Errno 28] No space left on device"]
    w.turns()
    assert w.serving == {1, 2}


def test_a_repository_that_cannot_be_written_to_is_watched_all_the_same(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readonly(*_: Any) -> None:
        raise ServingError("read-only file system")

    monkeypatch.setattr("serving.watch.withdraw", readonly)
    w.control.refuses["fraud", 2] = "broken"
    for number in (1, 2):
        w.drop(number, manifest=True)
    w.turns(20)
    assert w.serving == {1}
    assert len(w.told("refused")) == 1
    assert withdrawn(w.model) == {}


def test_what_changes_while_it_is_copied_is_not_taken(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    w.drop(1, manifest=True)
    w.turns(3)
    folder = w.drop(2, 2)
    copy, late = shutil.copytree, [1, 2]

    def copied(source: Any, target: Any, *rest: Any, **options: Any) -> Any:
        made = copy(source, target, *rest, **options)
        if late and Path(source) == folder:
            (folder / f"more-{late.pop()}").write_text("")
        return made

    monkeypatch.setattr(serving.view.shutil, "copytree", copied)
    w.turns(40)
    assert (w.serving, late) == ({1, 2}, [])
    assert {path.name for path in (w.root / "fraud" / "2").glob("more-*")} == {"more-1", "more-2"}


def test_a_configuration_that_is_refused_leaves_the_one_before_as_it_was(w: World) -> None:
    with w.view.configured("m", "first"):
        pass
    before = (w.root / "m" / "config.pbtxt").stat().st_mtime_ns
    with pytest.raises(ServingError), w.view.configured("m", "second"):
        raise ServingError("refused")
    path = w.root / "m" / "config.pbtxt"
    assert (path.read_text(), path.stat().st_mtime_ns) == ("first", before)


class Killed(BaseException):
    """kill -9."""


def test_a_watcher_that_is_killed_between_any_two_steps_leaves_what_the_next_one_can_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drop-in, a broken drop-in and a rollback, with a kill at the first step that touches disk or server, the next …"""
    steps = 0
    for kill in range(1, 200):
        w = World(tmp_path / str(kill))
        w.drop(1, manifest=True)
        w.turns(3)
        w.control.refuses["fraud", 3] = "broken"
        count = 0

        def step(function: Callable[..., Any], kill: int = kill) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == kill:
                    raise Killed
                done = function(*args, **kwargs)
                count += 1
                if count == kill:
                    raise Killed
                return done

            return counted

        def changes(w: World = w) -> Any:
            yield lambda: w.drop(2, manifest=True)
            yield lambda: w.drop(3, manifest=True)
            yield lambda: withdraw(w.model, 2, Mark(by="rollback", reason="", at=0.0))

        with monkeypatch.context() as patch:
            for name in ("os.rename", "os.replace", "shutil.copytree", "shutil.rmtree", "os.unlink"):
                module, _, function = name.partition(".")
                patch.setattr(name, step(getattr(__import__(module), function)))
            patch.setattr(w.control, "load", step(w.control.load))
            for change in changes():
                held, count = count, -10_000  # what a person does is not killed here
                change()
                count = held
                for _ in range(8):
                    try:
                        w.turn()
                    except Killed:
                        w.start()
                    assert w.serving, f"nothing serves after a kill at step {kill}"
        w.turns()
        assert w.serving == {1}, f"kill at step {kill}"
        assert set(withdrawn(w.model)) == {2, 3}
        steps = count
        if count < kill:
            break
    else:
        pytest.fail("it has more steps than the test tries")
    assert steps > 20

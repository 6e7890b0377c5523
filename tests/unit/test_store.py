"""Repositories in an object store: what is copied, taken over, and kept apart."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from serving.errors import ServingError
from serving.manifest import verify
from serving.marks import Mark, pin, pinned, restore, withdraw, withdrawn
from serving.publish import publish
from serving.store import Store, repository_at

FRAUD = Path(__file__).parents[2] / "model_repository" / "fraud"
MARK = Mark(by="rollback", reason="worse", at=1e9)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A store in memory, of this test alone."""
    root = f"memory://{request.node.name}/models"
    yield root
    fsspec.filesystem("memory").store.clear()


def copy(url: str, home: Path, *, insists: bool = True) -> Store:
    return Store(url, home, insists=insists)


def names(url: str) -> list[str]:
    root = url.partition("://")[2]
    return sorted(name.removeprefix(f"/{root}/") for name in fsspec.filesystem("memory").find(f"/{root}"))


def test_what_is_published_here_is_whole_there_and_elsewhere(url: str, tmp_path: Path) -> None:
    here, there = copy(url, tmp_path / "here"), copy(url, tmp_path / "there")
    publish(FRAUD / "1", here.folder)
    here.push()
    assert "fraud/1/manifest.json" in names(url)
    assert not any(".store" in name or ".incoming" in name for name in names(url))
    there.pull()
    assert verify(there.folder / "fraud" / "1") == []
    publish(FRAUD / "2", there.folder)
    there.push()
    here.pull()
    assert verify(here.folder / "fraud" / "2") == []
    here.close()
    there.close()


def test_the_manifest_comes_first_so_that_half_a_version_can_be_told(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = copy(url, tmp_path / "here"), copy(url, tmp_path / "there")
    publish(FRAUD / "1", here.folder)
    kept, count = here._store.put_file, 0

    def away(_: object, *arguments: object, **options: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError("connection reset")
        kept(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(here._store), "put_file", away)
        with pytest.raises(ServingError, match="models: cannot be written: connection reset"):
            here.push()
    assert "fraud/1/manifest.json" in names(url)
    there.pull()
    assert any("missing" in problem for problem in verify(there.folder / "fraud" / "1"))
    here.close()
    again = copy(url, tmp_path / "here", insists=False)  # the next command goes on where that one was
    again.pull()
    again.push()
    there.pull()
    assert verify(there.folder / "fraud" / "1") == []


def test_of_two_who_publish_at_once_one_has_the_number(url: str, tmp_path: Path) -> None:
    one, two = copy(url, tmp_path / "one"), copy(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    shutil.copytree(FRAUD / "2", tmp_path / "source")
    (tmp_path / "source" / "notes.md").write_text("what the other one does not have")
    (tmp_path / "source" / "manifest.json").unlink()
    publish(tmp_path / "source", two.folder, "fraud")
    one.push()
    with pytest.raises(
        ServingError, match="somebody has published fraud/1 meanwhile; publish it again, as the next one"
    ):
        two.push()
    two.pull()
    assert (two.folder / "fraud" / "1" / "manifest.json").read_bytes() == (
        one.folder / "fraud" / "1" / "manifest.json"
    ).read_bytes()
    assert verify(two.folder / "fraud" / "1") == []
    assert publish(FRAUD / "2", two.folder).name == "2"
    two.push()
    one.pull()
    assert verify(one.folder / "fraud" / "2") == []


def test_what_is_decided_is_decided_for_all_and_can_be_taken_back(url: str, tmp_path: Path) -> None:
    one, two = copy(url, tmp_path / "one"), copy(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    pin(one.folder / "fraud", 1)
    withdraw(one.folder / "fraud", 2, MARK)
    one.push()
    two.pull()
    assert pinned(two.folder / "fraud") == 1
    assert withdrawn(two.folder / "fraud") == {2: MARK}
    pin(two.folder / "fraud", None)
    restore(two.folder / "fraud", 2)
    two.push()
    one.pull()
    assert pinned(one.folder / "fraud") is None
    assert withdrawn(one.folder / "fraud") == {}


def test_nothing_is_removed_from_the_store_because_a_copy_has_lost_it(url: str, tmp_path: Path) -> None:
    one = copy(url, tmp_path / "one")
    publish(FRAUD / "1", one.folder)
    publish(FRAUD / "2", one.folder)
    one.push()
    before = names(url)
    shutil.rmtree(one.folder / "fraud" / "1")
    one.push()
    assert names(url) == before
    one.pull()
    assert verify(one.folder / "fraud" / "1") == []
    one.remove(one.folder / "fraud" / "1")
    assert not any(name.startswith("fraud/1/") for name in names(url))
    assert not (one.folder / "fraud" / "1").exists()


def test_what_was_never_taken_over_is_gone_with_the_next_look(url: str, tmp_path: Path) -> None:
    one, two = copy(url, tmp_path / "one"), copy(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    one.push()
    publish(FRAUD / "2", one.folder)  # and killed before it was taken over
    withdraw(one.folder / "fraud", 1, MARK)
    one.close()
    again = copy(url, tmp_path / "one")
    again.pull()
    assert sorted(path.name for path in (again.folder / "fraud").iterdir() if path.is_dir()) == [".headrace", "1"]
    again.push()
    two.pull()
    assert withdrawn(two.folder / "fraud") == {1: MARK}


def test_what_is_removed_or_changed_in_the_store_is_so_here(url: str, tmp_path: Path) -> None:
    one = copy(url, tmp_path / "one")
    publish(FRAUD / "1", one.folder)
    one.push()
    memory, root = fsspec.filesystem("memory"), "/" + url.partition("://")[2]
    memory.pipe_file(f"{root}/fraud/config.pbtxt", b"max_batch_size: 8")
    one.pull()
    assert (one.folder / "fraud" / "config.pbtxt").read_text() == "max_batch_size: 8"
    memory.rm(f"{root}/fraud/1", recursive=True)
    one.pull()
    assert not (one.folder / "fraud" / "1").exists()


def test_names_that_lead_out_are_not_followed(url: str, tmp_path: Path) -> None:
    store = copy(url, tmp_path / "one")
    store._list = lambda: {"../../out": "1"}  # a store may hold what its library would not list
    with pytest.raises(ServingError, match="'../../out' leads out of the repository"):
        store.pull()


@pytest.mark.parametrize(
    ("where", "sentence"), [("nowhere://x", "nowhere://x: Protocol not known: nowhere"), ("gs://x/y", "gs://x/y: .*gcsfs")]
)  # fmt: skip
def test_a_store_that_cannot_be_reached_is_one_sentence(where: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=sentence):
        copy(where, tmp_path)


def test_the_copy_of_a_command_is_kept_for_the_next(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    at = repository_at(url)
    publish(FRAUD / "1", at.folder)
    at.push()
    at.close()
    fetched: list[str] = []
    monkeypatch.setattr(Store, "_fetch", lambda self, path, token: fetched.append(path))
    repository_at(url).close()
    assert fetched == []


def test_a_store_that_may_only_be_read_is_read(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = copy(url, tmp_path / "one"), copy(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    one.push()
    two.pull()
    withdraw(two.folder / "fraud", 1, MARK)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("access denied")

    with monkeypatch.context() as patch:
        patch.setattr(type(two._store), "put_file", denied)
        with pytest.raises(ServingError, match="cannot be written: access denied"):
            two.push()
    publish(FRAUD / "2", one.folder)
    one.push()
    two.pull()
    assert verify(two.folder / "fraud" / "2") == []
    assert withdrawn(two.folder / "fraud") == {1: MARK}  # a watcher's own decision holds


def test_a_command_whose_decision_could_not_be_taken_over_has_failed(url: str, tmp_path: Path) -> None:
    one = copy(url, tmp_path / "one", insists=False)
    publish(FRAUD / "1", one.folder)
    pin(one.folder / "fraud", 1)
    one.push()
    pin(one.folder / "fraud", 7)  # and the connection breaks
    withdraw(one.folder / "fraud", 1, MARK)
    one.pull()
    assert pinned(one.folder / "fraud") == 1
    assert withdrawn(one.folder / "fraud") == {}


def test_two_may_take_the_same_decision_back(url: str, tmp_path: Path) -> None:
    one, two = copy(url, tmp_path / "one"), copy(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    withdraw(one.folder / "fraud", 1, MARK)
    one.push()
    two.pull()
    for store in (one, two):
        restore(store.folder / "fraud", 1)
        store.pull()  # a watcher looks first, and still holds to what it has decided
        store.push()
        store.pull()
        assert withdrawn(store.folder / "fraud") == {}
    assert not any("withdrawn" in name for name in names(url))


def test_a_decision_that_somebody_else_has_just_taken_back_is_taken_back(url: str, tmp_path: Path) -> None:
    one, two = copy(url, tmp_path / "one"), copy(url, tmp_path / "two")
    withdraw(one.folder / "fraud", 1, MARK)
    one.push()
    two.pull()
    for store in (one, two):
        restore(store.folder / "fraud", 1)
        store.push()
    assert names(url) == []


def test_a_store_that_holds_nothing_any_more_is_not_believed(url: str, tmp_path: Path) -> None:
    one = copy(url, tmp_path / "one")
    publish(FRAUD / "1", one.folder)
    one.push()
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(ServingError, match="it holds nothing any more, and held 7 files; if that is meant, remove "):
        one.pull()
    assert verify(one.folder / "fraud" / "1") == []


def test_what_other_tools_leave_in_a_store_is_left_alone(url: str, tmp_path: Path) -> None:
    one = copy(url, tmp_path / "one")
    memory, root = fsspec.filesystem("memory"), "/" + url.partition("://")[2]
    for name in (".git/HEAD", "fraud/.headrace/.gitkeep", "fraud/.DS_Store"):
        memory.pipe_file(f"{root}/{name}", b"x")
    one.pull()
    assert not (one.folder / ".git").exists()
    publish(FRAUD / "1", one.folder)
    one.push()
    assert {".git/HEAD", "fraud/.headrace/.gitkeep", "fraud/.DS_Store"} < set(names(url))


def test_a_version_is_removed_with_its_manifest_last(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = copy(url, tmp_path / "one")
    publish(FRAUD / "1", one.folder)
    one.push()
    gone: list[str] = []
    monkeypatch.setattr(Store, "_remove", lambda self, path: gone.append(path))
    one.remove(one.folder / "fraud" / "1")
    assert (gone[-1], len(gone)) == ("fraud/1/manifest.json", 7)


def test_a_copy_is_one_processs_at_a_time(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = copy(url, tmp_path)
    monkeypatch.setattr("serving.store._PATIENCE", 0.0)
    with pytest.raises(ServingError, match="another command on memory://.* has been at work"):
        copy(url, tmp_path)
    one.close()
    copy(url, tmp_path).close()

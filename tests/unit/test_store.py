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


def names(url: str) -> list[str]:
    root = url.partition("://")[2]
    return sorted(name.removeprefix(f"/{root}/") for name in fsspec.filesystem("memory").find(f"/{root}"))


def test_what_is_published_here_is_whole_there_and_elsewhere(url: str, tmp_path: Path) -> None:
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
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
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
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
    here.push()  # goes on where it was
    there.pull()
    assert verify(there.folder / "fraud" / "1") == []


def test_of_two_who_publish_at_once_one_has_the_number(url: str, tmp_path: Path) -> None:
    one, two = Store(url, tmp_path / "one"), Store(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    publish(FRAUD / "2", two.folder)
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
    one, two = Store(url, tmp_path / "one"), Store(url, tmp_path / "two")
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
    one = Store(url, tmp_path / "one")
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
    one, two = Store(url, tmp_path / "one"), Store(url, tmp_path / "two")
    publish(FRAUD / "1", one.folder)
    one.push()
    publish(FRAUD / "2", one.folder)  # and killed before it was taken over
    withdraw(one.folder / "fraud", 1, MARK)
    one.close()
    again = Store(url, tmp_path / "one")
    again.pull()
    assert sorted(path.name for path in (again.folder / "fraud").iterdir() if path.is_dir()) == [".headrace", "1"]
    again.push()
    two.pull()
    assert withdrawn(two.folder / "fraud") == {1: MARK}


def test_what_is_removed_or_changed_in_the_store_is_so_here(url: str, tmp_path: Path) -> None:
    one = Store(url, tmp_path / "one")
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
    root = "/" + url.partition("://")[2]
    fsspec.filesystem("memory").store[f"{root}/../../out"] = fsspec.implementations.memory.MemoryFile(None, None, b"x")
    store = Store(url, tmp_path / "one")
    store._list = lambda: {"../../out": "1"}  # a store may hold what its library would not list
    with pytest.raises(ServingError, match="'../../out' leads out of the repository"):
        store.pull()


@pytest.mark.parametrize(
    ("where", "sentence"), [("nowhere://x", "nowhere://x: Protocol not known: nowhere"), ("gs://x/y", "gs://x/y: .*gcsfs")]
)  # fmt: skip
def test_a_store_that_cannot_be_reached_is_one_sentence(where: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=sentence):
        Store(where, tmp_path)


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

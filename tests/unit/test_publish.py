"""Publishing: what is checked, what is written, and that it is there whole or not at all."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import serving.publish
from serving.errors import ServingError
from serving.manifest import file_hashes, read_manifest, verify
from serving.marks import Mark, withdraw
from serving.publish import publish

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FRAUD = REPOSITORY / "fraud"


def names(model: Path) -> list[str]:
    return sorted(path.name for path in model.iterdir())


def test_a_versions_folder_is_published_as_the_next_one_with_its_description(tmp_path: Path) -> None:
    for number in ("1", "2"):
        target = publish(FRAUD / "2", tmp_path)
        assert (target.parent.name, target.name) == ("fraud", number)
        assert verify(target) == []
    manifest, source = read_manifest(target), read_manifest(FRAUD / "2")
    assert manifest is not None
    assert source is not None
    assert (manifest.version, manifest.quality, manifest.data) == (2, source.quality, source.data)
    assert file_hashes(target) == file_hashes(FRAUD / "2")
    assert names(tmp_path / "fraud") == ["1", "2"]


def test_a_bare_saved_model_is_published_into_a_versions_folder(tmp_path: Path) -> None:
    bare = tmp_path / "export"
    shutil.copytree(FRAUD / "1" / "model.savedmodel", bare)
    with pytest.raises(ServingError, match="no manifest.json that names its model; name it with --model"):
        publish(bare, tmp_path / "repository")
    target = publish(bare, tmp_path / "repository", "churn", 7)
    assert names(target) == ["manifest.json", "model.savedmodel"]
    assert verify(target) == []
    assert publish(bare, tmp_path / "repository", "churn").name == "8"


def test_a_number_is_never_taken_twice(tmp_path: Path) -> None:
    publish(FRAUD / "1", tmp_path, version=3)
    with pytest.raises(ServingError, match="3: this version is there already; a version never changes"):
        publish(FRAUD / "1", tmp_path, version=3)
    withdraw(tmp_path / "fraud", 9, Mark(by="watcher", reason="", at=0.0))
    assert publish(FRAUD / "1", tmp_path).name == "10"  # 9 was there, and somebody may still ask what became of it
    assert names(tmp_path / "fraud") == [".headrace", "10", "3"]


def test_many_who_publish_at_once_get_a_number_each(tmp_path: Path) -> None:
    found: list[str] = []
    gate = threading.Barrier(6)

    def one() -> None:
        gate.wait()
        found.append(publish(FRAUD / "1", tmp_path).name)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list("123456")
    assert names(tmp_path / "fraud") == list("123456")
    for number in found:
        manifest = read_manifest(tmp_path / "fraud" / number)
        assert manifest is not None
        assert str(manifest.version) == number
        assert verify(tmp_path / "fraud" / number) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "golden.json").write_text("{}"), "its content is not what the manifest says"),
        (lambda folder: shutil.rmtree(folder / "model.savedmodel"), "no SavedModel"),
        (lambda folder: (folder / "manifest.json").write_text('{"model": 3}'), "manifest.json: model: "),
        (lambda folder: (folder / "x").symlink_to("/etc"), "leads out of the repository"),
    ],
)
def test_what_is_no_whole_version_is_not_published(tmp_path: Path, change: Any, sentence: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(FRAUD / "1", source)
    change(source)
    with pytest.raises(ServingError, match=sentence):
        publish(source, tmp_path / "repository", "fraud")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("model", "version"),
    [("a/b", None), (".x", None), ("", None), ("a b", None), ("-x", None), ("m", 10**19), ("m", -1)],
)
def test_names_and_numbers_that_cannot_be_are_refused(tmp_path: Path, model: str, version: int | None) -> None:
    with pytest.raises(ServingError, match="cannot be a "):
        publish(FRAUD / "1", tmp_path, model, version)
    assert names(tmp_path) == []


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    publish(FRAUD / "1", tmp_path)
    monkeypatch.setattr(serving.publish, "_flush", full)
    with pytest.raises(ServingError, match="fraud: cannot be written: No space left on device"):
        publish(FRAUD / "2", tmp_path)
    assert names(tmp_path / "fraud") == ["1"]


class Killed(BaseException):
    """kill -9."""


def test_a_publisher_that_is_killed_at_any_step_leaves_a_whole_version_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: getattr(os, name) for name in ("mkdir", "rename", "open", "fsync")}
    for kill in range(1, 500):
        repository = tmp_path / str(kill)
        repository.mkdir()
        count = 0

        def counting(name: str, kill: int = kill) -> Any:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == kill:
                    raise Killed
                return kept[name](*args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            for name in kept:
                patch.setattr(os, name, counting(name))
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # who is killed does not clean up
            try:
                publish(FRAUD / "1", repository)
                finished = True
            except Killed:
                finished = False
        folder = repository / "fraud"
        versions = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
        assert [verify(version) for version in versions] in ([], [[]])
        if finished:
            break
    assert kill > 10
    assert [path.name for path in versions] == ["1"]


def test_what_a_killed_publisher_has_left_is_cleared_a_day_later(tmp_path: Path) -> None:
    gone, young = tmp_path / "fraud" / ".incoming-abc", tmp_path / "fraud" / ".incoming-def"
    for folder, age in ((gone, 90_000), (young, 60)):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age, time.time() - age))
    publish(FRAUD / "1", tmp_path)
    assert names(tmp_path / "fraud") == [young.name, "1"]


def test_a_folder_that_is_no_version_does_not_keep_anybody_from_publishing(tmp_path: Path) -> None:
    publish(FRAUD / "1", tmp_path)
    (tmp_path / "fraud" / "7").mkdir()
    assert publish(FRAUD / "2", tmp_path).name == "8"


def test_the_manifest_is_readable_by_people(tmp_path: Path) -> None:
    text = (publish(FRAUD / "1", tmp_path) / "manifest.json").read_text()
    assert json.loads(text)["files"]
    assert text.count("\n") > 20

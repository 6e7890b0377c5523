"""The life of model versions on a real Triton: dropped in, refused, rolled back, pinned, by the commands users type."""

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.rig.process import ServerProcess
from headrace.rig.served import ServedRepository
from headrace.rig.triton import TritonRig
from serving.control import TritonControl
from serving.formats import load
from serving.golden import FILE as GOLDEN
from serving.marks import withdrawn
from tests import onnx_models
from tests.served import Served
from tests.support import headrace, until

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FRAUD = REPOSITORY / "fraud"


def test_a_version_is_published_rolled_back_restored_and_pinned(served: Served) -> None:
    repository, at = str(served.repository), ("--server", served.address)
    before = max(served.ready)
    done = headrace("models", "publish", str(FRAUD / "2"), repository, *at)
    assert done.returncode == 0, done.stderr
    new = max(served.ready)
    assert done.stdout.startswith(f"published fraud {new}\nfraud: {new} serves, ")
    assert served.ready == {before, new}

    done = headrace("models", "rollback", repository, "fraud", "--reason", "worse than before", *at)
    assert done.returncode == 0, done.stderr
    assert f"fraud: {new} is withdrawn, {before} serves" in done.stdout
    assert max(served.ready) == before
    again = headrace("models", "rollback", repository, "fraud")
    assert again.returncode == 1
    assert "no version before" in again.stderr

    listed = json.loads(headrace("models", "list", repository, *at, "--json").stdout)
    state = {row["version"]: row["state"] for row in listed}
    assert "withdrawn: worse than before" in state[new]
    assert state[before] == "READY, serves"
    assert {row["version"]: row["rows"] is not None for row in listed}[before]

    done = headrace("models", "restore", repository, "fraud", str(new), *at)
    assert (done.returncode, max(served.ready)) == (0, new), done.stderr
    done = headrace("models", "pin", repository, "fraud", str(before), *at)
    assert (done.returncode, max(served.ready)) == (0, before), done.stderr
    assert "pinned" in headrace("models", "list", repository).stdout
    done = headrace("models", "pin", repository, "fraud", "newest", *at)
    assert (done.returncode, max(served.ready)) == (0, new), done.stderr


def test_a_model_may_change_its_framework_from_one_version_to_the_next(served: Served, tmp_path: Path) -> None:
    onnx_models.dense(tmp_path / "model.onnx", features=9)
    done = headrace(
        "models", "publish", str(tmp_path), str(served.repository), "--model", "fraud", "--server", served.address
    )
    assert done.returncode == 0, done.stderr
    rows = np.ones((3, 9), np.float32)
    expected = load(tmp_path).run({"features": rows})["score"]
    answer = served.control.ask("fraud", max(served.ready), {"features": rows}, ["score"])["score"]
    np.testing.assert_allclose(answer.ravel(), expected, rtol=1e-6)
    done = headrace("models", "rollback", str(served.repository), "fraud", "--server", served.address)
    assert done.returncode == 0, done.stderr
    assert served.answers()


def test_versions_are_compared_verified_and_pruned(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for number in (1, 2, 1, 2):
        assert headrace("models", "publish", str(FRAUD / str(number)), str(repository)).returncode == 0
    found = json.loads(headrace("models", "diff", str(repository), "fraud", "1", "2", "--json").stdout)
    assert found["roc_auc"][0] < found["roc_auc"][1]
    assert found["inputs"] == ["features FP32[-1, 9]"] * 2
    assert 0.01 < found["score, largest difference"][1] < 1
    same = json.loads(headrace("models", "diff", str(repository), "fraud", "1", "3", "--json").stdout)
    assert same["score, largest difference"][1] == 0

    assert headrace("models", "verify", str(repository)).returncode == 0
    (repository / "fraud" / "2" / GOLDEN).write_text("{}")
    done = headrace("models", "verify", str(repository))
    assert (done.returncode, "its content is not what the manifest says" in done.stdout) == (1, True)

    done = headrace("models", "prune", str(repository), "--keep", "2")
    assert "nothing is removed yet; --yes removes them" in done.stdout
    assert headrace("models", "prune", str(repository), "--keep", "2", "--yes").returncode == 0
    assert sorted(path.name for path in (repository / "fraud").iterdir()) == ["3", "4"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["publish", "/none", "{r}"], "/none: no such folder; publish takes a SavedModel's folder, or a version's"),
        (["list", "/none"], "/none: no such model repository; a repository is a folder of models"),
        (["rollback", "{r}", "churn"], "no model 'churn'; there are credit, fraud, maintenance, personalization"),
        (["pin", "{r}", "fraud", "9"], "no version 9; there are 1, 2"),
        (["diff", "{r}", "fraud", "1", "9"], "no version 9; there are 1, 2"),
        (["restore", "{r}", "fraud", "1"], "version 1 is not withdrawn; none is"),
        (["list", "{r}", "--server", "127.0.0.1:9"], "127.0.0.1:9: it does not answer: "),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = headrace("models", *(part.format(r=REPOSITORY) for part in arguments))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_loads_what_is_dropped_in_and_ends_in_order(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    command = [sys.executable, "-m", "headrace", "serve", str(repository)]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with ServerProcess("serve", [*command, *ports], tmp_path / "serve.log") as process:
        process.wait_ready(lambda: "ready " in process.log.read_text(), 60)
        (address,) = (line.split()[1] for line in process.log.read_text().splitlines() if line.startswith("ready "))
        control = TritonControl(address)
        assert control.ready() == {"fraud": {1}}
        shutil.copytree(FRAUD / "2", repository / "fraud" / "2")
        until(lambda: control.ready() == {"fraud": {1, 2}}, 60, "version 2 is loaded")
        control.close()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert '"version loaded"' in process.log.read_text()


def test_serve_says_why_nothing_can_be_served(tmp_path: Path) -> None:
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    done = headrace("serve", str(tmp_path), *ports, timeout=60)
    assert done.returncode == 1
    assert "no model in it; expected <model>/<version>/model.savedmodel/" in done.stderr
    (tmp_path / "fraud" / "1").mkdir(parents=True)
    done = headrace("serve", str(tmp_path), *ports, timeout=60)
    assert done.returncode == 1
    assert "no SavedModel and no ONNX model; expected model.savedmodel/saved_model.pb" in done.stderr.splitlines()[-1]


def test_a_watcher_beside_a_triton_is_killed_and_another_goes_on(tmp_path: Path) -> None:
    repository, view = tmp_path / "repository", tmp_path / "view"
    view.mkdir()
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    with TritonRig(view, models=()) as triton:
        command = [sys.executable, "-m", "headrace", "models", "watch", str(repository), "--server", triton.address]
        options = ["--view", str(view), "--observe", "127.0.0.1:0"]
        control = TritonControl(triton.address)
        with ServerProcess("watch", [*command, *options], tmp_path / "one.log") as process:
            process.wait_ready(lambda: "\nready" in "\n" + process.log.read_text(), 60)
            shutil.copytree(FRAUD / "2", repository / "fraud" / "2")
            until(lambda: (view / "fraud" / "2").is_dir(), 60, "version 2 is on its way")
            process.kill()
        assert control.ready()["fraud"] >= {1}
        with ServerProcess("watch", [*command, *options], tmp_path / "two.log") as process:
            until(lambda: control.ready() == {"fraud": {1, 2}}, 60, "the next one goes on")
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        control.close()


def test_a_repository_in_an_object_store_is_served_published_to_and_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/store/models"
    assert headrace("models", "publish", str(FRAUD / "1"), url).stdout == "published fraud 1\n"
    with ServedRepository(url, settle=1.0) as served:
        control = TritonControl(served.address)
        assert control.ready() == {"fraud": {1}}
        done = headrace("models", "publish", str(FRAUD / "2"), url, "--server", served.address)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("published fraud 2\nfraud: 2 serves, ")
        done = headrace("models", "rollback", url, "fraud", "--server", served.address)
        assert done.returncode == 0, done.stderr
        assert control.ready() == {"fraud": {1}}

        def states() -> set[tuple[int, str]]:
            listed = json.loads(headrace("models", "list", "--server", served.address, "--json").stdout)
            return {(row["version"], row["state"].partition(":")[0]) for row in listed}

        until(lambda: states() == {(1, "READY"), (2, "UNAVAILABLE")})  # unloading takes a moment
        control.close()
    assert "withdrawn: taken back by hand" in headrace("models", "list", url).stdout
    assert headrace("models", "prune", url).returncode == 0
    assert "no model 'churn'; there are fraud" in headrace("models", "pin", url, "churn", "1").stderr


def test_two_servers_of_one_repository_come_to_the_same(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    with ServedRepository(repository, settle=1.0) as one, ServedRepository(repository, settle=1.0) as two:
        controls = [TritonControl(served.address) for served in (one, two)]

        def both() -> list[dict[str, set[int]]]:
            return [control.ready() for control in controls]

        assert both() == [{"fraud": {1}}] * 2
        shutil.copytree(FRAUD / "2", repository / "fraud" / "2")
        until(lambda: both() == [{"fraud": {1, 2}}] * 2, 60, "both load version 2")
        bad = repository / "fraud" / ".3"
        shutil.copytree(FRAUD / "2", bad)
        shutil.copy2(FRAUD / "1" / GOLDEN, bad / GOLDEN)
        (bad / "manifest.json").unlink()
        bad.rename(repository / "fraud" / "3")
        until(lambda: 3 in withdrawn(repository / "fraud"), 60, "one of them refuses version 3")
        done = headrace("models", "rollback", str(repository), "fraud", "--server", one.address)
        assert done.returncode == 0, done.stderr
        until(lambda: both() == [{"fraud": {1}}] * 2, 60, "both roll back")
        for control in controls:
            control.close()

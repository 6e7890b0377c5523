"""Everything that can be wrong with a version, on a real Triton: it is refused with its reason, the one before serves on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.rig.process import ServerProcess
from headrace.rig.triton import TritonRig
from serving.completeness import misnamed
from serving.control import TritonControl
from serving.golden import FILE as GOLDEN
from serving.manifest import verify
from serving.marks import withdrawn
from tests.served import Served
from tests.spoiled import SPOILED
from tests.support import Broker, headrace, pipeline, running, until, values

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FRAUD = REPOSITORY / "fraud"

_BAD = """
import sys, tensorflow as tf
def save(name, body):
    class Bad(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 9], tf.float32, "features")])
        def score(self, features):
            return {"score": body(features)}
    bad = Bad()
    tf.saved_model.save(bad, f"{sys.argv[1]}/{name}/model.savedmodel", signatures={"serving_default": bad.score})
def dies(features):
    with tf.control_dependencies([tf.raw_ops.Abort(error_msg="as bad as can be")]):
        return features[:, 0]
def later(features):
    # By way of the time, so that it is read at every call, and not once for all.
    path = tf.strings.regex_replace(tf.as_string(tf.timestamp()), ".+", sys.argv[1] + "/fuse")
    fuse = tf.io.read_file(path)
    return tf.cond(tf.equal(fuse, "lit"), lambda: dies(features), lambda: features[:, 0])
save("later", later)
save("nan", lambda features: features[:, 0] / 0 * 0)
save("dies", dies)
"""


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    subprocess.run([sys.executable, "-c", _BAD, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.values(), ids=SPOILED)
def test_a_version_that_is_wrong_is_refused_and_the_one_before_serves_on(
    served: Served, spoil: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    # It is spoiled where it is, as it would be; only its number is not one before that.
    number = served.next()
    aside = served.model / f".{number}"
    shutil.copytree(FRAUD / "2", aside)
    (aside / "manifest.json").unlink()
    spoil(aside)
    aside.rename(served.model / str(number))
    assert reason.partition(";")[0] in served.refused(number)


def test_a_version_that_answers_its_golden_requests_with_nan_is_refused(served: Served, bad: Path) -> None:
    shutil.copy2(FRAUD / "1" / GOLDEN, bad / "nan")
    reason = served.refused(served.drop(bad / "nan"))
    assert ": model 'fraud' cannot be loaded: golden requests: output 'score': value 0 is nan where " in reason
    assert "At: " not in reason


def test_a_version_that_kills_its_process_while_it_loads_is_refused(served: Served, bad: Path) -> None:
    assert "cannot be loaded" in served.refused(served.drop(bad / "dies"))


def test_a_version_with_another_signature_is_refused(served: Served) -> None:
    number = served.next()
    shutil.copytree(REPOSITORY / "personalization" / "1", served.model / str(number))
    assert "its inputs are item, user in place of features" in served.refused(number)


def test_a_version_whose_manifest_does_not_match_is_refused(served: Served) -> None:
    number = served.next()
    aside = served.model / f".{number}"
    shutil.copytree(FRAUD / "2", aside)
    (aside / GOLDEN).write_text("{}")
    aside.rename(served.model / str(number))
    assert "golden.json: its content is not what the manifest says" in served.refused(number)


def test_what_is_called_by_no_version_number_is_never_loaded(served: Served) -> None:
    before, names = served.ready, ["-1", "0", "01", "1" * 20, "abc"]
    for name in names:
        shutil.copytree(FRAUD / "2", served.model / name)
    until(lambda: sorted(served.misnamed) == names, 30, "each is named by the watcher")
    assert misnamed(served.model) == names
    assert served.ready == before
    assert served.answers()
    done = headrace("models", "verify", str(served.repository))
    for name in names:
        assert f"{served.model / name}: no version; a version is called by a number from 1" in done.stderr
        shutil.rmtree(served.model / name)


@pytest.mark.parametrize("seconds", [0, 4_102_444_800], ids=["from 1970", "from 2100"])
def test_the_age_of_files_is_nobodys_business(served: Served, seconds: int) -> None:
    """Clocks jump, and copies keep times: a version is judged by what changes while it is looked at."""
    number = served.next()
    aside = served.model / f".{number}"
    shutil.copytree(FRAUD / "1", aside)
    (aside / "manifest.json").unlink()
    for path in (*aside.rglob("*"), aside):
        os.utime(path, (seconds, seconds))
    aside.rename(served.model / str(number))
    until(lambda: max(served.ready) == number, 60, "it serves")
    after = served.drop(FRAUD / "1")
    until(lambda: max(served.ready) == after, 60, "so does the next one, whose files are of today")


def test_two_who_publish_at_once_get_a_version_each(served: Served) -> None:
    command = [sys.executable, "-m", "headrace", "models", "publish", str(FRAUD / "2"), str(served.repository)]
    first = served.next()
    publishers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {publisher.communicate(timeout=60)[0].splitlines()[0] for publisher in publishers}
    numbers = list(range(first, first + 4))
    assert told == {f"published fraud {number}" for number in numbers}
    assert [verify(served.model / str(number)) for number in numbers] == [[]] * 4
    until(lambda: max(served.ready) == numbers[-1], 60, "the last one serves")
    assert served.answers()


def test_a_version_that_kills_its_process_later_is_taken_back_and_no_event_fails(
    served: Served, bad: Path, broker: Broker, tmp_path: Path
) -> None:
    (bad / "fuse").write_text("")
    script = (
        "import sys, numpy as np; from serving.export import export; "
        "export(sys.argv[1], sys.argv[2], 'fraud', golden=np.ones((2, 9), 'f'))"
    )
    source = bad / "later" / "model.savedmodel"
    subprocess.run([sys.executable, "-c", script, str(source), str(served.repository)], check=True, capture_output=True)
    number = served.next() - 1
    until(lambda: max(served.ready) == number or withdrawn(served.model).get(number), 60, "it serves")
    assert withdrawn(served.model).get(number) is None
    before = sorted(served.ready)[-2]

    topics = broker.topics(partitions=1)
    features = [f"f{place}" for place in range(9)]

    def produce(numbers: range) -> None:
        events = [json.dumps({"id": n} | dict.fromkeys(features, 1)).encode() for n in numbers]
        broker.produce(topics["events"], [(0, b"k", event) for event in events])

    mapped = {"model": {"inputs": {"features": features}}, "result": {"copy": ["id"]}}
    with running(pipeline(broker.bootstrap, served.address, "fraud", topics, **mapped), tmp_path) as bridge:
        produce(range(1000))
        until(lambda: broker.count(topics["results"]) == 1000)
        (bad / "fuse").write_text("lit")
        produce(range(1000, 3000))
        until(lambda: number in withdrawn(served.model), 60, "it is taken back")
        until(lambda: broker.count(topics["results"]) == 3000, 60, "the one before does its work")
        assert bridge.terminate() == 0
    assert withdrawn(served.model)[number].reason.startswith("while it served: ")
    results = values(broker.read(topics["results"]))
    assert [result["id"] for result in results] == list(range(3000))
    assert {result["model_version"] for result in results[:1000]} == {str(number)}
    assert {result["model_version"] for result in results[1000:]} == {str(before)}
    assert broker.read(topics["letters"]) == []


def test_what_may_not_be_read_is_refused_until_it_may(tmp_path: Path) -> None:
    repository, view = tmp_path / "repository", tmp_path / "view"
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    shutil.copytree(FRAUD / "2", repository / "fraud" / "2")
    hidden = repository / "fraud" / "2" / GOLDEN
    hidden.chmod(0)
    view.mkdir()
    with TritonRig(view, models=()) as triton:
        command = [sys.executable, "-m", "headrace", "models", "watch", str(repository), "--server", triton.address]
        if os.geteuid() == 0:  # root reads everything, unless it gives that up
            command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
        control = TritonControl(triton.address)
        with ServerProcess("watch", [*command, "--view", str(view)], tmp_path / "log") as process:
            until(lambda: 2 in withdrawn(repository / "fraud"), 60, "version 2 is refused")
            assert withdrawn(repository / "fraud")[2].reason == f"{hidden}: cannot be read: permission denied"
            assert control.ready() == {"fraud": {1}}
            hidden.chmod(0o644)
            until(lambda: control.ready() == {"fraud": {1, 2}}, 60, "version 2 is loaded")
            process.stop()
        control.close()


_FULL = """
import os, shutil, subprocess, sys
from pathlib import Path
from headrace.rig.served import ServedRepository
from serving.control import TritonControl
fraud, repository = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(repository)], check=True)
publish = [sys.executable, "-m", "headrace", "models", "publish", str(fraud / "2"), str(repository)]
subprocess.run([*publish[:-2], str(fraud / "1"), str(repository)], check=True)
with ServedRepository(repository, settle=1.0) as served:
    control = TritonControl(served.address)
    room = os.statvfs(repository)
    (repository / "fraud" / ".big").write_bytes(b"x" * (room.f_bavail * room.f_bsize - 30_000))
    done = subprocess.run(publish, capture_output=True, text=True)
    print(done.returncode, done.stderr.strip())
    print(sorted(path.name for path in (repository / "fraud").iterdir()), control.ready())
    (repository / "fraud" / ".big").unlink()
    done = subprocess.run([*publish, "--server", served.address], capture_output=True, text=True)
    print(done.returncode, control.ready())
"""


def test_a_disk_that_fills_up_while_publishing_leaves_what_was_there(tmp_path: Path) -> None:
    """In a mount namespace of its own, on a file system of 1 MiB."""
    repository = tmp_path / "repository"
    repository.mkdir()
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-c",
        _FULL,
        str(FRAUD),
        str(repository),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert (
        f"1 {repository / 'fraud'}: cannot be written: No space left on device\n['.big', '1'] {{'fraud': {{1}}}}\n"
        in told
    )
    assert told.endswith("0 {'fraud': {1, 2}}\n")


def test_whoever_publishes_may_be_killed_at_any_step(served: Served, request: pytest.FixtureRequest) -> None:
    """With SIGKILL, by itself: see tests/killed.py."""
    stride = "1" if request.config.getoption("--all-rows") else "31"
    command = [sys.executable, "-m", "tests.killed", "publish", str(FRAUD / "1"), str(served.repository), stride]
    first = served.next()
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5
    new = range(first, served.next())
    assert [verify(served.model / str(number)) for number in new] == [[]] * len(new)
    until(lambda: max(served.ready) == new[-1], 60, "the last one serves")
    assert served.answers()


def test_a_watcher_may_be_killed_at_any_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With SIGKILL, by itself: see tests/killed.py. What serves serves on, and the next watcher finishes the work."""
    repository, view = tmp_path / "repository", tmp_path / "view"
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    view.mkdir()
    stride = "7" if request.config.getoption("--all-rows") else "97"
    with TritonRig(view, models=()) as triton:
        places = [str(repository), str(view), triton.address, str(FRAUD / "1"), str(FRAUD / "2")]
        command = [sys.executable, "-m", "tests.killed", "watch", *places, stride]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.replace("\nthen", " then").splitlines()]
    assert len(lines) > 5
    for _step, _killed, number, *told in lines:
        left, _, after = " ".join(told).partition(" then ")
        assert left, "something serves"
        assert after.split() == [str(int(number) - 1), number]

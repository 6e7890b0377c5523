"""The fault catalogue, rows about model versions: a real Triton whose repository changes while events flow."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.rig.triton import TritonRig
from serving.control import TritonControl
from serving.errors import ServingError
from serving.publish import publish
from tests.faults.world import World, world
from tests.support import Broker, until

RATE = 500
both = pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
_STAMPED = """
import sys, tensorflow as tf
class Stamped(tf.Module):
    def __init__(self, version):
        self.version = version
        self.weights = tf.Variable(tf.ones([2000, 100]))  # a file worth cutting off
    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
    def double(self, x):
        return {"y": x * 2, "made_by": tf.fill([tf.shape(x)[0]], tf.constant(self.version, tf.int32))}
for version in (1, 2, 3):
    module = Stamped(version)
    path = f"{sys.argv[1]}/{version}/model.savedmodel"
    tf.saved_model.save(module, path, signatures={"serving_default": module.double})
"""


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of a model that doubles, and says in its answer which of them it is."""
    folder = tmp_path_factory.mktemp("stamped")
    subprocess.run([sys.executable, "-c", _STAMPED, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def served(stamped: Path, tmp_path: Path) -> Iterator[tuple[TritonRig, TritonControl, Path]]:
    """A Triton of its own with version 1, and the model's folder in its repository."""
    model = tmp_path / "repository" / "stamped"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text(
        'platform: "tensorflow_savedmodel"\nversion_policy: { latest: { num_versions: 2 } }\n'
    )
    publish(stamped / "1", model.parent, model.name)
    with TritonRig(model.parent) as triton:
        control = TritonControl(triton.address)
        yield triton, control, model
        control.close()


def versions(w: World) -> set[str]:
    """The versions that made results so far; each result says the truth about its own."""
    found = [json.loads(record.value) for record in w.broker.read(w.topics["results"])]
    assert all(str(value["made_by"]) == value["model_version"] for value in found)
    return {value["model_version"] for value in found}


def served_by(w: World, version: str) -> None:
    """Until the newest result is made by `version`."""

    def newest() -> bool:
        found = [json.loads(record.value) for record in w.broker.read(w.topics["results"])]
        return bool(found) and max(found, key=lambda value: value["id"])["model_version"] == version

    until(newest, 60, f"version {version} makes the results; {w.report()}")


@both
def test_row_26_a_version_is_swapped_rolled_back_corrupted_and_half_copied(
    broker: Broker,
    served: tuple[TritonRig, TritonControl, Path],
    stamped: Path,
    tmp_path: Path,
    seed: int,
    delivery: str,
) -> None:
    triton, control, model = served
    outputs = {"y": "y", "made_by": "made_by"}
    options = {"model": {"inputs": {"x": "x"}, "outputs": outputs, "timeout": "2s"}, "model_name": "stamped"}
    with world(broker, triton.address, tmp_path, seed, delivery, **options) as w:
        bridge = w.start()
        w.start_writing(RATE)
        w.until_done(200)
        w.fault("version 2 is swapped in")
        publish(stamped / "2", model.parent, model.name)
        control.load("stamped")
        served_by(w, "2")

        w.fault("half of version 3 is copied")
        half = model / "3"
        shutil.copytree(stamped / "3", half)
        (data,) = half.rglob("variables.data-*")
        data.write_bytes(data.read_bytes()[: w.rng.randrange(100, 100_000)])
        with pytest.raises(ServingError, match="cannot be loaded"):
            control.load("stamped")
        before = w.results()
        w.until_done(before + 200)
        assert versions(w) == {"1", "2"}

        w.fault("version 3 is corrupt")
        (half / "model.savedmodel" / "saved_model.pb").write_bytes(b"no graph")
        with pytest.raises(ServingError, match="cannot be loaded"):
            control.load("stamped")
        before = w.results()
        w.until_done(before + 200)
        assert versions(w) == {"1", "2"}

        w.fault("version 2 is rolled back")
        shutil.rmtree(half)
        shutil.rmtree(model / "2")
        control.load("stamped")
        served_by(w, "1")
        verdict = w.finish()
        assert (verdict.letters, verdict.results) == (0, verdict.events)
        assert versions(w) == {"1", "2"}
        assert bridge.process.running


@both
def test_row_27_the_disk_is_full_while_a_version_is_published(
    broker: Broker,
    served: tuple[TritonRig, TritonControl, Path],
    stamped: Path,
    tmp_path: Path,
    seed: int,
    delivery: str,
) -> None:
    triton, control, model = served
    options = {"model": {"inputs": {"x": "x"}, "outputs": {"y": "y"}}, "model_name": "stamped"}
    # A process that may write no larger file meets the same as on a full disk: its copy breaks off in the middle.
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from serving.errors import ServingError
        from serving.publish import publish
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            model = Path(sys.argv[2])
            publish(Path(sys.argv[1]), model.parent, model.name)
        except ServingError as error:
            print(error)
        else:
            print("published")
        """
    )
    with world(broker, triton.address, tmp_path, seed, delivery, **options) as w:
        w.start()
        w.start_writing(RATE)
        w.until_done(200)
        w.fault("the disk is full while version 2 is published")
        most = w.rng.randrange(100_000, 700_000)
        command = [sys.executable, "-c", script, str(stamped / "2"), str(model), str(most)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"{model}: cannot be written" in done.stdout
        assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]  # nothing is left of it
        control.load("stamped")
        before = w.results()
        w.until_done(before + 200)
        verdict = w.finish()
        assert (verdict.letters, verdict.results) == (0, verdict.events)
        assert {json.loads(r.value)["model_version"] for r in broker.read(w.topics["results"])} == {"1"}

"""What controls a model server: one suite for the fake, a real Triton, and TensorFlow Serving's own messages."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from bridge.config.model import Model
from bridge.infer.tfserving import TensorFlowServing
from headrace.rig.triton import TritonRig
from serving.control import TritonControl
from serving.errors import ServerAway, ServingError
from serving.fake import FakeControl
from serving.formats import read_signature
from serving.golden import ask_golden, read_golden
from serving.tfserving import TensorFlowServingControl
from serving.view import View
from serving.watch import Control
from tests.support import serving_of, until

FRAUD = Path(__file__).parents[2] / "model_repository" / "fraud"
CONFIG = 'platform: "tensorflow_savedmodel"\nversion_policy { all { } }\ninstance_group { count: 1 kind: KIND_CPU }\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TritonRig]]:
    """A real Triton that has loaded nothing, and its repository."""
    root = tmp_path_factory.mktemp("control")
    with TritonRig(root, models=()) as triton:
        yield root, triton


@pytest.fixture(scope="module")
def tensorflow_serving_of_none(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of TensorFlow Serving's API that has loaded nothing."""
    with serving_of(tmp_path_factory.mktemp("none")) as address:
        yield address


@pytest.fixture(params=["fake", "triton", "tfserving"])
def control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Control, View, str]]:
    """A control, the view of its server, and a model in it that has no version yet."""
    name = f"fraud-{request.node.name.partition('[')[0]}"
    if request.param == "fake":
        made: FakeControl | TritonControl | TensorFlowServingControl = FakeControl(tmp_path)
        root = tmp_path
    elif request.param == "tfserving":
        made = TensorFlowServingControl(request.getfixturevalue("tensorflow_serving_of_none"), tmp_path)
        root = tmp_path
    else:
        root, triton = request.getfixturevalue("server")
        made = TritonControl(triton.address)
    view = View(root, flat=request.param == "tfserving")
    with view.configured(name, CONFIG):
        pass
    if isinstance(made, FakeControl):
        made.answer = lambda model, version, inputs: {"score": np.full(8, version)}
    yield made, view, name
    if not isinstance(made, FakeControl):
        made.close()
    view.close()


def test_versions_come_and_go_one_by_one(control: tuple[Control, View, str]) -> None:
    made, view, name = control
    assert made.ready().get(name) is None
    view.add(name, 1, FRAUD / "1")
    made.load(name)
    assert made.ready()[name] == {1}
    view.add(name, 2, FRAUD / "2")
    made.load(name)
    assert made.ready()[name] == {1, 2}
    made.unload(name, {2}, lambda: view.drop(name, 2))
    assert made.ready()[name] == {1}
    assert view.versions(name) == {1}


def test_one_that_cannot_be_loaded_leaves_what_serves_and_can_be_taken_out(
    control: tuple[Control, View, str], tmp_path: Path
) -> None:
    made, view, name = control
    view.add(name, 1, FRAUD / "1")
    made.load(name)
    view.add(name, 2, FRAUD / "2")
    next((view.root / name / "2").rglob("saved_model.pb")).write_bytes(b"no graph")
    with pytest.raises(ServingError, match="cannot be loaded: ") as caught:
        made.load(name)
    assert not isinstance(caught.value, ServerAway)
    assert made.ready()[name] == {1}
    view.drop(name, 2)
    view.add(name, 3, FRAUD / "2")
    made.load(name)
    assert made.ready()[name] == {1, 3}


def test_a_version_can_be_asked(control: tuple[Control, View, str]) -> None:
    made, view, name = control
    view.add(name, 1, FRAUD / "1")
    made.load(name)
    rows = np.zeros((8, 9), np.float32)
    assert made.ask(name, 1, {"features": rows}, ["score"])["score"].size == 8
    with pytest.raises(ServingError, match="does not answer|NOT_FOUND"):
        made.ask(name, 2, {"features": rows}, ["score"])


@pytest.mark.parametrize(
    "make",
    [
        FakeControl,
        lambda root: TritonControl("127.0.0.1:9"),
        lambda root: TensorFlowServingControl("127.0.0.1:9", root),
    ],
    ids=["fake", "triton", "tfserving"],
)
def test_one_that_is_not_there_is_away(make: Callable[[Path], Control], tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "m").mkdir()
    if isinstance(made, FakeControl):
        made.available = False
    for call in (made.ready, lambda: made.load("m"), lambda: made.ask("m", 1, {"x": np.zeros(1)}, ["y"])):
        with pytest.raises(ServerAway):
            call()
    if not isinstance(made, FakeControl):
        made.close()


def test_a_scalar_a_row_and_more_rows_than_one_call_takes_are_asked(server: tuple[Path, TritonRig]) -> None:
    root, triton = server
    view, made = View(root), TritonControl(triton.address)
    source = FRAUD.parent / "personalization" / "2"
    with view.configured("films", CONFIG + "max_batch_size: 3\n"):
        pass
    view.add("films", 2, source)
    made.load("films")
    golden = read_golden(source)
    assert golden is not None
    signature = read_signature(source)
    ask_golden(golden, signature, lambda inputs: made.ask("films", 2, inputs, list(golden.outputs)))
    made.close()
    view.close()


def test_a_tensorflow_serving_is_asked_by_a_label_that_moves_to_what_has_proved_itself(
    tensorflow_serving_of_none: str, tmp_path: Path
) -> None:
    made, view = TensorFlowServingControl(tensorflow_serving_of_none, tmp_path), View(tmp_path, flat=True)
    with view.configured("labelled", CONFIG):
        pass

    def stable() -> list[str]:
        model = Model(
            server="tfserving", address=tensorflow_serving_of_none, name="labelled", version={"label": "stable"}
        )

        async def asked() -> str:
            server = TensorFlowServing(model)
            try:
                described = await server.describe()
                rows = {"features": [bytes(36)]}
                return (await server.infer(described, rows, 1, ["score"])).version
            finally:
                await server.close()

        return [asyncio.run(asked())]

    view.add("labelled", 1, FRAUD / "1")
    made.load("labelled")
    assert stable() == ["1"]
    view.add("labelled", 2, FRAUD / "2")
    (tmp_path / "labelled" / "2" / "golden.json").write_text((FRAUD / "1" / "golden.json").read_text())
    with pytest.raises(ServingError, match="golden requests: output 'score'"):
        made.load("labelled")
    assert (stable(), made.ready()) == (["1"], {"labelled": {1}})
    view.drop("labelled", 2)
    view.add("labelled", 3, FRAUD / "2")
    made.load("labelled")
    assert (stable(), made.ready()) == (["3"], {"labelled": {1, 3}})
    made.unload("labelled", {3}, lambda: view.drop("labelled", 3))
    assert (stable(), made.ready()) == (["1"], {"labelled": {1}})
    # A watcher that was killed before the label moved: the next one does not take the version for proved.
    view.add("labelled", 4, FRAUD / "2")
    made._reload({"labelled": ({1, 4}, 1)})
    assert made.ready() == {"labelled": {1}}
    made.load("labelled")
    assert (stable(), made.ready()) == (["4"], {"labelled": {1, 4}})
    made.close()
    view.close()


def test_a_real_triton_leaves_a_version_alone_when_another_comes_or_goes(server: tuple[Path, TritonRig]) -> None:
    root, triton = server
    view, made = View(root), TritonControl(triton.address)
    with view.configured("alone", CONFIG):
        pass

    def processes() -> set[int]:
        return {child.pid for child in psutil.Process(triton.process.pid).children(recursive=True)}

    others = processes()
    view.add("alone", 1, FRAUD / "1")
    made.load("alone")
    first = processes() - others
    assert len(first) == 1
    view.add("alone", 2, FRAUD / "2")
    made.load("alone")
    assert first < processes() - others
    made.unload("alone", {2}, lambda: view.drop("alone", 2))
    until(lambda: processes() - others == first, 30, "version 2 has gone, and 1 is the process it was")
    made.close()
    view.close()

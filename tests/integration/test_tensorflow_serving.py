"""TensorFlow Serving's protocol: the same pipeline with the same results as on Triton; labels; the official messages."""

import asyncio
import gzip
import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from bridge.config.model import Model
from bridge.infer import Disposition, InferenceError
from bridge.infer.tfserving import TensorFlowServing
from headrace.rig.process import ServerProcess
from headrace.rig.triton import TritonRig
from serving.tfserving import TensorFlowServingControl
from tests.support import Broker, headrace, pipeline, running, serving_of, until

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FRAUD = REPOSITORY / "fraud"
PIPELINES = Path(__file__).parents[2] / "headrace" / "demo" / "pipelines"


def run(
    broker: Broker, tmp_path: Path, address: str, name: str, events: list[Any], batch: Any = None, **model: Any
) -> list[bytes]:
    """The results of a pipeline, in the order of the events' ids."""
    topics = broker.topics()
    broker.produce(topics["events"], [(n % 3, str(n).encode(), json.dumps(e).encode()) for n, e in enumerate(events)])
    config = pipeline(broker.bootstrap, address, name, topics, result={"copy": ["id"]}, model=model, batch=batch or {})
    (tmp_path / topics["events"]).mkdir()
    with running(config, tmp_path / topics["events"]) as bridge:
        until(lambda: broker.count(topics["results"], topics["letters"]) == len(events))
        assert bridge.terminate() == 0
    assert broker.count(topics["letters"]) == 0
    return sorted(record.value for record in broker.read(topics["results"]))


def test_the_results_are_those_of_triton_to_the_bit(
    broker: Broker, triton: TritonRig, tensorflow_serving: str, tmp_path: Path
) -> None:
    features = {"inputs": {"features": [f"f{n}" for n in range(30)]}}
    events = [{"id": n, **{f"f{i}": (n * 31 + i) / 7 for i in range(30)}} for n in range(500)]
    found = [
        run(broker, tmp_path, address, "dense", events, server=server, **features)
        for server, address in (("triton", triton.address), ("tfserving", tensorflow_serving))
    ]
    assert found[0] == found[1]


def test_the_worked_examples_give_the_same_to_the_bit(broker: Broker, tmp_path: Path) -> None:
    with TritonRig(REPOSITORY) as triton, serving_of(REPOSITORY) as serving:
        for name in ("fraud", "maintenance", "personalization"):
            mapped = yaml.safe_load((PIPELINES / f"{name}.yaml").read_text())["model"]
            inputs = {"inputs": mapped["inputs"]} if "inputs" in mapped else {}
            with gzip.open(REPOSITORY / name / "events.jsonl.gz", "rt") as lines:
                events = [{"id": n, **json.loads(line)} for n, line in enumerate(islice(lines, 300))]
            found = [
                # One by one: how a product of matrices is rounded depends on how many rows are in it.
                run(broker, tmp_path, address, name, events, {"max_events": 1, "in_flight": 1}, server=server, **inputs)
                for server, address in (("triton", triton.address), ("tfserving", serving))
            ]
            assert found[0] == found[1]
            assert len(found[0]) == 300
            assert all(b'"model_version":"2"' in result for result in found[0])


def test_strings_whole_numbers_and_several_outputs(
    broker: Broker, triton: TritonRig, tensorflow_serving: str, tmp_path: Path
) -> None:
    events = [
        {
            "id": n, "text": f"text {n}", "count": n * 10**9, "small": n % 100, "flag": n % 2 == 0,
            "vector": [n, 0.5, -n], "matrix": [[n % 8, 1], [2, 3]],
        }
        for n in range(300)
    ]  # fmt: skip
    found = [
        run(broker, tmp_path, address, "types", events, server=server)
        for server, address in (("triton", triton.address), ("tfserving", tensorflow_serving))
    ]
    assert found[0] == found[1]
    assert b'"text":"TEXT 7"' in b"".join(found[1])


def asked(address: str, **model: Any) -> Any:
    async def body() -> Any:
        server = TensorFlowServing(Model(server="tfserving", address=address, **model))
        try:
            return await server.describe()
        finally:
            await server.close()

    return asyncio.run(body())


def test_another_signature_is_asked_by_its_name(tensorflow_serving: str) -> None:
    found = asked(tensorflow_serving, name="types", signature="lower")
    assert [str(spec) for spec in found.outputs] == ["lower BYTES[rows]"]
    with pytest.raises(InferenceError, match="no signature 'none'; it has lower, serving_default") as caught:
        asked(tensorflow_serving, name="types", signature="none")
    assert caught.value.disposition is Disposition.STOP


def test_a_version_is_asked_by_its_label(tmp_path: Path) -> None:
    script = """
import sys, grpc
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc
request = model_management_pb2.ReloadConfigRequest()
model = request.config.model_config_list.config.add(name="fraud", base_path=sys.argv[2], model_platform="tensorflow")
model.model_version_policy.specific.versions.extend([1, 2])
model.version_labels["stable"] = 1
model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(sys.argv[1])).HandleReloadConfigRequest(request)
"""
    with serving_of(REPOSITORY) as address:
        with pytest.raises(
            InferenceError, match="model 'fraud' version stable at .*: Unrecognized servable version label"
        ) as caught:
            asked(address, name="fraud", version={"label": "stable"})
        assert caught.value.disposition is Disposition.ABSENT
        subprocess.run(
            [sys.executable, "-c", script, address, str(REPOSITORY / "fraud")], check=True, capture_output=True
        )
        assert asked(address, name="fraud", version={"label": "stable"}).versions == ["1"]
        assert asked(address, name="fraud").versions == ["1", "2"]


def test_our_messages_and_the_official_ones_live_in_one_process(tensorflow_serving: str) -> None:
    script = """
import sys
from bridge.infer._pb import tensorflow_serving_pb2 as own
from tensorflow_serving.apis import predict_pb2 as official
request = own.PredictRequest(model_spec=own.ModelSpec(name="m", version=own.Number(value=3), signature_name="s"))
request.inputs["x"].dtype = 1
request.inputs["x"].tensor_shape.dim.add(size=2)
request.inputs["x"].tensor_content = b"12345678"
request.output_filter.append("y")
read = official.PredictRequest.FromString(request.SerializeToString())
assert (read.model_spec.name, read.model_spec.version.value, read.model_spec.signature_name) == ("m", 3, "s")
assert read.inputs["x"].tensor_shape.dim[0].size == 2 and list(read.output_filter) == ["y"]
assert own.PredictRequest.FromString(read.SerializeToString()) == request
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_that_is_not_there_is_away() -> None:
    with pytest.raises(InferenceError) as caught:
        asked("127.0.0.1:9", name="m")
    assert (caught.value.disposition, caught.value.code) == (Disposition.RETRY, grpc.StatusCode.UNAVAILABLE.name)


def test_a_watcher_brings_versions_to_it(tmp_path: Path) -> None:
    repository, view = tmp_path / "repository", tmp_path / "view"
    shutil.copytree(FRAUD / "1", repository / "fraud" / "1")
    view.mkdir()
    with serving_of(view) as address:
        command = [sys.executable, "-m", "headrace", "models", "watch", str(repository), "--server", address]
        options = ["--kind", "tfserving", "--view", str(view), "--settle", "1s"]
        control = TensorFlowServingControl(address, view)
        with ServerProcess("watch", [*command, *options], tmp_path / "log") as process:
            process.wait_ready(lambda: "\nready" in "\n" + process.log.read_text(), 60)
            assert control.ready() == {"fraud": {1}}
            shutil.copytree(FRAUD / "2", repository / "fraud" / "2")
            until(lambda: control.ready() == {"fraud": {1, 2}}, 60, "version 2 is loaded, proved and labelled")
            assert headrace("models", "rollback", str(repository), "fraud").returncode == 0
            until(lambda: control.ready() == {"fraud": {1}}, 60, "version 1 is the stable one")
            process.stop()
        control.close()


def test_a_configuration_file_names_what_may_serve(tmp_path: Path) -> None:
    for number in ("1", "2", "3"):
        shutil.copytree(FRAUD / "1" / "model.savedmodel", tmp_path / "fraud" / number)
    assert headrace("models", "rollback", str(tmp_path), "fraud").returncode == 0
    done = headrace("models", "config", str(tmp_path), "--base", "/models")
    official = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(done.stdout, official)
    (config,) = official.model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("fraud", "/models/fraud", "tensorflow")
    assert sorted(config.model_version_policy.specific.versions) == [1, 2]
    assert dict(config.version_labels) == {"stable": 2}
    done = headrace("models", "config", str(FRAUD.parent))
    assert done.returncode == 1
    assert "credit/2: TensorFlow Serving serves SavedModels, and this is none" in done.stderr
    shutil.copytree(FRAUD, tmp_path / "triton" / "fraud")
    done = headrace("models", "config", str(tmp_path / "triton"))
    assert done.returncode == 1
    assert "fraud/2: TensorFlow Serving reads saved_model.pb in the version's folder itself" in done.stderr

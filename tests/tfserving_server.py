"""A server of TensorFlow Serving's API, made of its official messages around real TensorFlow: `python … REPOSITORY`.

Its own binary is in no package registry. A process of its own, since TensorFlow's Python package is in it. It loads every
version that there is at the start, serves the newest unless asked for another, and takes labels and other versions by
HandleReloadConfigRequest. Answers with an odd number of rows have their values in fields, as the server's default is;
the others as content. Prints `ready PORT`.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Servable:
    """One version."""

    def __init__(self, folder: Path) -> None:
        folder = folder / "model.savedmodel" if (folder / "model.savedmodel").is_dir() else folder
        self.model = tf.saved_model.load(str(folder))
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        self.signatures = saved.meta_graphs[0].signature_def


class Refused(Exception):
    """Ends a call with a status."""


class Server(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Models by name, each with its versions and labels."""

    def __init__(self, repository: Path) -> None:
        self.models = {
            model.name: {int(v.name): Servable(v) for v in model.iterdir() if v.name.isdigit()}
            for model in repository.iterdir()
            if next(model.rglob("saved_model.pb"), None)  # it serves nothing else
            if model.is_dir() and not model.name.startswith(".")
        }
        self.labels: dict[tuple[str, str], int] = {}
        self.broken: dict[tuple[str, int], str] = {}

    def find(self, spec):
        versions = self.models.get(spec.name, {})
        which = spec.WhichOneof("version_choice")
        if which == "version":
            number, asked = spec.version.value, f"Specific({spec.name}, {spec.version.value})"
        elif which == "version_label":
            number, asked = self.labels.get((spec.name, spec.version_label)), ""
            if number is None:
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}"
                )
        else:
            number, asked = max(versions, default=None), f"Latest({spec.name})"
        if number not in versions:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        return number, versions[number]

    def Predict(self, request, context):  # noqa: N802
        try:
            number, servable = self.find(request.model_spec)
            name = request.model_spec.signature_name or "serving_default"
            if name not in servable.model.signatures:
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"Serving signature name {name} not found")
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            outputs = servable.model.signatures[name](**inputs)
        except Refused as error:
            context.abort(*error.args)
        except (tf.errors.InvalidArgumentError, TypeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        response.model_spec.version.value = number
        wanted = list(request.output_filter) or list(outputs)
        if set(wanted) - set(outputs):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "output tensor alias not found")
        for key in wanted:
            response.outputs[key].CopyFrom(as_proto(outputs[key].numpy()))
        return response

    def GetModelMetadata(self, request, context):  # noqa: N802
        try:
            number, servable = self.find(request.model_spec)
        except Refused as error:
            context.abort(*error.args)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        found = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in servable.signatures.items():
            found.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(found)
        return response

    def GetModelStatus(self, request, context):  # noqa: N802
        name = request.model_spec.name
        versions = self.models.get(name, {})
        broken = {number: reason for (model, number), reason in self.broken.items() if model == name}
        if not versions and not broken:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number in versions:
            response.model_version_status.add(version=number, state=30)
        for number, reason in broken.items():
            found = response.model_version_status.add(version=number, state=50)
            found.status.error_code, found.status.error_message = 13, reason
        return response

    def HandleReloadConfigRequest(self, request, context):  # noqa: N802
        response = model_management_pb2.ReloadConfigResponse()
        models, broken, labels = {}, {}, {}
        for config in request.config.model_config_list.config:
            loaded = self.models.get(config.name, {})
            for label, number in config.version_labels.items():
                if number not in loaded:  # as the real one: a label may only go to what is available
                    response.status.error_code = 9
                    response.status.error_message = f"Version {number} of {config.name} is not available for a label"
                    return response
                labels[config.name, label] = number
            models[config.name] = {}
            for number in config.model_version_policy.specific.versions:
                try:
                    models[config.name][number] = loaded.get(number) or Servable(Path(config.base_path) / str(number))
                except Exception as error:
                    broken[config.name, number] = str(error)
        self.models, self.broken, self.labels = models, broken, labels
        return response


def as_proto(array):
    """With an odd number of rows in fields, repeated values left out at the end; else as content."""
    proto = tf.make_tensor_proto(array)
    if len(array) % 2 == 0 or array.dtype == object:
        return proto
    fields = {
        "f": "float_val", "d": "double_val", "q": "int64_val", "?": "bool_val", "I": "uint32_val", "Q": "uint64_val",
        "e": "half_val",
    }  # fmt: skip
    proto.tensor_content = b""
    for field in ("float_val", "double_val", "int64_val", "bool_val", "int_val", "half_val"):
        proto.ClearField(field)
    values = (array.view(np.uint16) if array.dtype == np.float16 else array).ravel().tolist()
    while len(values) > 1 and values[-1] == values[-2]:
        values.pop()
    getattr(proto, fields.get(array.dtype.char, "int_val")).extend(values)
    return proto


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    servicer = Server(Path(sys.argv[1]))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"ready {port}", flush=True)
    sys.stdin.read()  # it ends with whoever started it
    server.stop(None)


if __name__ == "__main__":
    main()

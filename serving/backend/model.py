"""The backend of Triton that serves SavedModels and ONNX models, by its Python-based backend interface.

It stands there under two names, `tensorflow` and `onnxruntime`, so that configurations written for Triton's own
backends of these names hold; what a version's folder holds decides what runs it. Triton starts one process of this for
each instance of a model version. Here stands only what speaks with Triton.

Model parameters (config.pbtxt): `signature` (default serving_default), `threads` (of the framework; its own choice if
not set).
"""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from serving.arrays import zeros
from serving.errors import ServingError
from serving.formats import load, read_signature
from serving.golden import ask_golden, read_golden
from serving.joining import run_joined
from serving.signature import DEFAULT_SIGNATURE

MAX_BATCH_SIZE = 4096
WARM_UP_ROWS = (1, 256)


def _parameter(config, name, default):
    return config.get("parameters", {}).get(name, {}).get("string_value", default)


def _triton_type(datatype):
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


class TritonPythonModel:
    """One instance of one version."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Inputs, outputs and the batch limit from the newest version's signature, where config.pbtxt has none."""
        config = auto_complete_model_config.as_dict()
        folder = _newest_version(Path(pb_utils.get_model_dir()))
        signature = read_signature(folder, _parameter(config, "signature", DEFAULT_SIGNATURE))
        batches = signature.batches and (config["max_batch_size"] > 0 or not (config["input"] or config["output"]))
        if config["max_batch_size"] > 0 and not signature.batches:
            raise ServingError(f"{folder}: max_batch_size is set, but not every tensor has a batch dimension")
        if batches and config["max_batch_size"] == 0:
            auto_complete_model_config.set_max_batch_size(MAX_BATCH_SIZE)
            auto_complete_model_config.set_dynamic_batching()
        for tensors, add in (
            (signature.inputs, auto_complete_model_config.add_input),
            (signature.outputs, auto_complete_model_config.add_output),
        ):
            for tensor in tensors:
                # Triton has no empty row shape: a scalar a row is declared as [1], and reshaped on the way.
                dims = list(tensor.shape[1:] if batches else tensor.shape) or [1]
                add({"name": tensor.name, "data_type": _triton_type(tensor.datatype), "dims": dims})
        return auto_complete_model_config

    def initialize(self, args):
        """Load, warm up and ask the golden requests; Triton announces the version only when this returns."""
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        self._runner = runner = load(
            version, _parameter(config, "signature", DEFAULT_SIGNATURE), int(_parameter(config, "threads", "0"))
        )
        signature = runner.signature
        self._batches = config["max_batch_size"] > 0
        self._outputs = {item["name"]: len(item["dims"]) + self._batches for item in config["output"]}
        self._inputs = [tensor.name for tensor in signature.inputs]
        unknown = sorted(set(self._outputs) - {tensor.name for tensor in signature.outputs})
        if unknown:
            raise ServingError(f"{version}: the signature {signature.name!r} has no output {', '.join(unknown)}")
        for rows in WARM_UP_ROWS if self._batches else (1,):
            try:
                runner.run(zeros(signature, min(rows, config["max_batch_size"] or rows)))
            except Exception as error:
                # Zeros are not legal input for every model; then the first request finds a cold model, no more.
                pb_utils.Logger.log_warn(f"{version}: not warmed with zeros: {error}")
                break
        golden = read_golden(version)
        if golden is not None:
            # One that answers them wrongly never serves: Triton refuses it, and what was loaded serves on.
            ask_golden(golden, signature, runner.run)

    def finalize(self):
        """Free what the version holds; Triton calls this when it is unloaded."""
        self._runner.close()

    def execute(self, requests):
        """One response for each request, joined into as few calls as their shapes allow."""
        inputs = [_or_error(self._read, request) for request in requests]
        readable = [place for place, item in enumerate(inputs) if not isinstance(item, Exception)]
        answers = list(inputs)
        joined = run_joined([inputs[place] for place in readable], self._runner.run, batches=self._batches)
        for place, answer in zip(readable, joined, strict=True):
            answers[place] = answer
        return [self._respond(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _read(self, request):
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _respond(self, request, answer):
        tensors = answer if isinstance(answer, Exception) else _or_error(self._tensors, request, answer)
        if isinstance(tensors, Exception):
            return pb_utils.InferenceResponse(error=_error(tensors))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _tensors(self, request, answer):
        tensors = []
        for name in request.requested_output_names():
            array = answer[name]
            if array.ndim == self._outputs[name] - 1:
                array = array.reshape(*array.shape, 1)
            tensors.append(pb_utils.Tensor(name, array))
        return tensors


def _or_error(function, *arguments):
    """What it returns, or the error it raises: an error belongs to its request and to no other."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _newest_version(folder):
    if folder.name.isdigit():
        folder = folder.parent
    versions = [entry for entry in folder.iterdir() if entry.name.isdigit() and not entry.name.startswith("0")]
    if not versions:
        raise ServingError(f"{folder}: no version; a version is a folder with a number for a name")
    return max(versions, key=lambda entry: int(entry.name))


def _error(error):
    codes = {  # while Triton completes a configuration it has no such codes yet
        "INVALID_ARGUMENT": pb_utils.TritonError.INVALID_ARG,
        "OUT_OF_RANGE": pb_utils.TritonError.INVALID_ARG,
        "RESOURCE_EXHAUSTED": pb_utils.TritonError.UNAVAILABLE,
    }
    code = codes.get(getattr(error, "code", ""), pb_utils.TritonError.INTERNAL)
    return pb_utils.TritonError(" ".join(str(error).split())[:1000], code)

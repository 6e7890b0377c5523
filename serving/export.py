"""From a training script into a repository: a Keras model, a `tf.Module`, a SavedModel or an ONNX
model, and all that serving needs.

Beside the model it writes golden requests with the answers of the model in training, TensorFlow Serving's own
warm-up requests, a manifest with quality and drift reference, and a card for people. Before the version is published it
is run by what will serve it, and must give the same answers.
"""

import contextlib
import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving._pb import tensorflow_serving_pb2 as pb
from serving.errors import ServingError
from serving.formats import load, stored_model
from serving.formats.onnx import OnnxModel
from serving.formats.savedmodel import SavedModel
from serving.golden import FILE as GOLDEN
from serving.golden import Golden, ask_golden, golden_inputs, plain
from serving.manifest import DataEntry, Manifest, histogram, write_manifest
from serving.modelconfig import DEFAULT as DEFAULT_CONFIG
from serving.modelconfig import FILE as CONFIG
from serving.publish import check_name, publish
from serving.signature import DEFAULT_SIGNATURE, Tensor
from serving.store import repository_at

CARD = "card.md"
Rows = Mapping[str, npt.ArrayLike] | npt.ArrayLike
"""Tensor -> rows; or the rows alone, for a model with one input."""


def export(
    model: Any,
    repository: str | Path,
    name: str,
    *,
    golden: Rows,
    answers: Rows | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    method: str | None = None,
    training: Mapping[str, npt.ArrayLike] | None = None,
    quality: Mapping[str, float] | None = None,
    description: str = "",
    data: DataEntry | None = None,
    tolerance: float = 1e-4,
    version: int | None = None,
    new_contract: bool = False,
) -> Path:
    """Publish a trained model as a new version.

    Args:
        model: a Keras model; a `tf.Module`; a SavedModel's folder; or an ONNX model's file, which PyTorch writes with
            `torch.onnx.export`.
        repository: of models, a folder or the URL of an object store; made if need be.
        name: the model's name in it.
        golden: a few rows, such as the first of the held-out ones.
        answers: of the model in training to these rows, where `model` is a folder or a file and cannot be asked for
            them; left out, what serves it says what is right.
        inputs: names of a Keras model's inputs, in its order; where none are given, those that its `Input` layers were
            given, else `input`, or `input_0`, `input_1` …
        outputs: names of a Keras model's outputs; `output`, or `output_0`, `output_1` … where none are given.
        method: of a `tf.Module`: the `tf.function` to serve, which has an input signature.
        training: feature -> its values in training, for the drift reference.
        quality: metric on held-out data -> value.
        description: one sentence for a person.
        data: what it was trained on.
        tolerance: by how much a number of an answer may differ, absolutely and relatively.
        version: its number; the next one where none is given.
        new_contract: whether it may have other inputs and outputs than the version before.

    Returns:
        The version's folder; in the copy of an object store.

    Raises:
        ServingError: it cannot be exported, what serves it answers otherwise than the model in training, or it breaks
            the contract of the version before.
    """
    for argument, given in (("training", training), ("quality", quality)):
        if not isinstance(given, Mapping | None):
            raise ServingError(f"{argument}: a mapping of names to values is expected, not a {type(given).__name__}")
    with tempfile.TemporaryDirectory(prefix="headrace-export-") as folder:
        check_name(name)
        place = Path(folder) / "version"
        answer = _save(model, place, inputs, outputs, method)
        runner = load(place)
        signature = runner.signature
        try:
            asked = _by_name("golden", golden, signature.inputs)
            counts = {name: len(values) for name, values in asked.items()}
            if len(set(counts.values())) > 1:
                told = ", ".join(f"{name} {count}" for name, count in counts.items())
                raise ServingError(f"golden: its inputs have different numbers of rows: {told}")
            rows = golden_inputs(Golden(inputs=asked, outputs={}), signature)
            if answers is not None:
                right = _by_name("answers", answers, signature.outputs)
            else:
                found = answer(rows) if answer else runner.run(rows)
                right = {name: plain(array) for name, array in found.items()}
            kept = Golden(tolerance=tolerance, inputs=asked, outputs=right)
            ask_golden(kept, signature, runner.run)
        finally:
            runner.close()
        (place / GOLDEN).write_text(kept.model_dump_json(indent=1) + "\n")
        stored = stored_model(place)
        if stored.platform == SavedModel.platform:
            _write_warm_up(stored.path, name, rows)
        describe = partial(
            write_manifest,
            place,
            model=name,
            version=version or 1,
            description=description,
            data=data,
            quality=quality,
            drift_reference={key: histogram(np.asarray(values)) for key, values in (training or {}).items()},
        )
        (place / CARD).write_text(_card(describe()))
        describe()  # once more, with the card among its files
        with contextlib.closing(repository_at(repository)) as at:
            _configure(at.folder / name, stored.platform)
            target = publish(place, at.folder, name, version, new_contract)
            at.push()
        return target


def _save(
    model: Any, place: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None, method: str | None
) -> Callable[[Mapping[str, Any]], Any] | None:
    """Write the model into a version's folder; how the model in training answers, where it can be asked."""
    folder = place / "model.savedmodel"
    if isinstance(model, str | Path):
        _copy(Path(model), place)
        return None
    import tensorflow as tf

    if hasattr(model, "inputs") and hasattr(model, "outputs"):
        from keras.export import ExportArchive

        function = _keras_function(tf, model, inputs, outputs)
        archive = ExportArchive()
        archive.track(model)
        archive.add_endpoint(DEFAULT_SIGNATURE, function)
        archive.write_out(str(folder), verbose=False)
    elif isinstance(model, tf.Module):
        function = getattr(model, method or "", None)
        if getattr(function, "input_signature", None) is None:
            raise ServingError(
                f"method={method!r} is no tf.function of the module with an input signature that names each input"
            )
        tf.saved_model.save(model, str(folder), signatures={DEFAULT_SIGNATURE: function})
    elif hasattr(model, "layers"):
        raise ServingError("the Keras model has not been built: begin it with keras.Input(shape, name=NAME)")
    else:
        raise ServingError(
            f"{type(model).__name__} cannot be exported: a Keras model, a tf.Module, a folder or a file can"
        )
    # Holds a random number and nothing that loading needs; without it the same training gives the same bytes.
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    arguments = [name for name in inspect.signature(function.python_function).parameters if name != "self"]
    names = [spec.name or name for spec, name in zip_longest(function.input_signature, arguments)]

    def answer(inputs: Mapping[str, Any]) -> Any:
        try:
            found = function(*(tf.constant(inputs[name]) for name in names if name in inputs))
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise ServingError(f"the model does not answer the golden requests: {error}") from None
        if not isinstance(found, Mapping):
            raise ServingError("the function must return a dict of outputs, so that each has a name")
        return {key: tensor.numpy() for key, tensor in found.items()}

    return answer


def _copy(source: Path, place: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, place / "model.savedmodel")
        return
    if not source.is_file():
        raise ServingError(f"{source}: no such file or folder; a SavedModel is a folder, an ONNX model a file")
    place.mkdir()
    first, *weights = OnnxModel(source).files()
    shutil.copyfile(first, place / "model.onnx")
    for path in weights:
        target = place / path.relative_to(source.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _keras_function(tf: Any, model: Any, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Any:
    """A function with names that do not depend on what else the process has made."""
    given = [None if tensor.name.startswith("keras_tensor") else tensor.name for tensor in model.inputs]
    takes = _names("input", inputs, given)
    gives = _names("output", outputs, [None] * len(model.outputs))
    specs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name)
        for tensor, name in zip(model.inputs, takes, strict=True)
    ]

    def function(*tensors: Any) -> Any:
        found = model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
        return dict(zip(gives, tf.nest.flatten(found), strict=True))

    return tf.function(function, input_signature=specs)


def _names(kind: str, asked: Sequence[str] | None, given: Sequence[str | None]) -> list[str]:
    if asked is None:
        return [name or (f"{kind}_{place}" if len(given) > 1 else kind) for place, name in enumerate(given)]
    if len(asked) != len(given):
        raise ServingError(f"the model has {len(given)} {kind}s, and {kind}s= names {len(asked)}")
    return list(asked)


def _by_name(argument: str, rows: Rows, tensors: Sequence[Tensor]) -> dict[str, list[Any]]:
    if isinstance(rows, Mapping):
        return {name: plain(np.asarray(values)) for name, values in rows.items()}
    if len(tensors) != 1:
        names = ", ".join(tensor.name for tensor in tensors)
        raise ServingError(f"{argument}: the model has the tensors {names}; give a mapping of each to its rows")
    return {tensors[0].name: plain(np.asarray(rows))}


def _write_warm_up(saved: Path, name: str, inputs: Mapping[str, Any]) -> None:
    """The golden requests, as TensorFlow Serving asks a version before it is available."""
    import tensorflow as tf

    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=name, signature_name=DEFAULT_SIGNATURE))
    for key, array in inputs.items():
        request.inputs[key].MergeFromString(tf.make_tensor_proto(array).SerializeToString())
    folder = saved / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        writer.write(pb.PredictionLog(predict_log=pb.PredictLog(request=request)).SerializeToString())


def _configure(model: Path, platform: str) -> None:
    """The model's configuration, where it has none."""
    try:
        model.mkdir(parents=True, exist_ok=True)
        if not (model / CONFIG).exists():
            (model / CONFIG).write_text(DEFAULT_CONFIG.format(platform=platform))
    except OSError as error:
        raise ServingError(f"{model}: cannot be written: {error.strerror}") from None


def _card(manifest: Manifest) -> str:
    """What a person wants to know before it serves."""
    lines = [f"# {manifest.model}", "", manifest.description or "No description.", ""]
    if manifest.quality:
        lines += ["| Quality on held-out data | |", "|---|---|"]
        lines += [f"| {metric} | {value:g} |" for metric, value in manifest.quality.items()] + [""]
    if manifest.data:
        data = manifest.data
        where = f"{data.name} ({data.source}; licence: {data.licence})"
        lines += [f"Trained on {data.training_rows:,} rows of {where}, judged by {data.held_out_rows:,} others.", ""]
    lines += ["| Tensor | Type | Shape |", "|---|---|---|"]
    for kind, tensors in (("in", manifest.signature.inputs), ("out", manifest.signature.outputs)):
        lines += [f"| {kind}: `{t.name}` | {t.datatype} | {list(t.shape)} |" for t in tensors]
    if manifest.drift_reference:
        lines += ["", "| Feature | Least in training | Middle | Most |", "|---|---|---|---|"]
        for feature, found in manifest.drift_reference.items():
            edges = found.edges
            lines.append(f"| {feature} | {edges[0]:g} | {edges[len(edges) // 2]:g} | {edges[-1]:g} |")
    return "\n".join(lines) + "\n"

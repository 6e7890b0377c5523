"""Runs a SavedModel's signature with TensorFlow. The only module that imports it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.joining import Arrays
from serving.savedmodel import SERVE_TAG, Signature

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_NUMPY = {"BYTES": object, "BOOL": bool, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


class SavedModelRunner:
    """A loaded SavedModel.

    Args:
        folder: that holds saved_model.pb.
        signature: which of its signatures to run.
        threads: of TensorFlow in this process; 0 lets it choose.
    """

    def __init__(self, folder: Path, signature: Signature, threads: int = 0) -> None:
        import tensorflow as tf

        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        self._tf = tf
        self._signature = signature
        self._model = tf.saved_model.load(str(folder), tags=[SERVE_TAG])  # kept: it owns the function's variables
        self._function = self._model.signatures[signature.name]
        self._ranks = {tensor.name: len(tensor.shape) for tensor in signature.inputs}
        self._types = {
            tensor.name: self._function.structured_input_signature[1][tensor.name].dtype for tensor in signature.inputs
        }

    def run(self, inputs: Arrays) -> Arrays:
        """One call.

        Args:
            inputs: for each input of the signature an array; a trailing dimension of 1 is dropped where the signature
                has none.

        Returns:
            output tensor -> array; strings as objects of `bytes`.
        """
        tensors = {}
        for name, array in inputs.items():
            if array.ndim == self._ranks[name] + 1 and array.shape[-1] == 1:
                array = array.reshape(array.shape[:-1])
            tensors[name] = self._tf.constant(array, dtype=self._types[name])
        return {name: tensor.numpy() for name, tensor in self._function(**tensors).items()}

    def warm_up(self, rows: int) -> None:
        """Run once on `rows` rows of zeros or empty strings, so that the first real request finds everything built."""
        self.run({tensor.name: zeros(tensor.datatype, tensor.shape, rows) for tensor in self._signature.inputs})


def zeros(datatype: str, shape: tuple[int, ...], rows: int) -> npt.NDArray[Any]:
    """An array of zeros (or empty strings) for a tensor; dimensions that vary are `rows` first, 1 elsewhere."""
    filled = [rows if place == 0 and size < 0 else max(size, 1) for place, size in enumerate(shape)]
    if datatype == "BYTES":
        return np.full(filled, b"", dtype=object)
    return np.zeros(filled, dtype=_NUMPY.get(datatype, datatype.lower()))

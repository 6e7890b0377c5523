"""Runs a SavedModel's signature."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.datatypes import DATA_TYPES, STRING
from serving.joining import Arrays
from serving.libtensorflow import Session, TensorFlowError, delete_tensor, to_tensor
from serving.savedmodel import SERVE_TAG, Signature, Tensor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class SavedModelRunner:
    """A loaded SavedModel.

    Args:
        folder: that holds saved_model.pb.
        signature: which of its signatures to run.
        threads: of TensorFlow in this process; 0 lets it choose.

    Raises:
        TensorFlowError: it cannot be loaded.
    """

    def __init__(self, folder: Path, signature: Signature, threads: int = 0) -> None:
        self._signature = signature
        self._session = Session(folder, SERVE_TAG, threads)
        try:
            self._inputs = [(tensor, self._session.output(tensor.source)) for tensor in signature.inputs]
            self._outputs = [self._session.output(tensor.source) for tensor in signature.outputs]
        except TensorFlowError:
            self._session.close()
            raise

    def run(self, inputs: Arrays) -> Arrays:
        """One call.

        Args:
            inputs: for each input of the signature an array; a trailing dimension of 1 is dropped where the signature
                has none.

        Returns:
            output tensor -> array; strings as objects of `bytes`.

        Raises:
            TensorFlowError: the model refuses these inputs, or fails.
        """
        feeds = []
        for tensor, place in self._inputs:
            array = inputs[tensor.name]
            if array.ndim == len(tensor.shape) + 1 and array.shape[-1] == 1:
                array = array.reshape(array.shape[:-1])
            try:
                feeds.append((place, to_tensor(array, tensor.number)))
            except TensorFlowError as error:
                for _, fed in feeds:
                    delete_tensor(fed)
                raise TensorFlowError(error.code, f"input {tensor.name!r}: {error}") from None
        found = self._session.run(feeds, self._outputs)
        return {tensor.name: array for tensor, array in zip(self._signature.outputs, found, strict=True)}

    def warm_up(self, rows: int) -> None:
        """Run once on `rows` rows of zeros or empty strings, so that the first real request finds everything built."""
        self.run({tensor.name: zeros(tensor, rows) for tensor in self._signature.inputs})

    def close(self) -> None:
        """Free the model's memory."""
        self._session.close()


def zeros(tensor: Tensor, rows: int) -> npt.NDArray[Any]:
    """An array of zeros (or empty strings) for a tensor; dimensions that vary are `rows` first, 1 elsewhere."""
    filled = [rows if place == 0 and size < 0 else max(size, 1) for place, size in enumerate(tensor.shape)]
    kind = DATA_TYPES[tensor.number].numpy
    return np.full(filled, b"" if tensor.number == STRING else 0, dtype=kind)

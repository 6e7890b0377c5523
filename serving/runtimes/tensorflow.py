"""Runs a SavedModel's signature by TensorFlow's library."""

import os
from pathlib import Path

from serving.arrays import Arrays, without_trailing_one
from serving.datatypes import DATA_TYPES
from serving.errors import ModelError
from serving.formats.savedmodel import SERVE_TAG
from serving.runtimes.libtensorflow import Session, delete_tensor, to_tensor
from serving.signature import Signature

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class SavedModelRunner:
    """`Runner` of a SavedModel.

    Args:
        folder: that holds saved_model.pb.
        signature: which of its signatures to run.
        threads: of TensorFlow in this process; 0 lets it choose.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, folder: Path, signature: Signature, threads: int = 0) -> None:
        self.signature = signature
        self._session = Session(folder, SERVE_TAG, threads)
        try:
            self._inputs = [(tensor, self._session.output(tensor.source)) for tensor in signature.inputs]
            self._outputs = [self._session.output(tensor.source) for tensor in signature.outputs]
        except ModelError:
            self._session.close()
            raise

    def run(self, inputs: Arrays) -> Arrays:
        """See `Runner`."""
        feeds = []
        for tensor, place in self._inputs:
            array = without_trailing_one(inputs[tensor.name], len(tensor.shape))
            try:
                feeds.append((place, to_tensor(array, DATA_TYPES[tensor.datatype])))
            except ModelError as error:
                for _, fed in feeds:
                    delete_tensor(fed)
                raise ModelError(error.code, f"input {tensor.name!r}: {error}") from None
        found = self._session.run(feeds, self._outputs)
        return {tensor.name: array for tensor, array in zip(self.signature.outputs, found, strict=True)}

    def close(self) -> None:
        """See `Runner`."""
        self._session.close()

"""A model for MLServer: rows of 9 numbers to their means, and to texts."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Scores(MLModel):
    """Refuses a row that begins with a negative number."""

    async def load(self) -> bool:
        """There is nothing to load."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score the rows of a request."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        if (rows[:, 0] < 0).any():
            raise ValueError("the first number is negative")
        means = rows.mean(axis=1, keepdims=True).astype(np.float32)
        words = ["high" if mean >= 1000 else "low" for mean in means[:, 0]]
        outputs = [NumpyCodec.encode_output("score", means), StringCodec.encode_output("word", words)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)

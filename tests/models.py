"""Writes the models that the tests serve with a real Triton: `python tests/models.py FOLDER`."""

import os
import shutil
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import tensorflow as tf

ROOT = Path(sys.argv[1])


class Dense(tf.Module):
    """30 numbers to one: their mean."""

    @tf.function(input_signature=[tf.TensorSpec([None, 30], tf.float32, "features")])
    def score(self, features):
        return {"score": tf.reduce_mean(features, axis=1)}


class Types(tf.Module):
    """Every kind of tensor, sent back changed; a negative count is refused, as a poison event is."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "text"),
            tf.TensorSpec([None], tf.int64, "count"),
            tf.TensorSpec([None], tf.int8, "small"),
            tf.TensorSpec([None], tf.bool, "flag"),
            tf.TensorSpec([None, 3], tf.float64, "vector"),
            tf.TensorSpec([None, 2, 2], tf.float16, "matrix"),
        ]
    )
    def change(self, text, count, small, flag, vector, matrix):
        with tf.control_dependencies([tf.debugging.assert_non_negative(count, "the count is negative")]):
            return {
                "text": tf.strings.upper(text),
                "count": tf.cast(count, tf.int32) + 1,
                "small": -small,
                "flag": tf.logical_not(flag),
                "vector": vector * 2,
                "matrix": matrix,
            }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def lower(self, text):
        return {"lower": tf.strings.lower(text)}


class Log(tf.Module):
    """The logarithm of a number: nan for a negative one, -inf for 0."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
    def log(self, x):
        return {"y": tf.math.log(x)}


class Short(tf.Module):
    """Forgets the last row: a server that answers the wrong number of rows."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
    def forget(self, x):
        return {"y": x[:-1]}


class Double(tf.Module):
    """Twice a number; a negative one is refused, as a poison event is."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
    def double(self, x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "x is negative")]):
            return {"y": x * 2}


class Weights(tf.Module):
    """1,000 features to their sum."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1000], tf.float32, "features")])
    def sum(self, features):
        return {"sum": tf.reduce_sum(features, axis=1)}


def save(name, module, config='platform: "tensorflow_savedmodel"\n', folder="model.savedmodel", **signatures):
    version = ROOT / name / "1"
    version.mkdir(parents=True)
    tf.saved_model.save(module, str(version / folder), signatures=signatures)
    (ROOT / name / "config.pbtxt").write_text(config)


dense, types, log, short = Dense(), Types(), Log(), Short()
save("dense", dense, serving_default=dense.score)
# TensorFlow Serving's layout: saved_model.pb straight in the version's folder.
save("types", types, folder=".", serving_default=types.change, lower=types.lower)
shutil.copytree(ROOT / "types", ROOT / "lower")
(ROOT / "lower" / "config.pbtxt").write_text(
    'platform: "tensorflow_savedmodel"\nparameters { key: "signature" value { string_value: "lower" } }\n'
)
save("log", log, serving_default=log.log)
save("small", log, 'platform: "tensorflow_savedmodel"\nmax_batch_size: 8\n', serving_default=log.log)
save(
    "short",
    short,
    'platform: "tensorflow_savedmodel"\n'
    'input [ { name: "x" data_type: TYPE_FP32 dims: [-1, 1] } ]\n'
    'output [ { name: "y" data_type: TYPE_FP32 dims: [-1, 1] } ]\n',
    serving_default=short.forget,
)
double = Double()
save("double", double, serving_default=double.double)
wide = Weights()
save("wide", wide, serving_default=wide.sum)
assert np.isnan(log.log(tf.constant([[-1.0]]))["y"].numpy()).all()

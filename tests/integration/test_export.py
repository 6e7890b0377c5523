"""From a training script to a version that serves: Keras, a `tf.Module`, a SavedModel's folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.export import CARD
from serving.formats import read_signature
from serving.golden import read_golden
from serving.manifest import read_manifest, verify

FRAUD = Path(__file__).parents[2] / "model_repository" / "fraud"

_SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
from serving.errors import ServingError
from serving.export import export
from serving.manifest import DataEntry

repository = sys.argv[1]
rng = np.random.default_rng(1)
x = rng.normal(0, 1, (200, 3)).astype("f")
keras.utils.set_random_seed(1)

model = keras.Sequential([keras.Input((3,), name="features"), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
export(model, repository, "churn", golden=x[:8], outputs=["score"], quality={"auc": 0.91234},
       training={"age": x[:, 0]}, description="Who will leave.",
       data=DataEntry(name="Made up", source="this test", licence="none", training_rows=192, held_out_rows=8))

user, item = keras.Input((1,), name="user"), keras.Input((2,), name="item")
both = keras.Model([user, item], [keras.layers.Dense(1, name="rating")(keras.layers.Concatenate()([user, item])),
                                  keras.layers.Dense(2, name="parts")(item)])
plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
for _ in range(2):
    export(plain, repository, "plain", golden=x[:8])
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

export(both, repository, "rating", golden={"user": x[:4, :1], "item": x[:4, 1:]})

class Texts(tf.Module):
    def __init__(self):
        self.table = tf.Variable([10, 20], dtype=tf.int64)
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text"), tf.TensorSpec([None], tf.int64, name="place")])
    def change(self, text, place):
        return {"upper": tf.strings.upper(text), "number": tf.gather(self.table, place)}
texts = Texts()
export(texts, repository, "texts", method="change", golden={"text": ["a", "\\u00e9b"], "place": [0, 1]})

failures = []
for bad in (lambda: export(object(), repository, "bad", golden=x),
            lambda: export(both, repository, "bad", golden=x[:2]),
            lambda: export(model, repository, "bad", golden=x[:2], outputs=["a", "b"]),
            lambda: export(texts, repository, "bad", golden=x[:2]),
            lambda: export(keras.Sequential([keras.layers.Dense(1)]), repository, "bad", golden=x[:2]),
            lambda: export(model, repository, "bad", golden=x[:2, :2]),
            lambda: export(model, repository, "a/b", golden=x[:2]),
            lambda: export(both, repository, "bad", golden={"user": x[:4, :1], "item": x[:3, 1:]}),
            lambda: export(model, repository, "bad", golden=x[:2], training=[1, 2]),
            lambda: export(both, repository, "churn", golden={"user": x[:4, :1], "item": x[:4, 1:]})):
    try:
        bad()
    except ServingError as error:
        failures.append(str(error))

from tensorflow_serving.apis import prediction_log_pb2
warm = {}
for name in ("churn", "texts"):
    path = f"{repository}/{name}/1/model.savedmodel/assets.extra/tf_serving_warmup_requests"
    (record,) = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(path)]
    request = record.predict_log.request
    warm[name] = {key: np.shape(tf.make_ndarray(tensor)) for key, tensor in request.inputs.items()}
print(json.dumps({"failures": failures, "warm": warm}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    repository = tmp_path_factory.mktemp("exported")
    done = subprocess.run([sys.executable, "-c", _SCRIPT, str(repository)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return repository, json.loads(done.stdout.splitlines()[-1])


def test_every_kind_of_model_becomes_a_whole_version_with_names(exported: tuple[Path, dict[str, object]]) -> None:
    repository, _ = exported
    signatures = {}
    for name in ("churn", "plain", "rating", "texts"):
        version = repository / name / "1"
        assert verify(version) == []
        golden = read_golden(version)
        assert golden is not None
        signature = read_signature(version)
        signatures[name] = [[str(t) for t in signature.inputs], [str(t) for t in signature.outputs]]
        assert set(golden.outputs) == {t.name for t in signature.outputs}
        assert "instance_group" in (repository / name / "config.pbtxt").read_text()
    assert signatures == {
        "churn": [["features FP32[-1, 3]"], ["score FP32[-1, 1]"]],
        "plain": [["input FP32[-1, 3]"], ["output FP32[-1, 1]"]],
        "rating": [["item FP32[-1, 2]", "user FP32[-1, 1]"], ["output_0 FP32[-1, 1]", "output_1 FP32[-1, 2]"]],
        "texts": [["place INT64[-1]", "text BYTES[-1]"], ["number INT64[-1]", "upper BYTES[-1]"]],
    }


def test_it_is_described_for_programs_and_for_people(exported: tuple[Path, dict[str, object]]) -> None:
    version = exported[0] / "churn" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    assert (manifest.quality, manifest.description) == ({"auc": 0.9123}, "Who will leave.")
    assert sum(manifest.drift_reference["age"].counts) == 200
    card = (version / CARD).read_text()
    assert "# churn\n\nWho will leave.\n" in card
    assert "| auc | 0.9123 |" in card
    assert "Trained on 192 rows of Made up (this test; licence: none), judged by 8 others." in card
    assert CARD in manifest.files


def test_tensorflow_serving_finds_its_own_warm_up_requests(exported: tuple[Path, dict[str, object]]) -> None:
    assert exported[1]["warm"] == {"churn": {"features": [8, 3]}, "texts": {"place": [2], "text": [2]}}


def test_a_mistake_is_one_sentence_and_nothing_is_published(exported: tuple[Path, dict[str, object]]) -> None:
    repository, found = exported
    assert found["failures"][:5] == [
        "object cannot be exported: a Keras model, a tf.Module, a folder or a file can",
        "golden: the model has the tensors item, user; give a mapping of each to its rows",
        "the model has 1 outputs, and outputs= names 2",
        "method=None is no tf.function of the module with an input signature that names each input",
        "the Keras model has not been built: begin it with keras.Input(shape, name=NAME)",
    ]
    assert found["failures"][5] == "golden requests: input 'features': shape [2, 2] where [-1, 3] is expected"
    assert found["failures"][6] == "'a/b' cannot be a model's name: letters, digits, dots, hyphens and underscores can"
    assert found["failures"][7:9] == [
        "golden: its inputs have different numbers of rows: user 4, item 3",
        "training: a mapping of names to values is expected, not a list",
    ]
    assert not (repository / "a").exists()
    assert (
        "not what version 1 of 'churn' is asked for: its inputs are item, user in place of features"
        in (found["failures"][-1])
    )
    assert not (repository / "bad").exists()


def test_a_saved_model_of_somebody_elses_gets_all_that_is_missing(tmp_path: Path) -> None:
    shutil.copytree(FRAUD / "1" / "model.savedmodel", tmp_path / "theirs")
    golden = read_golden(FRAUD / "1")
    assert golden is not None
    script = f"from serving.export import export; export({str(tmp_path / 'theirs')!r}, {str(tmp_path)!r}, 'fraud', golden={golden.inputs!r})"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    again = read_golden(tmp_path / "fraud" / "1")
    assert again is not None
    assert again.outputs["score"] == pytest.approx(golden.outputs["score"], abs=1e-5)

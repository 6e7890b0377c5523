"""SavedModels run by TensorFlow's own library, without its Python package: types, errors, memory, golden requests."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.errors import ModelError, ServingError
from serving.formats import Runner, load
from serving.golden import ask_golden, read_golden
from serving.repository import versions
from serving.runtimes import libtensorflow
from serving.signature import DEFAULT_SIGNATURE

REPOSITORY = Path(__file__).parents[2] / "model_repository"
INPUTS = {
    "text": np.array([b"abc", b"", b"x" * 100], dtype=object),
    "count": np.array([0, 1, 2**40]),
    "small": np.array([-1, 0, 127], np.int8),
    "flag": np.array([True, False, True]),
    "vector": np.arange(9.0).reshape(3, 3),
    "matrix": np.arange(12, dtype=np.float16).reshape(3, 2, 2),
}


def runner(models: Path, name: str, signature: str = DEFAULT_SIGNATURE, threads: int = 0) -> Runner:
    return load(models / name / "1", signature, threads)


def test_every_type_goes_in_and_out(models: Path) -> None:
    found = runner(models, "types").run(INPUTS)
    assert found["text"].tolist() == [b"ABC", b"", b"X" * 100]
    assert found["count"].tolist() == [1, 2, 1]  # the model makes 32 bits of it
    assert found["small"].tolist() == [1, 0, -127]
    assert found["flag"].tolist() == [False, True, False]
    np.testing.assert_array_equal(found["vector"], INPUTS["vector"] * 2)
    np.testing.assert_array_equal(found["matrix"], INPUTS["matrix"])
    assert {name: array.dtype for name, array in found.items()} == {
        "text": object, "count": np.int32, "small": np.int8, "flag": bool, "vector": np.float64, "matrix": np.float16,
    }  # fmt: skip


def test_no_rows_are_no_rows(models: Path) -> None:
    found = runner(models, "types").run({name: array[:0] for name, array in INPUTS.items()})
    assert {name: len(array) for name, array in found.items()} == dict.fromkeys(found, 0)


def test_a_trailing_one_is_dropped_where_the_signature_has_none(models: Path) -> None:
    text = np.array([[b"A"], [b"B"]], dtype=object)
    assert runner(models, "types", "lower").run({"text": text})["lower"].tolist() == [b"a", b"b"]


def test_what_the_model_refuses_has_its_code_and_sentence(models: Path) -> None:
    loaded = runner(models, "types")
    with pytest.raises(ModelError, match="the count is negative") as caught:
        loaded.run(INPUTS | {"count": np.array([0, -1, 2])})
    assert caught.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ModelError, match="input 'count': float64 in place of int64") as caught:
        loaded.run(INPUTS | {"count": np.zeros(3)})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert loaded.run(INPUTS)["small"].tolist() == [1, 0, -127]


def test_nothing_that_was_fed_is_kept(models: Path) -> None:
    loaded = runner(models, "types", threads=1)
    before = len(libtensorflow._held._buffers)
    for _ in range(50):
        loaded.run(INPUTS)
        with pytest.raises(ModelError):
            loaded.run(INPUTS | {"vector": np.zeros((3, 3), np.float32)})
    gc.collect()
    assert len(libtensorflow._held._buffers) == before


def test_threads_and_closing(models: Path) -> None:
    for threads in (1, 200):
        loaded = runner(models, "dense", threads=threads)
        assert loaded.run({"features": np.ones((2, 30), np.float32)})["score"].tolist() == [1.0, 1.0]
        loaded.close()


@pytest.mark.parametrize("gone", ["variables/variables.index", "variables/variables.data-00000-of-00001"])
def test_a_saved_model_without_its_variables_is_a_sentence(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "1" / "model.savedmodel"
    shutil.copytree(REPOSITORY / "fraud" / "2" / "model.savedmodel", folder)
    (folder / gone).unlink()
    with pytest.raises(ServingError, match="variables"):
        load(folder.parent)


def test_every_committed_version_gives_its_golden_answers() -> None:
    for version in versions(REPOSITORY):
        loaded = load(version.folder)
        golden = read_golden(version.folder)
        assert golden is not None
        ask_golden(golden, loaded.signature, loaded.run)
        changed = golden.model_copy(update={"outputs": {k: [v[0] + 1, *v[1:]] for k, v in golden.outputs.items()}})
        with pytest.raises(ServingError, match="golden requests: output '.*': value 0 is "):
            ask_golden(changed, loaded.signature, loaded.run)
        loaded.close()


def test_the_python_package_is_never_imported() -> None:
    script = (
        "import sys; from pathlib import Path; from serving.formats import load; "
        "from serving.arrays import zeros; r = load(Path(sys.argv[1])); r.run(zeros(r.signature, 2)); "
        "import json; print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'keras')]))"
    )
    folder = REPOSITORY / "fraud" / "1"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout or "null")) == (0, []), done.stderr

"""The model side without a server: signatures, joining, manifests, putting a version in."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import ServingError
from serving.formats import read_signature, stored_model
from serving.golden import read_golden
from serving.joining import run_joined
from serving.manifest import read_manifest, verify
from serving.quality import rmse, roc_auc
from serving.repository import versions
from serving.signature import Signature, Tensor, breaks
from serving.triton import models_of

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FRAUD = REPOSITORY / "fraud" / "1"


def test_a_signature_is_read_without_tensorflow() -> None:
    signature = read_signature(REPOSITORY / "personalization" / "2")
    assert [str(tensor) for tensor in signature.inputs] == ["item INT64[-1]", "user INT64[-1]"]
    assert [str(tensor) for tensor in signature.outputs] == ["rating FP32[-1]"]
    assert signature.batches


def test_what_is_no_saved_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no SavedModel and no ONNX model; expected model.savedmodel/saved_model.pb"):
        stored_model(tmp_path)
    with pytest.raises(ServingError, match="no signature 'other'; it has serving_default"):
        read_signature(FRAUD, "other")
    whole = (FRAUD / "model.savedmodel" / "saved_model.pb").read_bytes()
    for part in (whole[: len(whole) // 2], b"text"):
        (tmp_path / "saved_model.pb").write_bytes(part)
        with pytest.raises(ServingError, match="copied in part|no graph"):
            read_signature(tmp_path)


def test_a_contract_is_broken_by_what_those_who_ask_would_miss() -> None:
    def tensor(name: str, datatype: str = "FP32") -> Tensor:
        return Tensor(name, datatype, (-1,), f"{name}:0")

    before = Signature("s", (tensor("x"),), (tensor("y"), tensor("z")))
    assert breaks(before, before) is None
    assert breaks(before, Signature("t", (tensor("x"),), (tensor("more"), tensor("y"), tensor("z")))) is None
    assert breaks(before, Signature("s", (tensor("x"),), (tensor("y"),))) == "it has no output z"
    assert breaks(before, Signature("s", (tensor("u"), tensor("x")), before.outputs)) == (
        "its inputs are u, x in place of x"
    )
    other = Signature("s", (tensor("x", "FP64"),), before.outputs)
    assert breaks(before, other) == "x FP64[-1] in place of x FP32[-1]"


def test_every_committed_version_is_what_its_manifest_says() -> None:
    found = list(versions(REPOSITORY))
    assert [(v.model, v.number) for v in found] == [
        (name, number) for name in ("credit", "fraud", "maintenance", "personalization") for number in (1, 2)
    ]
    for version in found:
        assert version.problems == ()
        manifest = version.manifest
        assert manifest is not None
        assert manifest.data.licence
        assert manifest.quality
        assert manifest.drift_reference
        golden = read_golden(version.folder)
        assert golden is not None
        assert {t.name for t in manifest.signature.inputs} == set(golden.inputs)
        assert {t.name for t in manifest.signature.outputs} == set(golden.outputs)


def test_version_2_is_better() -> None:
    for name, better in (("credit", 1), ("fraud", 1), ("maintenance", 1), ("personalization", -1)):
        old, new = (read_manifest(REPOSITORY / name / str(number)) for number in (1, 2))
        assert old is not None
        assert new is not None
        (metric,) = old.quality
        assert better * new.quality[metric] > better * old.quality[metric]


def test_verify_finds_what_is_changed_missing_or_added(tmp_path: Path) -> None:
    version = tmp_path / "1"
    shutil.copytree(FRAUD, version)
    assert verify(version) == []
    (version / "golden.json").write_text("{}")
    (version / "model.savedmodel" / "variables" / "variables.index").unlink()
    (version / "extra").write_text("x")
    assert sorted(line.removeprefix(str(version)) for line in verify(version)) == [
        "/extra: not in the manifest",
        "/golden.json: its content is not what the manifest says",
        "/model.savedmodel/variables/variables.index: missing",
    ]
    (version / "manifest.json").write_text('{"model": 3}')
    with pytest.raises(ServingError, match=r"manifest.json: model: "):
        read_manifest(version)


def test_models_are_folders_with_versions(tmp_path: Path) -> None:
    assert sorted(models_of(REPOSITORY)) == ["credit", "fraud", "maintenance", "personalization"]
    assert models_of(tmp_path) == []


def double(inputs: Any) -> Any:
    if (inputs["x"] < 0).any():
        raise ValueError("negative")
    return {"y": inputs["x"] * 2}


def test_requests_are_joined_and_split_again() -> None:
    calls: list[int] = []

    def run(inputs: Any) -> Any:
        calls.append(len(inputs["x"]))
        return double(inputs)

    requests = [{"x": np.full((n, 2), n)} for n in (1, 3, 2)]
    answers = run_joined(requests, run, batches=True)
    assert calls == [6]
    assert [a["y"].tolist() for a in answers] == [np.full((n, 2), 2 * n).tolist() for n in (1, 3, 2)]


def test_only_requests_of_one_shape_and_type_are_joined() -> None:
    calls: list[tuple[int, ...]] = []

    def run(inputs: Any) -> Any:
        calls.append(inputs["x"].shape)
        return double(inputs)

    shapes = [np.ones((1, 2)), np.ones((1, 3)), np.ones((4, 2)), np.ones((1, 2), "f4")]
    run_joined([{"x": array} for array in shapes], run, batches=True)
    assert sorted(calls) == [(1, 2), (1, 3), (5, 2)]
    calls.clear()
    run_joined([{"x": array} for array in shapes], run, batches=False)
    assert len(calls) == 4


def test_an_error_fails_only_its_own_request() -> None:
    answers = run_joined([{"x": np.array([n])} for n in (1, -1, 2)], double, batches=True)
    assert [a["y"].tolist() if isinstance(a, dict) else str(a) for a in answers] == [[2], "negative", [4]]


def test_a_model_that_loses_rows_is_never_split_wrongly() -> None:
    def lose(inputs: Any) -> Any:
        return {"y": inputs["x"][:-1]}

    answers = run_joined([{"x": np.array([1, 2])}, {"x": np.array([3])}], lose, batches=True)
    assert [a["y"].tolist() for a in answers] == [[1], []]  # each its own answer, for the caller to see


def test_quality() -> None:
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    assert roc_auc(labels, np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert roc_auc(labels, np.zeros(4)) == 0.5
    assert np.isnan(roc_auc(np.ones(3), np.zeros(3)))
    assert rmse(labels, labels + 2) == 2

"""Events to rows: what fits, and the sentence for what does not."""

import struct

import numpy as np
import orjson
import pytest

from bridge.decode import JsonFormat, RawFormat
from bridge.errors import ConfigError
from bridge.mapping import InputPlan, compile_outputs
from bridge.tensors import ModelSpec, TensorSpec, decode_bytes


def model(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> ModelSpec:
    return ModelSpec("m", ["1"], inputs, outputs, None)


AB = model(TensorSpec("features", "FP32", (2,)))
PLAN = InputPlan.compile(AB, {"features": ["a", "b"]})


def reject(value: bytes | None, plan: InputPlan = PLAN) -> str:
    """The reason and sentence of a bad event, which stands between two good ones that must not be harmed."""
    good = b'{"a":1,"b":2}'
    decoded = JsonFormat(plan).decode([good, value, good]) if plan is PLAN else JsonFormat(plan).decode([value])
    assert list(decoded.places) == ([0, 2] if plan is PLAN else [])
    (found,) = decoded.rejects
    assert found.row == (1 if plan is PLAN else 0)
    return f"{found.reason}: {found.error}"


def test_fields_are_stacked_in_the_given_order() -> None:
    decoded = JsonFormat(InputPlan.compile(AB, {"features": ["b", "a"]})).decode([b'{"a":1,"b":2.5,"c":9}'])
    assert decoded.rows == {"features": [struct.pack("<2f", 2.5, 1)]}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"no json", "decode: the event is not JSON"),
        (b"", "decode: the event is not JSON"),
        (b'{"a":1', "decode: the event is not JSON"),
        (b'{"a":NaN,"b":1}', "decode: the event is not JSON"),
        (b'{"a":1e999,"b":1}', "decode: the event is not JSON"),
        (b"\xff\xfe", "decode: the event is not JSON"),
        (None, "decode: the event has no value (a tombstone)"),
        (b"[1,2]", "decode: the event is an array, not a JSON object"),
        (b"1", "decode: the event is a number"),
        (b"null", "decode: the event is null"),
        (b'{"a":1}', "mapping: field 'b' is missing"),
        (b'{"a":null,"b":1}', "mapping: field 'a' is null"),
        (b'{"a":"1","b":1}', "mapping: field 'a' is a string, but tensor 'features' (FP32) needs a number"),
        (b'{"a":[1],"b":1}', "mapping: field 'a' is an array"),
        (b'{"a":{"b":1},"b":1}', "mapping: field 'a' is an object"),
        (b'{"a":1e39,"b":1}', "mapping: field 'a' is 1e+39, out of range of tensor 'features' (FP32)"),
        # Crafted to break a joined parse.
        (b"1,2", "decode: the event is not JSON"),
        (b"[3", "decode: the event is not JSON"),
        (b"4]", "decode: the event is not JSON"),
        (b'{"a":1},{"a":2}', "decode: the event is not JSON"),
        (b'"unbalanced', "decode: the event is not JSON"),
        (b'{"a":1,"b":2}]', "decode: the event is not JSON"),
        (b'{"a":1,"b":2},"x"', "decode: the event is not JSON"),
    ],
)
def test_a_bad_event_is_rejected_and_harms_nobody(value: bytes | None, sentence: str) -> None:
    assert reject(value).startswith(sentence)


def test_crafted_events_that_only_work_together_are_each_rejected() -> None:
    crafted = [b"1,2", b"[3", b"4]", b'{"a":1', b'"b":2}', b'"', b'"']
    good = b'{"a":1,"b":2}'
    decoded = JsonFormat(PLAN).decode([good, *crafted, good])
    assert list(decoded.places) == [0, len(crafted) + 1]
    assert [item.row for item in decoded.rejects] == list(range(1, len(crafted) + 1))


def test_events_that_shift_their_neighbours_without_changing_the_count_are_each_rejected() -> None:
    # Joined: {..},7,{..} | {"k":[1 , 2],..} has as many elements as three events have, and all of them objects.
    crafted = [b'{"a":1,"b":1},7,{"a":2,"b":2}', b'{"k":[1', b'2],"a":1,"b":1}']
    decoded = JsonFormat(PLAN).decode(crafted)
    assert [(item.row, item.reason) for item in decoded.rejects] == [(0, "decode"), (1, "decode"), (2, "decode")]


def test_the_fence_cannot_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a known fence an event could carry it: this is what the random one prevents.
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    shifted = [b'{"a":1,"b":1},"fence-known",{"a":2,"b":2}', b'{"a":3,"b":3']
    assert [item.row for item in JsonFormat(PLAN).decode(shifted).rejects] == [0, 1]
    nonces = set()
    monkeypatch.undo()
    real = orjson.loads
    monkeypatch.setattr(orjson, "loads", lambda data: nonces.add(data[5:30]) or real(data))
    for _ in range(3):
        JsonFormat(PLAN).decode([b"{}", b"{}"])
    assert len([item for item in nonces if b"fence" in item]) == 3


@pytest.mark.parametrize(
    ("spec", "fields", "event", "sentence"),
    [
        (TensorSpec("x", "INT8", ()), "x", b'{"x":200}', "mapping: field 'x' is 200, out of range of tensor 'x' (INT8)"),
        (TensorSpec("x", "INT64", ()), "x", b'{"x":1.5}', "mapping: field 'x' is 1.5, but tensor 'x' (INT64) needs a whole"),
        (TensorSpec("x", "UINT8", ()), "x", b'{"x":-1}', "mapping: field 'x' is -1, out of range"),
        (TensorSpec("x", "FP16", ()), "x", b'{"x":70000}', "mapping: field 'x' is 70000, out of range"),
        (TensorSpec("x", "BOOL", ()), "x", b'{"x":1}', "mapping: field 'x' is a number, but tensor 'x' (BOOL) needs true"),
        (TensorSpec("x", "BYTES", ()), "x", b'{"x":1}', "mapping: field 'x' is a number, but tensor 'x' (BYTES) needs"),
        (TensorSpec("x", "FP32", (3,)), "x", b'{"x":[1,2]}', "mapping: field 'x' has 2 elements, but tensor 'x' needs 3"),
        (TensorSpec("x", "FP32", (3,)), "x", b'{"x":"abc"}', "mapping: field 'x' is a string, but tensor 'x' needs an"),
        (TensorSpec("x", "FP32", (3,)), "x", b'{"x":[1,2,null]}', "mapping: field 'x[2]' is null"),
        (TensorSpec("x", "FP32", (2, 2)), "x", b'{"x":[[1,2],[3]]}', "mapping: field 'x[1]' has 1 elements"),
        (TensorSpec("x", "FP32", ()), "a.b", b'{"a":5}', "mapping: field 'a.b' is missing: 'a' is no object"),
        (TensorSpec("x", "FP32", ()), "a.b", b'{"a":{}}', "mapping: field 'a.b' is missing"),
        (TensorSpec("x", "INT64", ()), "x", b'{"x":9223372036854775808}', "mapping: field 'x' is 9223372036854775808, out"),
    ],
)  # fmt: skip
def test_the_sentence_names_the_field_and_the_tensor(
    spec: TensorSpec, fields: str, event: bytes, sentence: str
) -> None:
    assert reject(event, InputPlan.compile(model(spec), {"x": fields})).startswith(sentence)


@pytest.mark.parametrize(
    ("spec", "fields", "event", "expected"),
    [
        (TensorSpec("x", "FP32", ()), "x", b'{"x":2}', [2.0]),
        (TensorSpec("x", "FP32", (1,)), "x", b'{"x":[2]}', [2.0]),
        (TensorSpec("x", "FP32", (1,)), ["x"], b'{"x":true}', [1.0]),
        (TensorSpec("x", "INT64", ()), "a.b", b'{"a":{"b":-5}}', [-5]),
        (TensorSpec("x", "FP64", (3,)), "x", b'{"x":[1,2,3]}', [1, 2, 3]),
        (TensorSpec("x", "FP16", (2, 2)), "x", b'{"x":[[1,2],[3,4]]}', [1, 2, 3, 4]),
        (TensorSpec("x", "BOOL", (2,)), ["p", "q"], b'{"p":true,"q":false}', [True, False]),
        (TensorSpec("x", "UINT64", ()), "x", b'{"x":18446744073709551615}', [2**64 - 1]),
        (TensorSpec("x", "BYTES", (2,)), "x", '{"x":["é",""]}'.encode(), ["é".encode(), b""]),
    ],
)
def test_every_kind_of_tensor(spec: TensorSpec, fields: str | list[str], event: bytes, expected: list[object]) -> None:
    decoded = JsonFormat(InputPlan.compile(model(spec), {"x": fields})).decode([event])
    payload = decoded.rows["x"][0]
    if spec.datatype == "BYTES":
        assert decode_bytes(payload).tolist() == expected
    else:
        numpy = {"FP": "f", "IN": "i", "UI": "u", "BO": "b"}[spec.datatype[:2]] + str(len(payload) // len(expected))
        assert np.frombuffer(payload, "<" + numpy if numpy != "b1" else "?").tolist() == expected


def test_without_a_mapping_each_input_takes_the_field_of_its_name() -> None:
    plan = InputPlan.compile(model(TensorSpec("user", "INT64", ()), TensorSpec("item", "INT64", ())), None)
    decoded = JsonFormat(plan).decode([b'{"item":2,"user":1}'])
    assert decoded.rows == {"user": [struct.pack("<q", 1)], "item": [struct.pack("<q", 2)]}


def test_copied_fields_follow_their_row() -> None:
    decoded = JsonFormat(PLAN, ["id", "u.n"]).decode(
        [b'{"a":1,"b":1,"id":"x"}', b"bad", b'{"a":1,"b":1,"id":[1,{}],"u":{"n":5}}']
    )
    assert decoded.copied == {"id": [b'"x"', b"[1,{}]"], "u.n": [b"null", b"5"]}
    assert list(decoded.places) == [0, 2]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"[" * 300 + b"]" * 300, "field 'id' cannot be copied: Recursion limit reached"),
        (b"123456789012345678901", "field 'id' cannot be copied: the number is too large to be repeated exactly"),
    ],
)
def test_what_cannot_be_copied_exactly_is_rejected(value: bytes, sentence: str) -> None:
    good, bad = b'{"a":1,"b":1,"id":7}', b'{"a":1,"b":1,"id":' + value + b"}"
    decoded = JsonFormat(PLAN, ["id"]).decode([good, bad, good])
    assert decoded.copied == {"id": [b"7", b"7"]}
    assert [(item.row, item.reason, item.error) for item in decoded.rejects] == [(1, "mapping", sentence)]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"featurs": ["a", "b"]}, "model 'm' has no input of that name; it has features FP32[rows, 2]"),
        ({"features": ["a", "b", "c"]}, "3 fields (a, b, c) are given, but tensor features FP32[rows, 2] of model 'm' tak"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_mapping_that_does_not_fit_names_both_sides(inputs: dict[str, list[str]], sentence: str | None) -> None:
    if sentence is None:
        InputPlan.compile(AB, inputs)
        return
    with pytest.raises(ConfigError) as caught:
        InputPlan.compile(AB, inputs)
    assert sentence in str(caught.value)


def test_inputs_that_cannot_be_filled() -> None:
    with pytest.raises(ConfigError, match="no fixed row shape"):
        InputPlan.compile(model(TensorSpec("x", "FP32", (-1,))), None)
    with pytest.raises(ConfigError, match="a type that events cannot fill"):
        InputPlan.compile(model(TensorSpec("x", "BF16", (1,))), None)
    with pytest.raises(ConfigError, match="nothing feeds the input y"):
        InputPlan.compile(model(TensorSpec("x", "FP32", ()), TensorSpec("y", "FP32", ())), {"x": "x"})


def test_outputs_that_do_not_fit() -> None:
    out = model(outputs=(TensorSpec("score", "FP32", ()),))
    for outputs, copied, sentence in (
        ({"s": "scroe"}, [], "no output 'scroe'; it has score"),
        ({"model": "score"}, [], "every result carries a field of that name"),
        (None, ["score"], "'score' is also a field of model.outputs"),
        (None, ["model_version"], "every result carries a field 'model_version'"),
    ):
        with pytest.raises(ConfigError) as caught:
            compile_outputs(out, outputs, copied)
        assert sentence in str(caught.value)


def test_raw_events_are_rows() -> None:
    raw = RawFormat.compile(AB)
    row = struct.pack("<2f", 1, 2)
    decoded = raw.decode([row, row[:-1], None, row])
    assert (decoded.rows["features"], list(decoded.places)) == ([row, row], [0, 3])
    assert [item.error for item in decoded.rejects] == [
        "the event has 7 bytes, but a row of features FP32[rows, 2] has 8",
        "the event has no value (a tombstone)",
    ]


def test_raw_needs_one_input_of_fixed_size() -> None:
    with pytest.raises(ConfigError, match="needs a model with one input"):
        RawFormat.compile(model(TensorSpec("x", "FP32", ()), TensorSpec("y", "FP32", ())))
    with pytest.raises(ConfigError, match="needs an input of fixed size"):
        RawFormat.compile(model(TensorSpec("x", "BYTES", ())))

"""Whatever bytes arrive, every event is a row or a reject of its own, and equal to what it is alone."""

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.decode import JsonFormat
from bridge.mapping import InputPlan
from bridge.tensors import ModelSpec, TensorSpec

MODEL = ModelSpec(
    "m",
    ["1"],
    [TensorSpec("v", "FP32", (2,)), TensorSpec("n", "INT16", ()), TensorSpec("s", "BYTES", ())],
    [],
    None,
)
PLAN = InputPlan.compile(MODEL, {"v": ["a", "b"], "n": "n", "s": "s"})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**20), 2**20) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abns"), inner, max_size=4),
    max_leaves=6,
)
good = st.fixed_dictionaries(
    {"a": st.integers(-9, 9), "b": st.floats(-9, 9), "n": st.integers(-9, 9), "s": st.text(max_size=3)}
)
fragments = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b",", b'"', b'"a":1', b":", b"1", b"null", b" ", b"\\", b"fence-", b"\xff"]
    ),
    max_size=6,
).map(b"".join)
events = st.lists(
    st.none() | fragments | st.binary(max_size=12) | json_values.map(orjson.dumps) | good.map(orjson.dumps), max_size=12
)


@given(events)
@settings(max_examples=500)
def test_a_batch_is_the_sum_of_its_events(values: list[bytes | None]) -> None:
    form = JsonFormat(PLAN, ["a"])
    together = form.decode(values)
    assert sorted([*together.places, *(item.row for item in together.rejects)]) == list(range(len(values)))
    assert all(len(rows) == len(together.places) for rows in together.rows.values())
    alone = [form.decode([value]) for value in values]
    for row, place in enumerate(together.places):
        assert alone[place].rows == {name: [rows[row]] for name, rows in together.rows.items()}
        assert alone[place].copied["a"] == [together.copied["a"][row]]
    for item in together.rejects:
        (single,) = alone[item.row].rejects
        assert (single.reason, single.error) == (item.reason, item.error)


@given(st.lists(good, min_size=1, max_size=8))
def test_the_fast_way_and_the_slow_way_agree(documents: list[dict[str, object]]) -> None:
    fast, rejects = PLAN.rows(documents)
    assert rejects == []
    assert fast == {plan.spec.name: [plan.explain(document) for document in documents] for plan in PLAN.tensors}

"""The Triton client against a scripted server of the official messages: every answer ends in its disposition."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bridge.config.model import Model, Tls
from bridge.infer import Disposition, InferenceError
from bridge.infer.triton import TritonServer
from tests.certificates import Authority
from tests.v2_server import refuse, response, v2_server


def ask(address: str, count: int = 2, calls: int = 1, **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        server = TritonServer(Model(address=address, name="m", **{"timeout": "5s", **options}))
        try:
            model = await server.describe()
            rows = {"x": [struct.pack("<f", n) for n in range(count)]}
            return [await server.infer(model, rows, count, ["y"]) for _ in range(calls)]
        finally:
            await server.close()

    return asyncio.run(run())


def test_the_official_messages_are_understood() -> None:
    with v2_server(lambda x: x * 2) as (server, address):
        server.version = "12"
        (prediction,) = ask(address)
    assert prediction.outputs["y"].tolist() == [[0], [2]]
    assert prediction.version == "12"


@pytest.mark.parametrize(
    ("code", "disposition"),
    [
        (grpc.StatusCode.UNAVAILABLE, Disposition.RETRY),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Disposition.RETRY),
        (grpc.StatusCode.ABORTED, Disposition.RETRY),
        (grpc.StatusCode.INTERNAL, Disposition.UNSURE),
        (grpc.StatusCode.UNKNOWN, Disposition.UNSURE),
        (grpc.StatusCode.INVALID_ARGUMENT, Disposition.DATA),
        (grpc.StatusCode.OUT_OF_RANGE, Disposition.DATA),
        (grpc.StatusCode.NOT_FOUND, Disposition.ABSENT),
        (grpc.StatusCode.FAILED_PRECONDITION, Disposition.ABSENT),
        (grpc.StatusCode.UNAUTHENTICATED, Disposition.STOP),
        (grpc.StatusCode.PERMISSION_DENIED, Disposition.STOP),
        (grpc.StatusCode.UNIMPLEMENTED, Disposition.STOP),
    ],
)
def test_every_status_ends_in_a_disposition(code: grpc.StatusCode, disposition: Disposition) -> None:
    with v2_server(refuse(code)) as (_, address), pytest.raises(InferenceError) as caught:
        ask(address)
    assert (caught.value.disposition, caught.value.code) == (disposition, code.name)
    assert str(caught.value) == f"model 'm' at {address}: {code.name}: scripted"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: x[:-1], "answered output 'y' of shape [1, 1] to 2 rows"),
        (lambda x: np.concatenate([x, x]), "answered output 'y' of shape [4, 1] to 2 rows"),
        (lambda x: response(x, name="z"), "answered without the output 'y'"),
        (lambda _: type(response(np.zeros(1)))(model_name="m"), "answered without the output 'y'"),
    ],
)
def test_an_answer_that_does_not_fit_is_never_used(answer: Any, sentence: str) -> None:
    with v2_server(answer) as (_, address), pytest.raises(InferenceError) as caught:
        ask(address)
    assert (caught.value.disposition, caught.value.code) == (Disposition.RETRY, "BAD_ANSWER")
    assert sentence in str(caught.value)


def test_an_answer_of_another_shape_or_type_stops() -> None:
    for answer in (lambda x: np.concatenate([x, x], axis=1), lambda x: x.reshape(-1)):
        with (
            v2_server(answer) as (_, address),
            pytest.raises(InferenceError, match="its signature has changed") as caught,
        ):
            ask(address)
        assert caught.value.disposition is Disposition.STOP


def test_a_payload_that_is_too_short_is_never_used() -> None:
    def cut(x: np.ndarray) -> Any:
        made = response(x)
        made.raw_output_contents[0] = made.raw_output_contents[0][:-4]
        return made

    with v2_server(cut) as (_, address), pytest.raises(InferenceError, match="cannot be read: 1 elements"):
        ask(address)


def test_a_server_that_never_answers_meets_the_deadline() -> None:
    with v2_server(lambda _: asyncio.sleep(3600)) as (_, address), pytest.raises(InferenceError) as caught:
        ask(address, timeout="200ms")
    assert (caught.value.disposition, caught.value.code) == (Disposition.RETRY, "DEADLINE_EXCEEDED")


def test_nobody_there_is_a_retry() -> None:
    with pytest.raises(InferenceError) as caught:
        ask("127.0.0.1:1")
    assert (caught.value.disposition, caught.value.code) == (Disposition.RETRY, "UNAVAILABLE")


def test_calls_go_round_all_addresses() -> None:
    with v2_server(lambda x: x) as (one, first), v2_server(lambda x: x) as (two, second):
        ask(f"ipv4:{first},{second}", calls=40)
        assert min(one.calls, two.calls) >= 15
        port = first.rpartition(":")[2]
        assert len(ask(f"dns:///localhost:{port}", calls=3)) == 3


def test_mutual_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    mine, my_key = authority.issue("client")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.ca.read_bytes(), require_client_auth=True
    )
    with v2_server(lambda x: x, credentials) as (_, address):
        port = address.rpartition(":")[2]
        tls = Tls(enabled=True, ca_file=authority.ca, cert_file=mine, key_file=my_key)
        assert len(ask(f"localhost:{port}", tls=tls)) == 1
        for refused in (Tls(enabled=True, ca_file=authority.ca), Tls()):
            with pytest.raises(InferenceError) as caught:
                ask(f"localhost:{port}", tls=refused)
            assert caught.value.disposition is Disposition.RETRY

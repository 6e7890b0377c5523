"""TLS and every SASL mechanism, on a real Kafka with an encrypted listener."""

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bridge.config import parse
from bridge.kafka import client_options
from headrace.rig.kafka import KafkaCluster, fetch_jars, java
from headrace.rig.process import free_port
from tests.certificates import Authority
from tests.support import Broker, headrace, pipeline, running, until

PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"
BEARER = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
UNSECURED = (
    "org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
)


@dataclass
class Secured:
    """A cluster with a plain listener for the tests and encrypted ones for the bridge."""

    broker: Broker
    folder: Path
    sasl: int
    tls: int
    authority: Authority


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("security")
    authority = Authority(folder)
    authority.issue("broker")
    authority.issue("client")
    plain, sasl, tls, controller = (free_port() for _ in range(4))
    properties = {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{tls}"
        f",CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{tls}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": str(folder / "broker.p12"),
        "ssl.keystore.password": "changeit",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca),
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{PLAIN} required user_alice="secret";',
        "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": f"{SCRAM} required;",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{SCRAM} required;",
        "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": f'{BEARER} required unsecuredLoginStringClaim_sub="x";',
        "listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class": UNSECURED,
    }
    with KafkaCluster(port=plain, properties=lambda _: properties) as cluster:
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            command = [java(), "-cp", ":".join(map(str, fetch_jars())), "kafka.admin.ConfigCommand"]
            arguments = ["--bootstrap-server", cluster.bootstrap_servers, "--alter", "--entity-type", "users"]
            arguments += ["--entity-name", "alice", "--add-config", f"{mechanism}=[password=secret]"]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        (folder / "password").write_text("secret\n")
        (folder / "wrong").write_text("guess\n")
        (folder / "token").write_text(token("alice"))
        yield Secured(Broker(cluster.bootstrap_servers), folder, sasl, tls, authority)


def token(user: str) -> str:
    """An unsigned token, as the broker's unsecured validator takes it."""

    def part(document: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': user, 'iat': now, 'exp': now + 3600})}."


def sasl(world: Secured, mechanism: str, password: str = "password") -> dict[str, Any]:
    if mechanism == "OAUTHBEARER":
        login: dict[str, Any] = {"token_file": str(world.folder / "token")}
    else:
        login = {"username": "alice", "password_file": str(world.folder / password)}
    return {
        "bootstrap_servers": f"127.0.0.1:{world.sasl}",
        "security": {
            "protocol": "SASL_SSL",
            "ca_file": str(world.authority.ca),
            "sasl": {"mechanism": mechanism, **login},
        },
    }


def round_trip(kafka: dict[str, Any], topics: dict[str, str]) -> bytes:
    """Write and read one record as these clients."""
    config = parse(pipeline("x:1", "x:1", "m", topics) | {"kafka": kafka}, {})

    async def run() -> bytes:
        producer = AIOKafkaProducer(**client_options(config.kafka))
        await producer.start()
        await producer.send_and_wait(topics["alerts"], b"hello", partition=0)
        await producer.stop()
        consumer = AIOKafkaConsumer(
            topics["alerts"], **client_options(config.kafka), auto_offset_reset="earliest", group_id="g"
        )
        await consumer.start()
        try:
            async with asyncio.timeout(30):
                record = await consumer.getone()
            return bytes(record.value)
        finally:
            await consumer.stop()

    return asyncio.run(run())


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
def test_every_mechanism(secured: Secured, mechanism: str) -> None:
    assert round_trip(sasl(secured, mechanism), secured.broker.topics(1)) == b"hello"


def test_mutual_tls(secured: Secured) -> None:
    kafka = {
        "bootstrap_servers": f"127.0.0.1:{secured.tls}",
        "security": {
            "protocol": "SSL",
            "ca_file": str(secured.authority.ca),
            "cert_file": str(secured.folder / "client.pem"),
            "key_file": str(secured.folder / "client.key"),
        },
    }
    assert round_trip(kafka, secured.broker.topics(1)) == b"hello"


def test_a_pipeline_over_sasl_and_tls(secured: Secured, triton: Any, tmp_path: Path) -> None:
    topics = secured.broker.topics()
    config = pipeline("x:1", triton.address, "log", topics) | {"kafka": sasl(secured, "SCRAM-SHA-512")}
    secured.broker.produce(topics["events"], [(0, b"k", b'{"x":1}')])
    with running(config, tmp_path) as bridge:
        until(lambda: secured.broker.count(topics["results"]) == 1)
        assert bridge.terminate() == 0


def test_a_wrong_password_stops_with_a_sentence(secured: Secured, triton: Any, tmp_path: Path) -> None:
    import yaml

    config = pipeline("x:1", triton.address, "log", secured.broker.topics())
    for kafka, sentence in (
        (sasl(secured, "PLAIN", "wrong"), "refused the login; check kafka.security.sasl"),
        (sasl(secured, "SCRAM-SHA-256", "wrong"), "refused the login; check kafka.security.sasl"),
    ):
        path = tmp_path / "p.yaml"
        path.write_text(yaml.safe_dump(config | {"kafka": kafka}))
        done = headrace("run", str(path))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert sentence in done.stderr
        checked = headrace("check", str(path))
        assert checked.returncode == 1
        assert sentence in checked.stderr


def test_an_authority_that_is_not_trusted_stops_with_a_sentence(secured: Secured, triton: Any, tmp_path: Path) -> None:
    import yaml

    other = tmp_path / "other"
    other.mkdir()
    kafka = sasl(secured, "PLAIN")
    kafka["security"]["ca_file"] = str(Authority(other).ca)
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(pipeline("x:1", triton.address, "log", secured.broker.topics()) | {"kafka": kafka}))
    done = headrace("run", str(path))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "no trusted encrypted connection" in done.stderr

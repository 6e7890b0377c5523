"""What all tests share. Real servers start once a session, when first needed; a missing part fails, it never skips."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from headrace.rig.kafka import KafkaCluster
from headrace.rig.triton import TritonRig
from tests import onnx_models
from tests.support import Broker, serving_of

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("suite")


if not any("interop" in argument for argument in sys.argv):
    collect_ignore = ["interop"]  # needs other people's servers: make interop


def pytest_addoption(parser: pytest.Parser) -> None:
    """How thorough the fault rows are."""
    parser.addoption("--all-rows", action="store_true", help="run every row of the fault catalogue, in both modes")
    parser.addoption("--seeds", type=int, default=1, help="run each row of the fault catalogue with so many seeds")


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """A real Kafka of one broker."""
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def broker(kafka: KafkaCluster) -> Broker:
    """The same, with what tests do with topics."""
    return Broker(kafka.bootstrap_servers)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the tests' own models (tests/models.py)."""
    folder = tmp_path_factory.mktemp("models")
    script = Path(__file__).parent / "models.py"
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    onnx_models.types(folder / "onnx_types" / "1" / "model.onnx")
    (folder / "onnx_types" / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    return folder


@pytest.fixture(scope="session")
def triton(models: Path) -> Iterator[TritonRig]:
    """A real Triton with the tests' models."""
    with TritonRig(models) as rig:
        yield rig


@pytest.fixture(scope="session")
def tensorflow_serving(models: Path) -> Iterator[str]:
    """Address of a server of TensorFlow Serving's API with the tests' models."""
    with serving_of(models) as address:
        yield address


@pytest.fixture
def virtual_time() -> Iterator[asyncio.Runner]:
    """Runs coroutines on a loop whose clock jumps to the next timer, so that waiting takes no time."""
    from tests.virtual_loop import VirtualLoop

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        yield runner

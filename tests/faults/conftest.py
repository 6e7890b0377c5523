"""What the rows share: the model server of the rows that are not about the model, and the seeds."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from tests.v2_server import v2_server


def double(rows: np.ndarray) -> np.ndarray:
    """y = 2x; refuses a batch with a negative x."""
    if (rows < 0).any():
        raise grpc.RpcError(grpc.StatusCode.INVALID_ARGUMENT)
    return rows * 2


@pytest.fixture(scope="session")
def model() -> Iterator[str]:
    """Address of a model server that doubles."""
    with v2_server(double) as (_, address):
        yield address


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each row with so many seeds as asked for (--seeds), one by default."""
    if "seed" in metafunc.fixturenames:
        count = metafunc.config.getoption("--seeds")
        metafunc.parametrize("seed", range(1, count + 1))

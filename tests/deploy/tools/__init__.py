"""Programs that tests of the chart run where they are there: make chart-tools brings them."""

import os
import shutil
from pathlib import Path

import pytest

_BIN = Path(__file__).parents[3] / ".cluster" / "bin"


def needs(name: str) -> str:
    """The path of a program. Where it is missing the test is skipped, but in continuous integration it fails."""
    found = shutil.which(name, path=f"{_BIN}:{os.environ['PATH']}")
    if found is None:
        reason = f"{name} is not here; make chart-tools brings it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found

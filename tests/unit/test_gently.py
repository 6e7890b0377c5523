"""Work in a thread of low priority."""

import os

import pytest

from serving.gently import gently


def test_only_the_work_is_of_low_priority() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found: list[int] = []
    gently(lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0)))
    assert found == [10]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_fails_there_fails_here() -> None:
    with pytest.raises(ImportError, match="no such module"):
        gently(lambda: (_ for _ in ()).throw(ImportError("no such module")))

"""Publishers and watchers that are killed: `python -m tests.killed publish|watch …`, used by tests on a real Triton.

Each step is done in a process of its own, which kills itself with SIGKILL at the N-th operation on a file or call of the
server; the next process begins where that one has left off. For N = 1, 1 + stride, … until a process comes to its end.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OPERATIONS = ("open", "os.", "shutil.", "fcntl.", "headrace.")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do it in a process that is killed at operation `step`; whether it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def count_down(event: str, arguments: Any) -> None:
            nonlocal count
            if event.startswith(_OPERATIONS):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count_down)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"step {step}"
    return False


def publishers(source: Path, repository: Path, stride: int) -> None:
    """Prints for each step: the step, whether it was killed."""
    from serving.publish import publish

    step = 1
    while killed_at(step, lambda: publish(source, repository)):
        print(step, "killed", flush=True)
        step += stride
    print(step, "done", flush=True)


def watchers(repository: Path, view: Path, address: str, sources: list[Path], stride: int) -> None:
    """For each step: a new version comes, a watcher is killed at that step, the next one has to bring it to the server.

    Prints the step, whether it was killed, and what is loaded after the next watcher's turns.
    """
    import shutil

    def watch() -> None:
        from serving.control import TritonControl
        from serving.view import View
        from serving.watch import Watcher

        class Counted(TritonControl):
            def __getattribute__(self, name: str) -> Any:
                found = super().__getattribute__(name)
                if name in ("load", "ready", "unload", "ask"):
                    return lambda *arguments: _between(found, *arguments)
                return found

        def _between(call: Callable[..., Any], *arguments: Any) -> Any:
            sys.audit("headrace.before")
            answer = call(*arguments)
            sys.audit("headrace.after")
            return answer

        own = View(view)
        watcher = Watcher(repository, own, Counted(address), lambda event: None, settle=0.0)
        while watcher.turn():
            pass

    def loaded() -> None:
        from serving.control import TritonControl

        print(*sorted(TritonControl(address).ready().get("fraud", ())), flush=True)

    killed_at(0, watch)
    step, killed = 1, True
    while killed:
        number = 1 + max(int(path.name) for path in (repository / "fraud").iterdir() if path.name.isdigit())
        aside = repository / "fraud" / f".{number}"
        shutil.copytree(sources[step % 2], aside)
        (aside / "manifest.json").unlink()
        aside.rename(repository / "fraud" / str(number))
        killed = killed_at(step, watch)
        print(step, "killed" if killed else "done", number, end=" ", flush=True)
        killed_at(0, loaded)  # as it was left
        killed_at(0, watch)
        print("then", end=" ", flush=True)
        killed_at(0, loaded)
        step += stride


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "publish":
        publishers(Path(rest[0]), Path(rest[1]), int(rest[2]))
    else:
        watchers(Path(rest[0]), Path(rest[1]), rest[2], [Path(rest[3]), Path(rest[4])], int(rest[5]))

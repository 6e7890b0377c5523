"""How the tritonserver of the nvidia-pytriton wheel is started: its command line, environment and readiness."""

import importlib.util
import os
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServingError

BACKEND = Path(__file__).parent / "backend"
BACKEND_NAMES = ("tensorflow", "onnxruntime")


@dataclass(frozen=True, slots=True)
class TritonLaunch:
    """One tritonserver to start.

    Attributes:
        repository: the model repository.
        home: an empty folder for the server's assembled backends; it must outlive the server.
        grpc_port: of the inference service.
        http_port: of the same over HTTP, and of the health endpoints.
        metrics_port: of Triton's own metrics.
        host: to listen on.
        models: to load at start; None loads all that the repository holds, of which there must be one.
    """

    repository: Path
    home: Path
    grpc_port: int
    http_port: int
    metrics_port: int
    host: str = "127.0.0.1"
    models: tuple[str, ...] | None = None

    def command(self) -> list[str]:
        """The command line.

        Raises:
            ServingError: the wheel is not installed, or the repository is no folder.
        """
        if not self.repository.is_dir():
            raise ServingError(f"{self.repository}: no such model repository; a repository is a folder of models")
        backends = self.home / "backends"
        shutil.rmtree(backends, ignore_errors=True)  # of a server that has been killed, and is started again
        assemble_backends(backends)
        names = self.models if self.models is not None else tuple(sorted(models_of(self.repository)))
        if not names and self.models is None:
            raise ServingError(f"{self.repository}: no model in it; expected <model>/<version>/model.savedmodel/")
        return [
            str(_package() / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            # Explicit: a version that is still being copied must never be loaded by a poll.
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in names),
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--http-address={self.host}",
            f"--http-port={self.http_port}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.metrics_port}",
            "--exit-timeout-secs=10",
            "--log-info=false",
        ]

    def environment(self) -> dict[str, str]:
        """The server's environment variables."""
        libraries = _package().parent / "nvidia_pytriton.libs"
        return {
            **os.environ,
            "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            # The stub of the Python backend takes the interpreter, and so numpy and TensorFlow, from here.
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }

    def ready(self) -> bool:
        """Whether every model answers."""
        url = f"http://{self.host}:{self.http_port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def assemble_backends(folder: Path) -> None:
    """Put our own backend into a folder of Triton's backends, under its names.

    Args:
        folder: made when it is not there. One without a Python backend gets that of the wheel, with the stub of this
            Python; NVIDIA's images have one.

    Raises:
        ServingError: the wheel is needed, but not installed or not for this Python.
    """
    python = folder / "python"
    if not python.is_dir():
        server = _package() / "tritonserver"
        stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        if not stub.is_dir():
            raise ServingError(f"the Triton wheel has no stub for Python {stub.name}; it has those of 3.8 to 3.13")
        python.mkdir(parents=True)
        for source in (server / "backends" / "python", stub):
            for file in source.iterdir():
                if file.is_file():
                    shutil.copy2(file, python / file.name)  # Triton refuses links that lead out of the folder
    for name in BACKEND_NAMES:
        shutil.rmtree(folder / name, ignore_errors=True)  # another backend of that name
        shutil.copytree(BACKEND, folder / name)


def models_of(repository: Path) -> list[str]:
    """The names of the models in a repository: the folders that hold at least one version."""
    return [
        entry.name
        for entry in repository.iterdir()
        if entry.is_dir() and any(child.is_dir() and child.name.isdigit() for child in entry.iterdir())
    ]


def _package() -> Path:
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise ServingError("Triton is not installed here; pip install 'headrace[serving]' (Linux x86_64)")
    return Path(found.origin).parent


if __name__ == "__main__":  # how images are made: python -m serving.triton FOLDER
    assemble_backends(Path(sys.argv[1]))

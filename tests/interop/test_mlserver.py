"""The whole bridge on MLServer, which speaks Triton's protocol and is another program."""

import json
import shutil
from pathlib import Path

import pytest

from headrace.rig.process import ServerProcess, free_port
from tests.support import Broker, pipeline, running, until, values

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".peers" / "interop-mlserver" / "bin" / "python"
FEATURES = [f"f{place}" for place in range(9)]


@pytest.fixture
def mlserver(tmp_path: Path):
    """Its address."""
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    shutil.copy2(HERE / "scores.py", tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    model = {
        "name": "scores",
        "implementation": "scores.Scores",
        "parameters": {"version": "3"},
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 9]}],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1, 1]},
            {"name": "word", "datatype": "BYTES", "shape": [-1, 1]},
        ],
    }
    (tmp_path / "model-settings.json").write_text(json.dumps(model))
    command = [str(PYTHON), "-m", "mlserver.cli.main", "start", str(tmp_path)]
    with ServerProcess("MLServer", command, tmp_path / "mlserver.log") as process:
        process.wait_ready(lambda: "Loaded model 'scores'" in process.log.read_text(), 60)
        yield f"127.0.0.1:{ports['grpc_port']}"


def test_every_event_has_its_outcome(broker: Broker, mlserver: str, tmp_path: Path) -> None:
    topics = broker.topics()
    events = [{"id": n} | dict.fromkeys(FEATURES, -1 if n % 500 == 7 else n) for n in range(3000)]
    broker.produce(topics["events"], [(e["id"] % 3, str(e["id"]).encode(), json.dumps(e).encode()) for e in events])
    config = pipeline(
        broker.bootstrap, mlserver, "scores", topics, model={"inputs": {"features": FEATURES}}, result={"copy": ["id"]}
    )
    with running(config, tmp_path) as bridge:
        until(lambda: broker.count(topics["results"], topics["letters"]) == 3000, 120)
        assert bridge.terminate() == 0
    results = {result["id"]: result for result in values(broker.read(topics["results"]))}
    letters = sorted(int(letter.key) for letter in broker.read(topics["letters"]))
    assert letters == [n for n in range(3000) if n % 500 == 7]
    assert len(results) == 3000 - len(letters)
    for n, result in results.items():
        assert result["score"] == pytest.approx(n, rel=1e-5)
        assert (result["word"], result["model_version"]) == ("high" if n >= 1000 else "low", "3")

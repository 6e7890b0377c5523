"""The configuration: what a user's mistake is answered with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import load, parse
from bridge.config.reference import reference, schema, skeleton
from bridge.config.types import format_duration, format_size, parse_duration, parse_size
from bridge.errors import ConfigError

GOOD: dict[str, Any] = {
    "name": "fraud",
    "kafka": {"bootstrap_servers": "localhost:9092"},
    "source": {"topics": ["pages"]},
    "model": {"name": "fraud"},
    "result": {"topic": "scores"},
    "dead_letter": {"topic": "letters"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set; '-' removes it."""
    document = yaml.safe_load(yaml.safe_dump(GOOD))
    *sections, key = path.split(".")
    section = document
    for name in sections:
        section = section.setdefault(name, {})
    if value == "-":
        del section[key]
    else:
        section[key] = value
    return document


def test_defaults_are_those_of_the_contract() -> None:
    config = parse(GOOD, {})
    assert config.group == "fraud"
    assert (config.source.start, config.delivery, config.model.version) == ("earliest", "at_least_once", "latest")
    assert (config.batch.max_events, config.batch.max_bytes, config.batch.max_wait) == (1024, 4 * 2**20, 0.0)
    assert (config.batch.in_flight, config.model.timeout, config.commit_interval) == (4, 2.0, 0.1)
    assert config.observe.address == "127.0.0.1:9464"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("batch.max_event", 5, "batch.max_event: unknown key; did you mean max_events?"),
        ("kafka.bootstrap_server", "x", "kafka.bootstrap_server: unknown key; did you mean bootstrap_servers?"),
        ("modle", {}, "modle: unknown key; did you mean model?"),
        ("name", "-", "name: required, but not set"),
        ("model.name", "-", "model.name: required, but not set"),
        ("batch.max_events", "many", "batch.max_events: 'many' is not a whole number"),
        ("batch.max_events", 0, "batch.max_events: 0: input should be greater than or equal to 1"),
        ("batch.max_wait", "5", "batch.max_wait: '5': a duration is a number with a unit (us, ms, s, m, h)"),
        ("batch.max_wait", 5, "batch.max_wait: 5: a duration is a number with a unit (us, ms, s, m, h)"),
        ("batch.max_bytes", "4 megs", "batch.max_bytes: '4 megs': a size is a number with a unit"),
        ("model.timeout", "0s", "timeout must be longer than 0"),
        ("source.start", "earlyest", "source.start: 'earlyest' is not one of earliest, latest or fail; did you mean"),
        ("source.topics", [], "source.topics: []: list should have at least 1 item"),
        ("source.topics", "pages", "source.topics: 'pages' is not a list; write [pages]"),
        ("source.topics", ["a b"], "source.topics.0: 'a b' does not match"),
        ("model", "fraud", "model: 'fraud' is not a section"),
        ("model.version", "newest", "model.version: 'newest'"),
        ("model.version", 0, "model.version: 0"),
        ("model.version", {"label": "stable"}, "version: labels are known to tfserving only; name latest or a number"),
        ("model.version", {"lable": "stable"}, "a version is latest, a number from 1, or {label: NAME}"),
        ("model.signature", "other", "signature: with triton the model's config.pbtxt names it"),
        ("model.inputs", {"x": []}, "inputs.x names no field"),
        ("model.tls", {"enabled": True, "ca_file": "/no/ca.pem"}, "model.tls.ca_file: '/no/ca.pem': no such file"),
        ("kafka.security", {"protocol": "SASL_SSL"}, "protocol SASL_SSL needs a sasl section"),
        ("kafka.security.sasl", {"mechanism": "PLAIN"}, "mechanism PLAIN also needs username and password_file"),
        ("result.alert", {"when": "score >", "topic": "a"}, "result.alert.when: 'score >': not a condition"),
        ("result.alert", {"when": "f(x) > 1", "topic": "a"}, "'f(x)' is not allowed in a condition"),
        ("result.alert", {"when": "score", "topic": "a"}, "it must compare something"),
        ("result.topic", "pages", "result.topic is 'pages', which is also consumed"),
        ("dead_letter.topic", "scores", "must differ"),
        ("delivery", "at_most_once", "delivery: 'at_most_once' is not one of at_least_once or exactly_once"),
        ("event", {"format": "xml"}, "event.format: 'xml' is not one of json or raw"),
        ("batch.target_p99", "0ms", "target_p99 must be longer than 0"),
        ("batch", {"target_p99": "5ms", "max_wait": "5ms"}, "max_wait must be shorter than target_p99"),
        ("drain_timeout", "2m", "drain_timeout must be longer than 0 and at most 45s"),
        ("observe.address", "127.0.0.1:99999", "'127.0.0.1:99999': an address is host:port"),
        ("kafka.bootstrap_servers", "a:1,b:x", "'a:1,b:x': an address is host:port"),
        ("model.address", "http://localhost:8001", "'http://localhost:8001': an address is host:port"),
        ("model.address", "localhost", "model.address: 'localhost': an address is host:port"),
        ("model.address", "localhost:80a01", "model.address: 'localhost:80a01': an address is host:port"),
        ("source.session_timeout", "1s", "session_timeout must be between 6s and 5m"),
        ("observe.address", "here", "observe.address: 'here': an address is host:port"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(path, value), {}, where="p.yaml")
    assert len(caught.value.sentences) == 1
    assert caught.value.sentences[0].startswith("p.yaml: ")
    assert sentence in caught.value.sentences[0]


def test_every_mistake_is_named_at_once() -> None:
    document = changed("batch.max_event", 5) | {"name": ""}
    with pytest.raises(ConfigError) as caught:
        parse(document, {})
    assert len(caught.value.sentences) == 2


def test_alert_names_are_checked_against_the_outputs() -> None:
    document = changed("result.alert", {"when": "scroe >= 0.5", "topic": "a"})
    document["model"]["outputs"] = {"score": "score"}
    with pytest.raises(ConfigError, match="uses scroe, but model.outputs has only score"):
        parse(document, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "not valid YAML in line 1, column 5: expected the node content"),
        ("kafka: {bootstrap_servers: ${B}}", r"a \$\{VAR\} within braces needs quotes"),
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(path, {})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / "none.yaml", {})


def test_environment_overrides_any_value() -> None:
    env = {"HEADRACE_KAFKA__BOOTSTRAP_SERVERS": "b:1", "HEADRACE_BATCH__MAX_EVENTS": "7", "HEADRACE_NAME": "other"}
    config = parse(GOOD, env)
    assert (config.kafka.bootstrap_servers, config.batch.max_events, config.name) == ("b:1", 7, "other")


@pytest.mark.parametrize("address", ["localhost:8001", "dns:///triton.svc:8001", "ipv4:127.0.0.1:1,127.0.0.1:2"])
def test_addresses_of_the_model(address: str) -> None:
    assert parse(changed("model.address", address), {}).model.address == address


def test_a_misspelt_override_is_an_error_and_a_foreign_variable_is_not() -> None:
    with pytest.raises(ConfigError, match="no section 'kafak'; did you mean kafka"):
        parse(GOOD, {"HEADRACE_KAFAK__BOOTSTRAP_SERVERS": "b:1"})
    with pytest.raises(ConfigError, match="batch.max_event: unknown key"):
        parse(GOOD, {"HEADRACE_BATCH__MAX_EVENT": "1"})
    parse(GOOD, {"HEADRACE_SERVICE_HOST": "10.0.0.1", "HEADRACE_PORT": "tcp://10.0.0.1:80"})


def test_variables_are_expanded() -> None:
    config = parse(changed("kafka.bootstrap_servers", "${HOST}:9092"), {"HOST": "broker"})
    assert config.kafka.bootstrap_servers == "broker:9092"
    with pytest.raises(ConfigError, match=r"kafka.bootstrap_servers: the environment variable HOST is not set"):
        parse(changed("kafka.bootstrap_servers", "${HOST}:9092"), {})


@pytest.mark.parametrize("text", ["5ms", "2s", "1m", "3h", "250us", "1500ms"])
def test_durations_read_back(text: str) -> None:
    assert parse_duration(format_duration(parse_duration(text))) == pytest.approx(parse_duration(text))


@pytest.mark.parametrize(("text", "size"), [("4MiB", 4194304), ("512KiB", 524288), ("1MB", 1000000), (17, 17)])
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


def test_the_skeleton_is_a_valid_configuration_with_every_key() -> None:
    text = skeleton()
    parse(yaml.safe_load(text), {})
    uncommented = yaml.safe_load("\n".join(line.removeprefix("# ") for line in text.splitlines()[1:]))
    for key in schema()["properties"]:
        assert key in uncommented


def test_the_reference_names_every_key_and_says_something_about_it() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 50
    assert all(row.rstrip(" |").split("|")[-1].strip() for row in rows)
    types = {row.split("|")[1].strip(" `*"): row.split("|")[2].strip() for row in rows}
    assert types["model.version"] == "latest or number or mapping"
    assert types["model.timeout"] == "duration"
    assert types["batch.max_bytes"] == "size"
    assert types["kafka.security.ca_file"] == "file"
    assert types["source.topics"] == "list of strings"
    assert types["delivery"] == "at_least_once / exactly_once"
    assert not [text for text in types.values() if "[" in text or not text]


def test_the_effective_configuration_reads_back() -> None:
    config = parse(GOOD, {})
    assert parse(config.effective(), {}).effective() == config.effective()


def test_a_latency_target_leaves_room_for_transactions() -> None:
    document = GOOD | {"delivery": "exactly_once", "batch": {"target_p99": "150ms"}}
    with pytest.raises(ConfigError, match=r"\(0.15 s\) must be at least twice commit_interval \(0.1 s\)"):
        parse(document, {})
    assert parse(document | {"commit_interval": "50ms"}, {}).batch.target_p99 == 0.15

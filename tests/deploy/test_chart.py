"""The chart, rendered by Helm 4 in this process: what it accepts, what it refuses, and what comes out of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart, lint
from helm_python.errors import HelmError
from kubernetes_validate import ValidationError, validate

from bridge.config.load import parse
from bridge.config.model import Pipeline
from bridge.config.reference import schema
from deploy.docker.build import VERSION

HELM = Path(__file__).parents[2] / "deploy" / "helm"
CHART = HELM / "headrace"
EXAMPLES = sorted((HELM / "examples").glob("*.yaml"))
KUBERNETES = ("1.30", "1.34", "1.37")
CUSTOM = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}

PIPELINE = {
    "name": "fraud",
    "kafka": {"bootstrap_servers": "kafka:9092"},
    "source": {"topics": ["pages"]},
    "model": {"name": "fraud"},
    "result": {"topic": "scores"},
    "dead_letter": {"topic": "dead"},
}


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as loaded:
        yield loaded


def render(chart: Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a release called x in the namespace scoring."""
    chart.validate_schema(values)
    texts = chart.render(values, name="x", namespace="scoring").items()
    return [item for path, text in texts if not path.endswith(".txt") for item in yaml.safe_load_all(text) if item]


def one(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    found = [item for item in objects if item["kind"] == kind and name in item["metadata"]["name"]]
    assert len(found) == 1, [item["metadata"]["name"] for item in objects if item["kind"] == kind]
    return found[0]


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in objects:
        if item["kind"] == "Pod":
            yield item["spec"]
        elif "template" in item.get("spec", {}):
            yield item["spec"]["template"]["spec"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_linted_and_valid_in_every_supported_kubernetes(chart: Chart, example: Path) -> None:
    values = yaml.safe_load(example.read_text())
    report = lint(CHART, values, strict=True, kube_version="v1.34.0")
    assert not report["errors"], report
    objects = render(chart, values)
    for version in KUBERNETES:
        for item in objects:
            if item["apiVersion"] in CUSTOM:
                continue
            if (
                version < "1.31"
                and values.get("repository", {}).get("kind") == "image"
                and item["kind"] == "Deployment"
            ):
                continue  # it knows no image volumes
            try:
                validate(item, version, strict=True)
            except ValidationError as error:
                raise AssertionError(f"{version} {item['kind']} {item['metadata']['name']}: {error.message}") from None


def test_the_chart_is_linted_without_values_too() -> None:
    """As `helm lint` and the CI of charts do it: it has no pipeline then, which is said and is no error of the chart."""
    report = lint(CHART, {}, strict=True, kube_version="v1.34.0")
    assert not report["errors"], report


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_bridge_reads_what_the_chart_writes(chart: Chart, example: Path) -> None:
    values = yaml.safe_load(example.read_text())
    written = yaml.safe_load(one(render(chart, values), "ConfigMap", "pipeline")["data"]["pipeline.yaml"])
    security = written["kafka"].get("security", {})
    security.pop("ca_file", None)  # files of Secrets, which are not here
    security.get("sasl", {}).pop("password_file", None)
    if "sasl" in security:
        security.pop("sasl")
        security["protocol"] = "SSL"
    pipeline = parse(written, {})
    assert pipeline.observe.address == "0.0.0.0:9464"
    if values.get("serving", {}).get("enabled", True):
        port = 8500 if pipeline.model.server == "tfserving" else 8001
        assert pipeline.model.address == f"dns:///x-headrace-serving.scoring:{port}"


def test_numbers_come_through_as_numbers(chart: Chart) -> None:
    values = {"pipeline": {**PIPELINE, "batch": {"max_events": 65536, "max_bytes": 4194304}}}
    written = yaml.safe_load(one(render(chart, values), "ConfigMap", "pipeline")["data"]["pipeline.yaml"])
    assert parse(written, {}).batch.max_events == 65536
    assert parse(written, {}).batch.max_bytes == 4194304


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_pods_are_what_pod_security_restricted_asks_for(chart: Chart, example: Path) -> None:
    specs = list(pod_specs(render(chart, yaml.safe_load(example.read_text()))))
    assert specs
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "image"}
        assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])


WRONG = [
    ({"bridge": {"replica": 2}}, "replica"),
    ({"bridge": {"replicas": "two"}}, "replicas"),
    ({"bridge": {"workers": 0}}, "workers"),
    ({"serving": {"kind": "torchserve"}}, "kind"),
    ({"repository": {"kind": "nfs"}}, "kind"),
    ({"repository": {"url": "bucket/models"}}, "url"),
    ({"bridge": {"image": {"digest": "latest"}}}, "digest"),
    ({"bridge": {"image": {"pullPolicy": "Sometimes"}}}, "pullPolicy"),
    ({"bridge": {"autoscaling": {"scaleDownWindow": 30}}}, "scaleDownWindow"),
    ({"bridge": {"autoscaling": {"minReplicas": 0}}}, "minReplicas"),
    ({"bridge": {"secrets": ["kafka"]}}, "secrets"),
    ({"monitoring": {"interval": "often"}}, "interval"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ({"pipeline": {**PIPELINE, "delivery": "at_most_once"}}, "delivery"),
    ({"pipeline": {**PIPELINE, "batch": {"max_event": 5}}}, "max_event"),
    ({"pipeline": {**PIPELINE, "batch": {"max_wait": "5 minutes"}}}, "max_wait"),
    ({"pipeline": {**PIPELINE, "batch": {"max_bytes": "4MB!"}}}, "max_bytes"),
    ({"pipeline": {**PIPELINE, "source": {"topics": []}}}, "topics"),
    ({"pipeline": {**PIPELINE, "source": {"topics": ["no spaces"]}}}, "topics"),
    ({"pipeline": {key: value for key, value in PIPELINE.items() if key != "result"}}, "result"),
    ({"pipeline": {**PIPELINE, "kafka": {"bootstrap_servers": "k:1", "security": {"protocol": "TLS"}}}}, "protocol"),
    ({"unknown": True}, "unknown"),
]


@pytest.mark.parametrize(("values", "named"), WRONG, ids=lambda item: item if isinstance(item, str) else "")
def test_a_wrong_value_is_refused_and_named(chart: Chart, values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        chart.validate_schema({"pipeline": PIPELINE, **values})


SHARED = {"repository": {"pvc": {"accessModes": ["ReadWriteMany"]}}}

REFUSED = [
    ({"pipeline": None}, "pipeline: required while bridge.enabled is true"),
    ({"serving": {"enabled": False}}, "pipeline.model.address: required while serving.enabled is false"),
    (
        {
            "serving": {"kind": "tfserving", "image": {"repository": "tensorflow/serving"}},
            "pipeline": {**PIPELINE, "model": {"name": "m", "server": "triton"}},
        },
        "must agree",
    ),
    ({"pipeline": {**PIPELINE, "observe": {"address": "127.0.0.1:9464"}}}, "cannot be reached by probes"),
    ({"pipeline": {**PIPELINE, "observe": {"address": "localhost:9464"}}}, "cannot be reached by probes"),
    (
        {"pipeline": {**PIPELINE, "model": {"name": "fraud", "address": "localhost:8001"}}},
        "at localhost:8001 there is nothing in a bridge's pod",
    ),
    (
        {"pipeline": {**PIPELINE, "kafka": {"bootstrap_servers": "kafka:9092, far:29092"}}},
        "lacks the port of pipeline.kafka.bootstrap_servers, far:29092",
    ),
    (
        {"bridge": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}}},
        "bridge.autoscaling.maxReplicas: 2 is less than minReplicas, 5",
    ),
    (
        {
            "serving": {
                "autoscaling": {
                    "enabled": True,
                    "minReplicas": 5,
                    "maxReplicas": 2,
                    "prometheusAddress": "http://prometheus:9090",
                }
            },
            **SHARED,
        },
        "serving.autoscaling.maxReplicas: 2 is less than minReplicas, 5",
    ),
    ({"bridge": {"terminationGracePeriodSeconds": 20}}, "20 is less than the 38 s that a drain may take"),
    (
        {
            "bridge": {"staticMembership": True},
            "pipeline": {**PIPELINE, "source": {"topics": ["t"], "instance_id": "a"}},
        },
        "pipeline.source.instance_id: leave it out",
    ),
    (
        {"bridge": {"staticMembership": True, "autoscaling": {"enabled": True}}},
        "bridge.staticMembership: not together with bridge.autoscaling.enabled",
    ),
    (
        {"serving": {"replicas": 2}},
        "repository.pvc.accessModes: a ReadWriteOnce volume",
    ),
    ({"serving": {"kind": "tfserving"}}, "serving.image.repository: headrace/serving holds a Triton"),
    (
        {"pipeline": {**PIPELINE, "kafka": {"bootstrap_servers": "${BROKERS}"}}},
        "pipeline.kafka.bootstrap_servers: ${BROKERS} is known to the bridge alone",
    ),
    (
        {
            "bridge": {"autoscaling": {"enabled": True}},
            "pipeline": {
                **PIPELINE,
                "kafka": {
                    "bootstrap_servers": "k:9092",
                    "security": {
                        "protocol": "SASL_PLAINTEXT",
                        "sasl": {
                            "mechanism": "PLAIN",
                            "username": "${WHO}",
                            "password_file": "/etc/headrace/secrets/kafka/password",
                        },
                    },
                },
            },
        },
        "pipeline.kafka.security.sasl.username: ${WHO} is known to the bridge alone",
    ),
    ({"repository": {"kind": "objectStore"}}, "repository.url: required"),
    ({"repository": {"kind": "image"}}, "repository.image.reference: required"),
    ({"repository": {"kind": "initCopy"}}, "repository.image.reference: required"),
    ({"repository": {"kind": "gitSync"}}, "repository.gitSync.repo: required"),
    (
        {"serving": {"autoscaling": {"enabled": True}}, **SHARED},
        "serving.autoscaling.prometheusAddress: required",
    ),
    (
        {
            "serving": {
                "kind": "tfserving",
                "image": {"repository": "tensorflow/serving"},
                "autoscaling": {"enabled": True},
            },
            **SHARED,
        },
        "only Triton tells",
    ),
    (
        {
            "bridge": {"autoscaling": {"enabled": True}},
            "pipeline": {
                **PIPELINE,
                "kafka": {"bootstrap_servers": "k:9092", "security": {"protocol": "SSL", "ca_file": "/ca"}},
            },
        },
        "name bridge.autoscaling.authenticationRef",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=lambda item: item if isinstance(item, str) else "")
def test_values_that_do_not_fit_each_other_end_in_a_sentence(
    chart: Chart, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(HelmError) as caught:
        render(chart, {"pipeline": PIPELINE, **values})
    assert sentence in str(caught.value)


def test_the_pipelines_schema_is_that_of_headrace_run(chart: Chart) -> None:
    """Key for key: what the one accepts, the other accepts."""

    def keys(node: dict[str, Any], definitions: dict[str, Any]) -> Any:
        if "$ref" in node:
            return keys(definitions[node["$ref"].rpartition("/")[2]], definitions)
        found = {name: keys(child, definitions) for name, child in node.get("properties", {}).items()}
        constraints = {k: node[k] for k in ("enum", "pattern", "minimum", "maximum", "required", "const") if k in node}
        arms = [keys(arm, definitions) for arm in node.get("anyOf", ())]
        return found, constraints, arms

    ours, theirs = json.loads((CHART / "values.schema.json").read_text()), schema()
    assert keys(ours["$defs"]["Pipeline"], ours["$defs"]) == keys(theirs, theirs["$defs"])


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 38),  # 30 s drain_timeout, 2 s model.timeout, 100 ms commit_interval, 5 s
        ({"drain_timeout": "1.5s"}, 9),
        ({"drain_timeout": "500ms", "commit_interval": "2s", "model": {"name": "m", "timeout": "250ms"}}, 8),
        ({"drain_timeout": "0.5m"}, 38),
    ],
)
def test_a_bridge_has_as_long_to_end_as_its_drain_may_take(chart: Chart, changes: dict[str, Any], seconds: int) -> None:
    objects = render(chart, {"pipeline": {**PIPELINE, **changes}})
    assert one(objects, "Deployment", "bridge")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds


def test_components_are_switched_off_apart(chart: Chart) -> None:
    model = {"name": "fraud", "address": "dns:///triton.models:8001"}
    test = {"event": '{"id": 1}'}
    bridge = render(chart, {"pipeline": {**PIPELINE, "model": model}, "serving": {"enabled": False}, "test": test})
    assert one(bridge, "Pod")["spec"]["containers"][0]["args"][-1] == '--event={"id": 1}'
    assert [item["metadata"]["name"] for item in bridge if item["kind"] == "Deployment"] == ["x-headrace-bridge"]
    assert not [item for item in bridge if item["kind"] in ("Service", "PersistentVolumeClaim")]
    serving = render(chart, {"bridge": {"enabled": False}})
    assert [item["metadata"]["name"] for item in serving if item["kind"] == "Deployment"] == ["x-headrace-serving"]
    assert not [item for item in serving if item["kind"] in ("ConfigMap", "Pod")]


def test_autoscaling_owns_the_number_of_pods(chart: Chart) -> None:
    objects = render(chart, yaml.safe_load((HELM / "examples" / "keda.yaml").read_text()))
    for component in ("bridge", "serving"):
        assert "replicas" not in one(objects, "Deployment", component)["spec"]
    scaled = one(objects, "ScaledObject", "bridge")["spec"]
    assert scaled["minReplicaCount"] == 1
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger == {
        "bootstrapServers": "kafka.kafka:9092",
        "consumerGroup": "fraud",
        "topic": "pages",
        "lagThreshold": trigger["lagThreshold"],
        "offsetResetPolicy": "earliest",
        "excludePersistentLag": "true",
        "ensureEvenDistributionOfPartitions": "true",
    }
    assert scaled["triggers"][1] == {"type": "cpu", "metricType": "AverageValue", "metadata": {"value": "700m"}}
    down = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300
    assert [policy["value"] for policy in down["policies"]] == [1]


def test_large_numbers_stay_whole(chart: Chart) -> None:
    """Helm reads numbers as floats, and prints them as 2e+06 if one lets it."""
    values = {"pipeline": PIPELINE, "bridge": {"autoscaling": {"enabled": True, "lagThreshold": 2_000_000}}}
    assert one(render(chart, values), "ScaledObject")["spec"]["triggers"][0]["metadata"]["lagThreshold"] == "2000000"


def test_servers_that_share_no_volume_are_replaced_one_after_the_other(chart: Chart) -> None:
    def strategy(modes: list[str], **serving: Any) -> str:
        values = {"pipeline": PIPELINE, "repository": {"pvc": {"accessModes": modes}}, "serving": serving}
        return str(one(render(chart, values), "Deployment", "serving")["spec"]["strategy"]["type"])

    assert strategy(["ReadWriteOnce"]) == "Recreate"
    assert strategy(["ReadWriteMany"]) == "RollingUpdate"
    assert strategy(["ReadWriteOnce"], strategy="RollingUpdate") == "RollingUpdate"


def test_a_static_members_service_is_there(chart: Chart) -> None:
    objects = render(chart, {"pipeline": PIPELINE, "bridge": {"staticMembership": True}})
    named = one(objects, "StatefulSet")["spec"]["serviceName"]
    assert one(objects, "Service", "bridge")["metadata"]["name"] == named


def test_keda_logs_in_by_the_pipelines_own_secrets(chart: Chart) -> None:
    values = yaml.safe_load((HELM / "examples" / "strimzi.yaml").read_text())
    values["bridge"]["autoscaling"] = {"enabled": True}
    objects = render(chart, values)
    trigger = one(objects, "ScaledObject")["spec"]["triggers"][0]
    assert trigger["metadata"]["sasl"] == "scram_sha512"
    assert trigger["metadata"]["tls"] == "enable"
    authentication = one(objects, "TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]
    assert {"parameter": "password", "name": "fraud", "key": "password"} in authentication["secretTargetRef"]
    assert {"parameter": "ca", "name": "events-cluster-ca-cert", "key": "ca.crt"} in authentication["secretTargetRef"]
    username = authentication["configMapTargetRef"][0]
    assert one(objects, "ConfigMap", username["name"])["data"][username["key"]] == "fraud"


def test_a_changed_pipeline_rolls_the_bridge_and_nothing_else(chart: Chart) -> None:
    def templates(batch: int) -> dict[str, Any]:
        objects = render(chart, {"pipeline": {**PIPELINE, "batch": {"max_events": batch}}})
        return {item["metadata"]["name"]: item["spec"]["template"] for item in objects if item["kind"] == "Deployment"}

    before, after = templates(100), templates(200)
    assert before["x-headrace-bridge"] != after["x-headrace-bridge"]
    assert before["x-headrace-serving"] == after["x-headrace-serving"]


def test_the_chart_is_of_the_version_that_is_built(chart: Chart) -> None:
    assert chart.metadata["appVersion"] == VERSION


def test_a_new_chart_version_changes_no_selector(chart: Chart) -> None:
    for item in render(chart, {"pipeline": PIPELINE}):
        if item["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            assert not re.search(r"version|chart", json.dumps(item["spec"]["selector"]))


def test_static_members_are_called_like_their_pods(chart: Chart) -> None:
    objects = render(chart, {"pipeline": PIPELINE, "bridge": {"staticMembership": True, "replicas": 3}})
    spec = one(objects, "StatefulSet")["spec"]
    environment = spec["template"]["spec"]["containers"][0]["env"]
    assert environment == [
        {"name": "HEADRACE_SOURCE__INSTANCE_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ]
    assert Pipeline.model_fields["source"].annotation.model_fields["instance_id"]  # the key that it overrides


@pytest.mark.parametrize(
    ("example", "repository"),
    [
        ("fraud", "/repository"),
        ("image-volume", "/repository"),
        ("git-sync", "/repository/current/models"),
        ("object-store", "s3://models/production"),
    ],
)
def test_the_watcher_looks_where_versions_are_dropped_in(chart: Chart, example: str, repository: str) -> None:
    objects = render(chart, yaml.safe_load((HELM / "examples" / f"{example}.yaml").read_text()))
    pod = one(objects, "Deployment", "serving")["spec"]["template"]["spec"]
    watcher = next(container for container in pod["containers"] if container["name"] == "watcher")
    assert watcher["command"] == ["headrace", "models", "watch", repository]
    containers = (*pod["containers"], *pod["initContainers"])
    mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}

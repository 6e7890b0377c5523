"""Every value of the chart, declared once: its type, default and one sentence about it.

values.yaml, values.schema.json and the chart's README are written from here by `make docs`. The pipeline's own keys are
those of `headrace run`, by the same schema.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from bridge.config.model import Pipeline

Object = dict[str, Any]
"""A piece of the Kubernetes API, passed on as it is."""

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[kKMGTP]i?)?$")]


class Values(BaseModel):
    """What all sections share: unknown keys are errors, docstrings are the documentation, names are camelCase."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True)


class Image(Values):
    """A container image."""

    repository: str = Field(min_length=1)
    """Where it is, without a tag."""
    tag: str = ""
    """Its tag; the chart's appVersion when empty."""
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Its digest, which then stands in place of the tag."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When to pull it."""


class Resources(Values):
    """What the container asks for, and may use at most."""

    requests: dict[str, Any]
    """What the scheduler sets aside."""
    limits: dict[str, Any]
    """The most it may use. No CPU limit by default: throttling shows as latency."""


class ServiceAccount(Values):
    """Who the pods are; they get no token of the cluster."""

    annotations: dict[str, str] = {}
    """Such as those by which a cloud gives pods access to a bucket."""


class Placement(Values):
    """Where pods go, and what they carry."""

    service_account: ServiceAccount = ServiceAccount()
    """Who the pods are."""

    pod_annotations: dict[str, str] = {}
    """More annotations of the pods."""
    pod_labels: dict[str, str] = {}
    """More labels of the pods."""
    node_selector: dict[str, str] = {}
    """Labels that nodes must have."""
    tolerations: list[Object] = []
    """Taints that the pods tolerate."""
    affinity: Object = {}
    """Affinity rules."""
    topology_spread: bool = True
    """Spread pods over nodes and zones as far as there are any."""
    priority_class_name: str = ""
    """The pods' PriorityClass."""


class SecretMount(Values):
    """A Secret that exists, mounted as files."""

    name: str = Field(min_length=1)
    """Name of the Secret, in the release's namespace; its keys become files in /etc/headrace/secrets/NAME."""


class BridgeAutoscaling(Values):
    """Bridges by consumer lag and CPU; needs KEDA. Each step is a rebalance, so that down is slow by default."""

    enabled: bool = False
    """Whether a ScaledObject is made; `replicas` is then not set."""
    max_replicas: int = Field(default=6, ge=1)
    """Most bridges; more than the topic has partitions stand by."""
    min_replicas: int = Field(default=1, ge=1)
    """Fewest bridges; at least one, since with none nobody keeps the promise of a bounded delay."""
    lag_threshold: int = Field(default=20_000, ge=1)
    """Events of lag for each bridge: what one of yours does in a second. docs/scaling.md tells what it changes."""
    cpu: float = Field(default=0.7, ge=0, le=1)
    """Share of a core, for each worker, at which bridges should work. Without it (0) the lag alone says how many there are,
    and since it is gone when there are enough, they would come and go all day. Needs the metrics of pods."""
    scale_down_window: int = Field(default=600, ge=300)
    """Seconds that fewer bridges must have been enough before one goes; at least 300."""
    authentication_ref: str = ""
    """A TriggerAuthentication that exists. Empty: one is made from the Secret of the pipeline's sasl.password_file."""


class Bridge(Placement):
    """From Kafka through the model and back."""

    enabled: bool = True
    """Whether the bridge is part of this release."""
    image: Image = Image(repository="headrace/bridge")
    """Its image."""
    replicas: int = Field(default=1, ge=0)
    """So many pods; more than the topic has partitions stand by."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes in each pod: one for each core that it may use."""
    static_membership: bool = False
    """A StatefulSet whose pods keep their partitions over a restart (source.instance_id), in place of a Deployment. A pod
    that goes for good keeps its own too, for pipeline.source.session_timeout; so not together with autoscaling."""
    secrets: list[SecretMount] = []
    """Secrets with certificates and passwords, which the pipeline names by file."""
    env: list[Object] = []
    """Environment variables, for ${VAR} in the pipeline and HEADRACE_SECTION__KEY."""
    resources: Resources = Resources(requests={"cpu": "500m", "memory": "256Mi"}, limits={"memory": "1Gi"})
    """What a bridge asks for."""
    termination_grace_period_seconds: int | None = Field(default=None, ge=1)
    """Computed from the pipeline's drain_timeout, commit_interval and model.timeout when not set; less is refused."""
    autoscaling: BridgeAutoscaling = BridgeAutoscaling()
    """Scaling by consumer lag and CPU."""


class Watcher(Values):
    """Brings versions from the repository to the server in its pod."""

    image: Image = Image(repository="headrace/serving")
    """Its image."""
    settle: str = Field(default="3s", pattern=r"^\d+(ms|s|m)$")
    """How long a version without a manifest must be still until it is taken for whole."""
    resources: Resources = Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"memory": "1Gi"})
    """What it asks for."""
    env: list[Object] = []
    """Environment variables, such as an object store's credentials from a Secret."""


class ServingAutoscaling(Values):
    """Servers by how long requests wait in Triton's queues; needs KEDA and a Prometheus that scrapes the pods."""

    enabled: bool = False
    """Whether a ScaledObject is made; `replicas` is then not set."""
    max_replicas: int = Field(default=4, ge=1)
    """Most servers."""
    min_replicas: int = Field(default=1, ge=1)
    """Fewest servers."""
    queue_milliseconds: float = Field(default=20, gt=0)
    """Mean time in Triton's queue above which servers are added."""
    prometheus_address: str = ""
    """URL of the Prometheus; required when enabled."""
    scale_down_window: int = Field(default=600, ge=60)
    """Seconds that the queue must have been short before a server goes."""


class Serving(Placement):
    """The model server."""

    enabled: bool = True
    """Whether a model server is part of this release; without it pipeline.model.address names one outside."""
    kind: Literal["triton", "tfserving"] = "triton"
    """Triton, or TensorFlow Serving."""
    image: Image = Image(repository="headrace/serving")
    """Its image: one of ours for triton; one of TensorFlow Serving for tfserving."""
    replicas: int = Field(default=1, ge=0)
    """So many pods."""
    strategy: Literal["auto", "RollingUpdate", "Recreate"] = "auto"
    """RollingUpdate starts a new server before an old one ends, which takes room (a GPU) for one more. Recreate ends them
    first; bridges wait meanwhile. auto: Recreate where the chart makes a volume that only one node can mount."""
    args: list[str] = []
    """More arguments of the server."""
    resources: Resources = Resources(requests={"cpu": "1", "memory": "1Gi"}, limits={"memory": "4Gi"})
    """What a server asks for; nvidia.com/gpu among its limits where it has one."""
    drain_seconds: int = Field(default=40, ge=0)
    """How long a pod that is to end still answers, until clients know better; longer than the age of a connection, 30 s."""
    startup_seconds: int = Field(default=600, ge=30)
    """How long loading the models may take."""
    autoscaling: ServingAutoscaling = ServingAutoscaling()
    """Scaling by queueing time."""
    watcher: Watcher = Watcher()
    """The watcher beside the server."""


class Pvc(Values):
    """kind: pvc. A volume into which people or jobs drop versions."""

    existing_claim: str = ""
    """A claim that exists; one is made when empty, and kept when the release is uninstalled unless `keep` is false."""
    size: Quantity = "10Gi"
    """Size of the claim that is made."""
    storage_class: str | None = None
    """Its storage class; the cluster's default when not set."""
    access_modes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]] = ["ReadWriteOnce"]
    """With ReadWriteOnce, which any storage class has, there can be one server, and an upgrade of it is a pause. ReadWriteMany for
    more, where the class has it."""
    keep: bool = True
    """Whether the claim outlives the release."""


class ImageSource(Values):
    """kind: image or initCopy. An image that holds the repository."""

    reference: str = ""
    """The image, with tag or digest."""
    path: str = "/models"
    """The repository's folder in it."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When to pull it."""


class GitSync(Values):
    """kind: gitSync. A sidecar that keeps a checkout of a git repository."""

    image: Image = Image(repository="git-sync/git-sync", tag="v4.4.0")
    """Image of kubernetes/git-sync."""
    repo: str = ""
    """URL of the git repository."""
    ref: str = "main"
    """Branch, tag or commit."""
    path: str = "models"
    """The model repository's folder in it."""
    period: str = Field(default="30s", pattern=r"^\d+(s|m)$")
    """Time between looks."""
    secret: str = ""
    """A Secret that exists with an ssh key (`ssh`, `known_hosts`); for an ssh URL."""


class Repository(Values):
    """Where model versions are dropped in."""

    kind: Literal["pvc", "image", "initCopy", "objectStore", "gitSync"] = "pvc"
    """pvc: a volume. image: an image mounted as a volume (Kubernetes 1.35 on, before that with the feature gate ImageVolume;
    the container runtime must be able to). initCopy: copied out of an image at the start. objectStore: a bucket. gitSync:
    a git repository."""
    pvc: Pvc = Pvc()
    """A volume."""
    image: ImageSource = ImageSource()
    """An image."""
    url: str = Field(default="", pattern=r"^([a-z0-9]+://.+)?$")
    """kind: objectStore. Such as s3://bucket/models; the watcher's image needs the store's package (STORES)."""
    git_sync: GitSync = GitSync()
    """A git repository."""


class NetworkPolicy(Values):
    """Pods of this release talk to nobody but those named here."""

    enabled: bool = True
    """Whether NetworkPolicies are made; they need a network that enforces them."""
    kafka: list[Object] = []
    """Peers of the brokers (podSelector, namespaceSelector, ipBlock); empty: anywhere, on kafkaPorts."""
    kafka_ports: list[int] = [9092, 9093, 9094]
    """The brokers' ports; empty: all."""
    model: list[Object] = []
    """Peers of a model server outside of this release; empty: anywhere, on the port of pipeline.model.address."""
    repository: list[Object] = []
    """Peers of the object store or git server; empty: anywhere, on repositoryPorts."""
    repository_ports: list[int] = [22, 80, 443]
    """Their ports, and that of the cloud's metadata server where credentials come from it."""
    dns: list[Object] = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
    """Peers that answer DNS; an ipBlock of 169.254.20.10/32 for NodeLocal DNSCache."""
    dns_ports: list[int] = [53]
    """Their ports; 5353 on OpenShift."""
    metrics: list[Object] = []
    """Who may scrape; empty: anybody."""
    clients: list[Object] = []
    """Who may ask the model server beside the bridge of this release; empty: nobody."""


class PodDisruptionBudget(Values):
    """How many pods of a component a drain of nodes may take at once."""

    enabled: bool = True
    """Whether budgets are made."""
    max_unavailable: int = Field(default=1, ge=1)
    """So many."""


class AlertThresholds(Values):
    """When alerts fire."""

    end_to_end_p99_seconds: float = Field(default=1, gt=0)
    """EndToEndSlow: p99 from an event's timestamp to its result."""
    lag_seconds: float = Field(default=60, gt=0)
    """LagGrowing: lag, divided by the rate at which events are finished."""
    stalled_seconds: float = Field(default=120, gt=0)
    """Stalled: lag, but no event finished for so long."""
    dead_letters_per_second: float = Field(default=0.1, ge=0)
    """DeadLetters: of one reason."""
    rebalances: int = Field(default=5, ge=1)
    """RebalanceStorm: within ten minutes, in a pod that lived through them."""


class Monitoring(Values):
    """For the Prometheus operator and Grafana."""

    pod_monitor: bool = False
    """Whether PodMonitors are made (monitoring.coreos.com/v1)."""
    interval: str = Field(default="15s", pattern=r"^\d+(ms|s|m)$")
    """Time between scrapes."""
    prometheus_rule: bool = False
    """Whether a PrometheusRule with the alerts of docs/runbook.md is made."""
    rule_labels: dict[str, str] = {}
    """More labels of PodMonitors and PrometheusRule, by which an operator selects them."""
    alerts: AlertThresholds = AlertThresholds()
    """When alerts fire."""
    dashboards: bool = False
    """Whether ConfigMaps with the dashboards are made, labelled grafana_dashboard: "1"."""


class Test(Values):
    """`helm test` sends an event and waits for its outcome."""

    event: str = ""
    """The event's value. It is a real one: its result goes where all results go. There is no test when empty."""
    timeout: int = Field(default=60, ge=1)
    """Seconds to wait."""


class Chart(Values):
    """All values."""

    name_override: str = ""
    """In place of the chart's name, in names and labels."""
    fullname_override: str = ""
    """In place of all of it, in names."""
    image_registry: str = ""
    """Put before the repository of Headrace's own images (headrace/…): the registry that your cluster pulls from."""
    image_pull_secrets: list[Object] = []
    """Secrets to pull images with."""
    common_labels: dict[str, str] = {}
    """More labels of everything."""
    pipeline: Pipeline | None = None
    """The pipeline, as `headrace run` reads it: see docs/configuration.md. model.address is set to the model server of this
    release when left out, and observe.address to 0.0.0.0:9464."""
    bridge: Bridge = Bridge()
    """From Kafka through the model and back."""
    serving: Serving = Serving()
    """The model server."""
    repository: Repository = Repository()
    """Where model versions are dropped in."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who talks to whom."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """What a drain of nodes may take."""
    monitoring: Monitoring = Monitoring()
    """Metrics, alerts and dashboards."""
    test: Test = Test()
    """What `helm test` sends."""

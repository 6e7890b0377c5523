"""Every key of the configuration, declared once: its type, default, unit and one sentence about it.

The JSON Schema, the reference page, the skeleton of `headrace init` and the error messages all come from here. This
module reads no files but those whose existence a key asks for, and knows nothing of Kafka's or the server's clients.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bridge.config.types import Duration, ExistingFile, Label, Size
from bridge.expression import Expression

TopicName = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$")]


def _addresses(text: str) -> str:
    for address in text.split(","):
        _address(address.strip())
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdigit() or int(port) > 65_535:
        raise ValueError("an address is host:port")
    return text


def _target(text: str) -> str:
    scheme, colon, rest = text.partition(":")
    if scheme in ("dns", "ipv4", "ipv6", "unix") and colon and not rest.isdigit():
        return text  # a gRPC name; its own syntax
    return _address(text)


def _version(value: Any) -> Any:
    if isinstance(value, Mapping) and list(value) == ["label"] and isinstance(value["label"], str) and value["label"]:
        return Label(value["label"])
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    if value != "latest" and not whole and not isinstance(value, Label):
        raise ValueError("a version is latest, a number from 1, or {label: NAME}")
    return number


def _valid_expression(text: str) -> str:
    Expression.parse(text)
    return text


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values do not change, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Sasl(Section):
    """How the bridge proves who it is to the brokers."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    """The SASL mechanism the brokers' listener offers."""
    username: str | None = None
    """User name of PLAIN and SCRAM."""
    password_file: ExistingFile | None = None
    """File that holds the password of PLAIN and SCRAM."""
    token_file: ExistingFile | None = None
    """File that holds the token of OAUTHBEARER; read again at every login, so that it may be renewed."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = ("token_file",) if self.mechanism == "OAUTHBEARER" else ("username", "password_file")
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"mechanism {self.mechanism} also needs {' and '.join(missing)}")
        return self


class Security(Section):
    """Encryption and authentication towards the brokers."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """The security protocol of the brokers' listener."""
    ca_file: ExistingFile | None = None
    """PEM file of the authority that signed the brokers' certificates; the system's own when not set."""
    cert_file: ExistingFile | None = None
    """PEM file of the client certificate (mutual TLS)."""
    key_file: ExistingFile | None = None
    """PEM file of the client certificate's private key."""
    verify_hostname: bool = True
    """Whether the broker's certificate must name the host that was dialled."""
    sasl: Sasl | None = None
    """Needed by SASL_PLAINTEXT and SASL_SSL."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.protocol.startswith("SASL_") and self.sasl is None:
            raise ValueError(f"protocol {self.protocol} needs a sasl section")
        if not self.protocol.startswith("SASL_") and self.sasl is not None:
            raise ValueError(f"a sasl section needs protocol SASL_PLAINTEXT or SASL_SSL, not {self.protocol}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if not self.protocol.endswith("SSL") and (self.ca_file or self.cert_file):
            raise ValueError(f"ca_file and cert_file need protocol SSL or SASL_SSL, not {self.protocol}")
        return self


class Kafka(Section):
    """The brokers, for the events as well as for the results."""

    bootstrap_servers: Annotated[str, AfterValidator(_addresses)] = Field(examples=["localhost:9092"])
    """Brokers to ask for the cluster's layout: host:port, several separated by commas."""
    security: Security = Security()
    """Encryption and authentication towards the brokers."""


class Source(Section):
    """Where the events come from."""

    topics: list[TopicName] = Field(min_length=1, examples=[["transactions"]])
    """Topics to consume."""
    group: str | None = None
    """Consumer group; `name` when not set."""
    start: Literal["earliest", "latest", "fail"] = "earliest"
    """Where to begin in a partition for which the group has no valid offset; `fail` stops instead of choosing."""
    instance_id: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z0-9._-]+$", examples=["fraud-0"])
    """Static membership: a name of this instance that is its own in the group and outlives a restart, such as that of a
    StatefulSet's pod. The group then keeps its partitions for `session_timeout` instead of moving them twice."""
    session_timeout: Duration = 45.0
    """How long the group waits for a member that is gone before it gives its partitions to others; at least 6s."""

    @model_validator(mode="after")
    def _session_timeout_in_range(self) -> Self:
        if not 6 <= self.session_timeout <= 300:
            raise ValueError("session_timeout must be between 6s and 5m, as Kafka's brokers allow by default")
        return self


class Event(Section):
    """How an event's bytes are read."""

    format: Literal["json", "raw"] = "json"
    """json: an object whose fields feed the tensors. raw: the value is one row of the model's only input, as
    little-endian bytes."""


class Tls(Section):
    """Encryption towards the model server."""

    enabled: bool = False
    """Whether the connection is encrypted."""
    ca_file: ExistingFile | None = None
    """PEM file of the authority that signed the server's certificate; the system's own when not set."""
    cert_file: ExistingFile | None = None
    """PEM file of the client certificate (mutual TLS)."""
    key_file: ExistingFile | None = None
    """PEM file of the client certificate's private key."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if not self.enabled and (self.ca_file or self.cert_file):
            raise ValueError("certificates are given but enabled is false")
        return self


class Model(Section):
    """The model server, and how events become its tensors and back."""

    server: Literal["triton", "tfserving"] = "triton"
    """The kind of model server: triton, or another that speaks the V2 inference protocol; or tfserving."""
    address: Annotated[str, AfterValidator(_target)] = "localhost:8001"
    """gRPC address: host:port, or dns:///name:port to spread calls over all addresses of a headless service."""
    name: str = Field(min_length=1, examples=["fraud"])
    """The model's name on the server."""
    version: Annotated[Literal["latest"] | int | Label, BeforeValidator(_version)] = "latest"
    """latest: whatever the server serves; or the number of one version; or, with tfserving, {label: NAME}."""
    signature: str | None = None
    """The SavedModel's signature, with tfserving; serving_default when not set. For triton config.pbtxt names it."""
    inputs: dict[str, str | list[str]] | None = None
    """Tensor name -> the event's field, or several fields stacked in this order; a dotted path reaches into objects, an
    array field fills a vector. Not set: each input tensor takes the field of its own name."""
    outputs: dict[str, str] | None = None
    """Field of the result -> tensor name. Not set: each output tensor becomes the field of its own name."""
    timeout: Duration = 2.0
    """Deadline of one call."""
    deadline: Duration | None = None
    """Events older than this when their turn comes get a dead letter, reason `expired`, instead of delaying the fresh
    ones. Not set: none is ever too old."""
    tls: Tls = Tls()
    """Encryption towards the model server."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for tensor, fields in (self.inputs or {}).items():
            if not fields:
                raise ValueError(f"inputs.{tensor} names no field")
        for key in ("inputs", "outputs"):
            if getattr(self, key) == {}:
                raise ValueError(f"{key} is empty; leave it out to take the model's own names")
        if self.server == "triton" and isinstance(self.version, Label):
            raise ValueError("version: labels are known to tfserving only; name latest or a number")
        if self.server == "triton" and self.signature is not None:
            raise ValueError("signature: with triton the model's config.pbtxt names it")
        if self.timeout <= 0:
            raise ValueError("timeout must be longer than 0")
        if self.deadline is not None and self.deadline <= 0:
            raise ValueError("deadline must be longer than 0")
        return self


class Batch(Section):
    """When events leave for the model, and how many at once."""

    max_events: int = Field(default=1024, ge=1, le=65_536)
    """Most events in one call; the model's own max_batch_size caps it."""
    max_bytes: Size = Field(default=4 * 2**20, ge=1024)
    """Most bytes of event values in one call; a larger single event is a `too_large` dead letter."""
    max_wait: Duration = 0.0
    """How long a batch may wait to grow. 0: it leaves as soon as a slot is free, so batches grow by themselves under
    load."""
    in_flight: int = Field(default=4, ge=1, le=256)
    """Calls to the model at once."""
    target_p99: Duration | None = None
    """Time from intake to acknowledged result that 99 % of the events should not exceed: batches, and calls at once,
    are then only as many as that allows, up to max_events and in_flight. How long events lay in their topic is not
    counted. Under exactly_once it must be at least twice commit_interval, for which results wait."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.target_p99 is not None and self.target_p99 <= 0:
            raise ValueError("target_p99 must be longer than 0")
        if self.target_p99 is not None and self.max_wait >= self.target_p99:
            raise ValueError("max_wait must be shorter than target_p99")
        return self


class Alert(Section):
    """A second copy of the results that matter."""

    when: Annotated[str, AfterValidator(_valid_expression)] = Field(examples=["score >= 0.5"])
    """Condition on the result's output fields: comparisons, arithmetic, and, or, not, parentheses; v[0] reaches into a
    vector."""
    topic: TopicName = Field(examples=["fraud-alerts"])
    """Topic that gets a copy of each result for which the condition holds."""


class Result(Section):
    """Where the results go, and what they carry."""

    topic: TopicName = Field(examples=["fraud-scores"])
    """Topic of the results."""
    copy_fields: list[str] = Field(default=[], alias="copy")
    """Fields of the event repeated in the result (json events only); null where an event lacks one."""
    partition: Literal["source", "key"] = "source"
    """source: the number of the event's own partition. key: Kafka's default partitioner over the event's key."""
    alert: Alert | None = None
    """Results that are also written to an alert topic."""


class DeadLetter(Section):
    """Where events go that can get no result."""

    topic: TopicName = Field(examples=["fraud-dead-letters"])
    """Topic of the dead letters; they keep the event's key, value and headers."""
    max_share: float = Field(default=0.5, gt=0, le=1)
    """The pipeline stops when more than this share of the last 1,000 events would be dead letters, since then the fault
    is hardly the events'. 1: never."""


class Log(Section):
    """Logs go to standard error; normal operation logs nothing per event."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, else json."""


class Observe(Section):
    """Health, metrics and logs."""

    address: Annotated[str, AfterValidator(_address)] | None = "127.0.0.1:9464"
    """host:port of /health/live, /health/ready and /metrics; port 0 takes a free one, null serves none."""
    log: Log = Log()
    """Logs."""


class Pipeline(Section):
    """One pipeline: from a topic through a model to a topic."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$", examples=["fraud"])
    """Name of the pipeline: the default consumer group, and a label on every metric."""
    kafka: Kafka
    """The brokers."""
    source: Source
    """Where the events come from."""
    event: Event = Event()
    """How an event's bytes are read."""
    model: Model
    """The model server and the mapping."""
    batch: Batch = Batch()
    """Batching."""
    result: Result
    """Where the results go."""
    dead_letter: DeadLetter
    """Where events go that can get no result."""
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """at_least_once: after a crash some results appear twice. exactly_once: results, alerts, dead letters and offsets
    are written in Kafka transactions; readers with isolation level read_committed see every outcome once."""
    commit_interval: Duration = 0.1
    """How often finished offsets are committed; it bounds what is done again after a crash. Under exactly_once it is
    the length of a transaction, after which its results become visible."""
    drain_timeout: Duration = 30.0
    """How long a stop or a rebalance waits for events in flight; at most 45s, within Kafka's rebalance timeout."""
    observe: Observe = Observe()
    """Health, metrics and logs."""

    @property
    def group(self) -> str:
        """The consumer group in effect."""
        return self.source.group or self.name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outputs = {"result": self.result.topic, "dead_letter": self.dead_letter.topic}
        if self.result.alert:
            outputs["result.alert"] = self.result.alert.topic
        for key, topic in outputs.items():
            if topic in self.source.topics:
                raise ValueError(f"{key}.topic is {topic!r}, which is also consumed: its records would circle for ever")
        if len(set(outputs.values())) < len(outputs):
            raise ValueError(f"result, alert and dead letter topics must differ, got {', '.join(outputs.values())}")
        if self.event.format == "raw" and self.result.copy_fields:
            raise ValueError("result.copy needs event.format json: a raw event has no fields")
        if self.event.format == "raw" and self.model.inputs:
            raise ValueError("model.inputs needs event.format json: a raw event is one row of the model's only input")
        if self.commit_interval <= 0:
            raise ValueError("commit_interval must be longer than 0")
        if self.delivery == "exactly_once" and self.commit_interval > 10:
            raise ValueError("commit_interval must be at most 10s under exactly_once: transactions would time out")
        target = self.batch.target_p99
        if target is not None and self.delivery == "exactly_once" and target < 2 * self.commit_interval:
            raise ValueError(
                f"batch.target_p99 ({target:g} s) must be at least twice commit_interval ({self.commit_interval:g} s) "
                "under exactly_once: results wait so long for the end of their transaction"
            )
        if not 0 < self.drain_timeout <= 45:
            raise ValueError("drain_timeout must be longer than 0 and at most 45s")
        if self.result.alert and self.model.outputs:
            unknown = Expression.parse(self.result.alert.when).names - set(self.model.outputs)
            if unknown:
                raise ValueError(
                    f"result.alert.when uses {', '.join(sorted(unknown))}, but model.outputs has only "
                    f"{', '.join(self.model.outputs)}"
                )
        return self

    def effective(self) -> dict[str, Any]:
        """Every value in effect, spelt as in the file."""
        dumped = self.model_dump(mode="json", by_alias=True)
        dumped["source"]["group"] = self.group
        return dumped

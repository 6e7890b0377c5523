"""A model's config.pbtxt, as far as the watcher has a say in it: which versions are loaded is its decision."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from serving.errors import ServingError
from serving.formats.savedmodel import SavedModel
from serving.signature import DEFAULT_SIGNATURE

FILE = "config.pbtxt"
DEFAULT = """\
platform: "{platform}"
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
"""
"""One process: Triton itself would start two, which load side by side and take the cores from what serves."""
_KEEP = 2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the configuration says.

    Attributes:
        text: for the server, which loads whatever the watcher has put before it.
        keep: how many versions stay loaded, newest first; None for all.
        only: the only versions that may be loaded; None where it does not say.
        signature: of the SavedModel, that is served.
    """

    text: str
    keep: int | None
    only: frozenset[int] | None
    signature: str


def read_config(model: Path) -> ModelConfig:
    """The configuration of a model; the defaults where there is no file.

    Raises:
        ServingError: it cannot be read.
    """
    try:  # here, since the command line knows models without it
        from tritonclient.grpc import model_config_pb2 as pb
    except ImportError:
        raise ServingError("the Triton client is not installed here; pip install 'headrace[serving]'") from None
    path = model / FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        text = DEFAULT.format(platform=SavedModel.platform)  # the backend goes by what it finds, whatever its name
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{path}: cannot be read: {error}") from None
    config = pb.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ServingError(f"{path}: line {error}") from None
    policy = config.version_policy.WhichOneof("policy_choice")
    keep: int | None = _KEEP
    only = None
    if policy == "latest":
        keep = max(1, config.version_policy.latest.num_versions)
    elif policy == "all":
        keep = None
    elif policy == "specific":
        keep, only = None, frozenset(config.version_policy.specific.versions)
    config.version_policy.all.SetInParent()
    signature = config.parameters["signature"].string_value if "signature" in config.parameters else DEFAULT_SIGNATURE
    return ModelConfig(text_format.MessageToString(config), keep, only, signature)

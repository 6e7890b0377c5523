"""The configuration: one YAML file, typed once."""

from bridge.config.load import load, parse
from bridge.config.model import Pipeline

__all__ = ["Pipeline", "load", "parse"]

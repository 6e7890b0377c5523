"""From a YAML file and the environment to a checked `Pipeline`, or to sentences that name the key and the way out."""

import difflib
import os
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from bridge.config.model import Pipeline
from bridge.errors import ConfigError

PREFIX = "HEADRACE_"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(path: Path, env: Mapping[str, str] = os.environ) -> Pipeline:
    """The configuration of `path`, with `${VAR}` expanded and `HEADRACE_SECTION__KEY` overrides applied.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}; see headrace init") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(
            f"{path}: not valid YAML{place}: {reason}; a ${{VAR}} within braces needs quotes"
            if "${" in text
            else f"{path}: not valid YAML{place}: {reason}"
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping of keys; headrace init writes a skeleton")
    return parse(document, env, where=str(path))


def parse(document: Mapping[str, Any], env: Mapping[str, str], where: str = "configuration") -> Pipeline:
    """As `load`, from an already parsed document.

    Raises:
        ConfigError: one sentence for each thing that is wrong, each beginning with `where`.
    """
    try:
        merged = _override(_expand(document, env, ()), env)
        return Pipeline.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(*(f"{where}: {sentence}" for sentence in _sentences(error))) from None
    except ConfigError as error:
        raise ConfigError(*(f"{where}: {sentence}" for sentence in error.sentences)) from None


def _expand(value: Any, env: Mapping[str, str], path: tuple[str, ...]) -> Any:
    if isinstance(value, str):

        def replace(match: re.Match[str]) -> str:
            if match[1] not in env:
                raise ConfigError(f"{'.'.join(path)}: the environment variable {match[1]} is not set")
            return env[match[1]]

        return _VARIABLE.sub(replace, value)
    if isinstance(value, Mapping):
        return {key: _expand(item, env, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, env, (*path, str(index))) for index, item in enumerate(value)]
    return value


def _override(document: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    for variable, text in sorted(env.items()):
        if not variable.startswith(PREFIX):
            continue
        keys = variable.removeprefix(PREFIX).lower().split("__")
        if keys[0] not in Pipeline.model_fields:
            if len(keys) == 1:
                continue  # Kubernetes sets HEADRACE_SERVICE_HOST and the like for a Service named headrace.
            raise ConfigError(f"{variable}: there is no section {keys[0]!r}{_nearest(keys[0], _keys(Pipeline))}")
        section = document
        for depth, key in enumerate(keys[:-1]):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{variable}: {'.'.join(keys[: depth + 1])} is not a section")
        try:
            section[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{variable}: {text!r} is not valid YAML") from None
    return document


def _sentences(error: ValidationError) -> Iterator[str]:
    seen: set[str] = set()
    for item in error.errors():
        path = [part for part in item["loc"] if not (isinstance(part, str) and _is_union_branch(part))]
        dotted = ".".join(str(part) for part in path)
        sentence = _sentence(item["type"], item["msg"], path, item["input"], item.get("ctx", {}))
        if dotted not in seen or item["type"] == "value_error":  # one for a key, not one for each branch of its type
            seen.add(dotted)
            yield f"{dotted}: {sentence}" if dotted else sentence


def _sentence(kind: str, message: str, path: list[Any], value: Any, context: dict[str, Any]) -> str:
    match kind:
        case "extra_forbidden":
            parent = _section(path[:-1])
            return f"unknown key{_nearest(str(path[-1]), _keys(parent) if parent else [])}"
        case "missing":
            return "required, but not set"
        case "literal_error":
            choices = re.findall(r"'([^']+)'", context["expected"])
            nearest = difflib.get_close_matches(str(value), choices, n=1) if len(choices) > 1 else []
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            return f"{value!r} is not one of {context['expected'].replace(chr(39), '')}{hint}"
        case "value_error":
            reason = message.removeprefix("Value error, ")
            return reason if isinstance(value, dict | BaseModel) else f"{value!r}: {reason}"
        case "model_type" | "model_attributes_type":
            return f"{value!r} is not a section; write its keys below it"
        case "list_type":
            return f"{value!r} is not a list; write [{value}]"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{value!r} is not a whole number"
        case "string_pattern_mismatch":
            return f"{value!r} does not match {context['pattern']}"
        case _:
            return f"{value!r}: {message[0].lower()}{message[1:]}"


def _is_union_branch(part: str) -> bool:
    return part in {"str", "int", "constrained-int", "list[str]"} or part.startswith(("literal[", "function-", "dict["))


def _section(path: list[Any]) -> type[BaseModel] | None:
    """The section that stands at `path`."""
    current: type[BaseModel] = Pipeline
    for part in path:
        field = next((f for name, f in current.model_fields.items() if part in (name, f.alias)), None)
        found = section_of(field.annotation) if field else None
        if found is None:
            return None
        current = found
    return current


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in a field's type, seeing through `X | None`; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for arm in get_args(annotation) if (found := section_of(arm))), None)
    return None


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"

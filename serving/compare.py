"""Two versions side by side: what they are asked, how large and how good they are, and how their answers differ."""

from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import ServingError
from serving.formats import load, read_signature
from serving.golden import golden_inputs, plain, read_golden
from serving.manifest import read_manifest
from serving.modelconfig import read_config
from serving.repository import size_of

Sides = tuple[Any, Any]


def compare(old: Path, new: Path) -> dict[str, Sides]:
    """What there is to compare -> (of the old version, of the new one).

    Raises:
        ServingError: one of them cannot be read or run.
    """
    sides = (old, new)
    name = read_config(old.parent).signature
    signatures = [read_signature(version, name) for version in sides]
    manifests = [read_manifest(version) for version in sides]
    found: dict[str, Sides] = {
        "inputs": _pair([", ".join(map(str, signature.inputs)) for signature in signatures]),
        "outputs": _pair([", ".join(map(str, signature.outputs)) for signature in signatures]),
        "bytes": _pair([size_of(version) for version in sides]),
    }
    qualities = [manifest.quality if manifest else {} for manifest in manifests]
    for metric in sorted(set(qualities[0]) | set(qualities[1])):
        found[metric] = _pair([quality.get(metric) for quality in qualities])
    golden = read_golden(old)
    if golden is not None:
        answers = [_answers(version, name, golden) for version in sides]
        for output in golden.outputs:
            found[f"{output}, golden requests"] = _pair([answer.get(output) for answer in answers])
            found[f"{output}, largest difference"] = ("", _difference(answers, output))
    return found


def _answers(version: Path, signature: str, golden: Any) -> dict[str, Any]:
    runner = load(version, signature)
    try:
        return {name: plain(array) for name, array in runner.run(golden_inputs(golden, runner.signature)).items()}
    except ServingError as error:
        return dict.fromkeys(golden.outputs, str(error))
    finally:
        runner.close()


def _difference(answers: list[dict[str, Any]], output: str) -> float | str:
    try:
        old, new = (np.asarray(answer.get(output), np.float64) for answer in answers)
        return float(np.abs(old - new).max())
    except (TypeError, ValueError):
        return "not to be told"


def _pair(values: list[Any]) -> Sides:
    old, new = values
    return old, new

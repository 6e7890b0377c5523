"""The chart by the programs that its users have: Helm 3, and helm-unittest's suites beside the templates."""

import subprocess
from pathlib import Path

import pytest
import yaml
from helm_python import Chart

from tests.deploy.test_chart import CHART, EXAMPLES, render
from tests.deploy.tools import needs


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_helm_3_lints_and_renders_what_helm_4_does(example: Path) -> None:
    helm = needs("helm")
    run(helm, "lint", "--strict", str(CHART), "--values", str(example))
    text = run(
        helm,
        "template",
        "x",
        str(CHART),
        "--namespace",
        "scoring",
        "--values",
        str(example),
        "--kube-version",
        "1.34.0",
    )
    three = [item for item in yaml.safe_load_all(text) if item]
    with Chart.load(CHART) as chart:
        four = render(chart, yaml.safe_load(example.read_text()))

    def key(item: dict) -> tuple[str, str]:
        return item["kind"], item["metadata"]["name"]

    assert sorted(three, key=key) == sorted(four, key=key)


def test_the_suites_beside_the_templates() -> None:
    run(needs("helm-unittest"), str(CHART))

"""The Compose files: by Compose's own specification, and against what they hand to us."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from bridge.config import load
from deploy.docker.build import IMAGES, VERSION

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_it_keeps_to_the_specification() -> None:
    parsed = PyCompose.from_yaml((FOLDER / "compose.yaml").read_text())
    parsed.validate()
    assert set(parsed.service_names()) >= {"kafka", "server", "watcher", "bridge", "prometheus", "grafana"}


def test_a_typo_would_be_found() -> None:
    text = (FOLDER / "compose.yaml").read_text().replace("    stop_grace_period:", "    stop_grace_periods:")
    with pytest.raises(Exception, match="stop_grace_periods"):
        PyCompose.from_yaml(text)


def test_its_pipeline_is_one_and_speaks_to_its_services(compose: dict[str, Any]) -> None:
    pipeline = load(FOLDER / "pipeline.yaml", {})
    for address in (pipeline.kafka.bootstrap_servers, pipeline.model.address):
        assert address.split(":")[0] in compose["services"]
    script = compose["services"]["topics"]["command"][0]
    for topic in (*pipeline.source.topics, pipeline.result.topic, pipeline.dead_letter.topic):
        assert f"{topic}:" in script


def test_its_images_are_those_that_are_built_here(compose: dict[str, Any]) -> None:
    ours = {name: service for name, service in compose["services"].items() if "build" in service}
    assert {service["image"] for service in ours.values()} == {f"headrace/{name}:{VERSION}" for name in IMAGES}
    for service in ours.values():
        assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_every_file_that_is_mounted_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (FOLDER / source).exists(), volume


def test_nothing_listens_beyond_this_machine(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))

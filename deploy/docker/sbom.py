"""Writes an image's bill of materials, CycloneDX 1.6: its Python packages, and the Debian packages its files came from.

    python sbom.py IMAGE VENV OUTPUT [FILE …]

Without files, every installed Debian package is in it.
"""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def python_packages(venv: Path) -> Iterator[Component]:
    """Those installed in a virtual environment."""
    for folder in venv.glob("lib/python3*/site-packages"):
        for found in distributions(path=[str(folder)]):
            name, version = found.metadata["Name"], found.version
            url = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
            yield Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url))


def debian_packages(files: list[str]) -> Iterator[Component]:
    """Those that own these files, or all."""
    owners = {name for file in files for name in _owners(file)}
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name, version, architecture in map(str.split, shown.splitlines()):
        if not files or name in owners:
            url = PackageURL("deb", "debian", name, version, {"arch": architecture})
            yield Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url))


def _owners(file: str) -> list[str]:
    for path in (file, file.removeprefix("/usr")):  # /lib is a link to /usr/lib, and dpkg knows one of the two
        found = subprocess.run(["dpkg-query", "--search", path], check=False, capture_output=True, text=True)
        if found.returncode == 0:
            return [owner.split(":")[0] for owner in found.stdout.rpartition(": ")[0].split(", ")]
    return []


def write(image: str, venv: Path, output: Path, files: list[str]) -> None:
    """Write it; the same packages make the same bytes."""
    bom = Bom(components=sorted([*python_packages(venv), *debian_packages(files)], key=lambda found: str(found.purl)))
    bom.serial_number = uuid5(NAMESPACE_URL, " ".join(str(component.purl) for component in bom.components))
    bom.metadata.timestamp = datetime.fromtimestamp(0, UTC)
    bom.metadata.component = Component(name=image, type=ComponentType.CONTAINER, bom_ref=image)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(JsonV1Dot6(bom).output_as_string(indent=2))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])

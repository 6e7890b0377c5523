"""Builds the images with buildah, on a Debian of its own making: `make images`. Needs no registry and no daemon.

With Docker and a registry at hand, `docker build -f deploy/docker/bridge.Dockerfile .` does the same on an official base.
"""

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).parents[2]
FOLDER = SOURCE / ".cluster"
ARCHIVES = FOLDER / "images"
BASE = "localhost/headrace/debian:bookworm"
VERSION = importlib.metadata.version("headrace")
IMAGES = ("bridge", "serving")
LIMIT_MB = {"bridge": 200}
"""An image that has grown beyond this is a mistake."""
# libpython is what the stub of Triton's Python backend is linked with; official images of Python have it.
_DEBIAN = ("--variant=minbase", "--include=python3,python3-venv,libpython3.11,ca-certificates", "bookworm")
# The certificates by which this machine's pip trusts its index, for the time of the build.
_TRUST = "/etc/ssl/certs:/etc/ssl/certs:ro"


class BuildError(Exception):
    """One sentence, and the output of what failed."""


def buildah(*arguments: str, quiet: bool = True) -> str:
    """What buildah prints.

    Raises:
        BuildError: it is not here, or fails.
    """
    command = ["buildah", "--root", str(FOLDER / "storage"), "--runroot", str(FOLDER / "storage-run"), *arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True, check=False
        )
    except FileNotFoundError:
        raise BuildError("buildah is not installed; apt-get install buildah mmdebstrap") from None
    if done.returncode:
        raise BuildError(f"{' '.join(arguments[:2])} failed:\n{done.stderr or ''}")
    return done.stdout


def base() -> None:
    """Make the base image, once."""
    if BASE in buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        return
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    archive = ARCHIVES / "debian.tar"
    if not archive.exists():
        subprocess.run(["mmdebstrap", "--quiet", *_DEBIAN, str(archive)], check=True)
    from_files(BASE, {archive: "/"}, [])


def from_files(name: str, files: dict[Path, str], entrypoint: list[str]) -> None:
    """An image of nothing but these files; an archive among them is unpacked."""
    container = buildah("from", "scratch").strip()
    for source, target in files.items():
        buildah("add", "--quiet", container, str(source), target)
    if entrypoint:
        buildah("config", "--entrypoint", str(entrypoint).replace("'", '"'), container)
    buildah("commit", "--quiet", "--rm", container, name)


def build(name: str) -> str:
    """Build one image; its name."""
    image = f"localhost/headrace/{name}:{VERSION}"
    file = SOURCE / "deploy" / "docker" / f"{name}.Dockerfile"
    # The same sources and packages make the same layers: no time of today is in them.
    fixed = ("--timestamp", "0", "--layers", "--isolation", "chroot", "--volume", _TRUST)
    buildah("build", *fixed, "--build-arg", f"BASE={BASE}", "--file", str(file), "--tag", image, str(SOURCE))
    return image


def save(image: str, name: str) -> Path:
    """Write an image to an archive that container runtimes import, unless it is there; where."""
    archive = ARCHIVES / f"{name}.tar"
    known = ARCHIVES / f"{name}.id"
    identity = buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", image).strip()
    if not archive.exists() or not known.exists() or known.read_text() != identity:
        archive.unlink(missing_ok=True)
        buildah("push", "--quiet", image, f"docker-archive:{archive}:{image}")
        known.write_text(identity)
    return archive


def megabytes(image: str) -> float:
    """Size of its layers, unpacked, in 10^6 bytes."""
    archive_size = buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", image).strip()
    listed = buildah("images", "--format", "{{.ID}} {{.Size}}", "--no-trunc")
    line = next(line for line in listed.splitlines() if archive_size in line)
    number, unit = line.split()[1:3]
    return float(number) * {"KB": 1e-3, "MB": 1, "GB": 1e3}[unit]


def main() -> None:
    """Build all, or those named."""
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    try:
        base()
        for name in sys.argv[1:] or IMAGES:
            began = time.monotonic()
            image = build(name)
            size = megabytes(image)
            save(image, name)
            print(f"{image}  {size:.0f} MB  built and saved in {time.monotonic() - began:.0f} s", flush=True)
            if size > LIMIT_MB.get(name, float("inf")):
                sys.exit(f"{image} is larger than {LIMIT_MB[name]} MB")
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

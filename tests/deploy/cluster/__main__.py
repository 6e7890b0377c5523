"""make cluster, make cluster-down: brings the cluster up with our images in it, or removes it."""

import sys

from deploy.docker import build
from tests.deploy.cluster import extensions, node
from tests.deploy.cluster.daemon import Failed


def up() -> None:
    """The cluster, and the images its pods run."""
    build.base()
    if not (node.IMAGES / "pause.tar").exists():
        archive = node.IMAGES / "debian.tar"
        build.from_files("localhost/pause:1", {archive: "/"}, ["/usr/bin/sleep", "infinity"])
        build.save("localhost/pause:1", "pause")
    if not (node.IMAGES / "coredns.tar").exists():
        build.from_files("localhost/coredns:1", {node.BIN / "coredns": "/coredns"}, ["/coredns"])
        build.save("localhost/coredns:1", "coredns")
    node.up()
    extensions.up()
    for name in build.IMAGES:
        node.load(node.IMAGES / f"{name}.tar", name)
    print(f"ready; export KUBECONFIG={node.KUBECONFIG} PATH={node.BIN}:$PATH")


def down() -> None:
    """Remove it."""
    extensions.down()
    node.down()


if __name__ == "__main__":
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except (Failed, build.BuildError) as error:
        sys.exit(str(error))

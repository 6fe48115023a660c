"""The API server of the oldest Kubernetes that the chart supports, built on demand (`make test-oldest`).

It has a Go module of its own in `oldest/`, because two versions of Kubernetes do not fit into one. etcd is that of the
local cluster. `python -m localcluster.oldest` prints the folder with both, for KUBEBUILDER_ASSETS.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

from localcluster import build, versions

MODULES = Path(__file__).parent / "oldest"
KUBERNETES = versions.pinned("kube-apiserver", "k8s.io/kubernetes", MODULES)
BINARY = versions.Binary("kube-apiserver", versions.stamps(KUBERNETES))


def folder() -> Path:
    """Where it is in the cache, once it is built."""
    digest = hashlib.sha256(repr((platform.machine(), BINARY, versions.key())).encode())
    for source in sorted((MODULES / BINARY.name).iterdir()):
        digest.update(f"{source.name}\0".encode() + source.read_bytes())
    return build.cache_root() / "localcluster" / f"oldest-{KUBERNETES}-{digest.hexdigest()[:12]}"


def built(report: build.Report) -> Path:
    """Build what is not there yet; return the folder. Raises `BuildError`."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    control_plane = build.build(report)
    with build.only_builder(place, report):
        if not (place / BINARY.name).exists():
            build.build_one(BINARY, place, report, MODULES)
        build.link(place, "etcd", control_plane / "etcd")
    return place


def main() -> int:
    try:
        print(built(report=lambda line: print(line, file=sys.stderr, flush=True)))
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

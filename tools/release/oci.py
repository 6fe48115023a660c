"""OCI image layouts in an archive, as `oras`, `skopeo`, `ctr` and `docker load` read them.

See the image specification of the Open Container Initiative: image-layout, manifest, index, annotations.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from release.archives import Member, tar

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Descriptor = dict[str, Any]


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def canonical(value: Any) -> bytes:
    """JSON with one form only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Layout:
    """A layout in the making: blobs by digest, each named by a descriptor that another blob holds."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def blob(self, media_type: str, content: bytes) -> Descriptor:
        name = digest(content)
        self._blobs[name] = content
        return {"mediaType": media_type, "digest": name, "size": len(content)}

    def manifest(self, config: Descriptor, layers: list[Descriptor], annotations: dict[str, str]) -> Descriptor:
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": annotations,
        }
        return self.blob(MANIFEST, canonical(content))

    def index(self, manifests: list[Descriptor], annotations: dict[str, str]) -> Descriptor:
        content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": annotations}
        return self.blob(INDEX, canonical(content))

    def archive(self, top: Descriptor, repository: str, tag: str, epoch: int) -> bytes:
        """The layout as a tar archive, with `top` under the name `repository:tag`."""
        names = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": f"{repository}:{tag}"}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**top, "annotations": names}]}
        members = [Member(f"blobs/{name.replace(':', '/')}", content) for name, content in self._blobs.items()]
        members.append(Member("index.json", canonical(index)))
        members.append(Member("oci-layout", canonical({"imageLayoutVersion": "1.0.0"})))
        return tar(members, epoch)

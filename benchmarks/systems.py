"""What is compared: three ways to save and load through torch.distributed.checkpoint, and two kinds of bare sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import StorageReader, StorageWriter

from llama import State
from runs import CEILING, CHECKED, CLIENTS, CONNECTOR, OURS, STOCK
from sockets import BareSockets

REGION = "us-east-1"


@dataclass(frozen=True)
class Server:
    """An S3 server; or, without an endpoint, the local file system."""

    endpoint: str = ""
    access_key: str = "benchmark"
    secret_key: str = "benchmark"

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """fsspec's."""
        if not self.endpoint:
            return {}
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": REGION},
        }


class System(Protocol):
    """All ranks call these together."""

    def save(self, state: State, url: str) -> None: ...
    def save_for_loading(self, state: State, url: str) -> None: ...
    def load(self, state: State, url: str) -> None: ...


@dataclass(frozen=True)
class Dcp:
    """A pair of DCP's storage classes."""

    writer: Callable[[str], StorageWriter]
    reader: Callable[[str], StorageReader]

    def save(self, state: State, url: str) -> None:
        dcp.save(dict(state), storage_writer=self.writer(url))

    save_for_loading = save

    def load(self, state: State, url: str) -> None:
        dcp.load(dict(state), storage_reader=self.reader(url))


def system(name: str, server: Server, *, rank: int) -> System:
    """Args:
    name: One of ``runs.SYSTEMS``; for the ceilings with the number of connections, as in ``ceiling-4``.
    """
    kind, _, connections = name.partition("-")
    if kind in (CEILING, CHECKED):
        return BareSockets(server.endpoint, rank, connections=int(connections), checksums=kind == CHECKED)
    if name in CLIENTS:
        import peers

        client: System = getattr(peers, name.replace("-", "_"))(server, rank=rank)
        return client
    return {STOCK: _stock, CONNECTOR: _s3torchconnector, OURS: _ours}[name](server)


def _stock(server: Server) -> Dcp:
    """torch's own, as torch configures it: one file per rank, one thread."""
    if not server.endpoint:
        return Dcp(dcp.FileSystemWriter, dcp.FileSystemReader)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    options = server.storage_options
    return Dcp(lambda url: FsspecWriter(url, **options), lambda url: FsspecReader(url, **options))


def _ours(server: Server) -> Dcp:
    from checkpoint_sidecar import CheckpointReader, CheckpointWriter

    options = server.storage_options
    return Dcp(lambda url: CheckpointWriter(url, **options), lambda url: CheckpointReader(url, **options))


def _s3torchconnector(server: Server) -> Dcp:
    """AWS's, as it configures itself. Its DCP classes take no endpoint: their client is replaced by one that does."""
    import os

    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client
    from s3torchconnector._user_agent import UserAgent
    from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

    os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    client = S3Client(
        REGION,
        endpoint=server.endpoint,
        user_agent=UserAgent(["benchmark"]),
        s3client_config=S3ClientConfig(force_path_style=True),
    )

    def with_endpoint(storage: Any) -> Any:
        storage.fs._client = client
        return storage

    return Dcp(
        lambda url: with_endpoint(S3StorageWriter(REGION, url)),
        lambda url: with_endpoint(S3StorageReader(REGION, url)),
    )

"""What is run: every experiment of a benchmark, in order, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sink_s3 import DROPPING, KEEPING

CEILING, CHECKED, STOCK, CONNECTOR, OBSTORE, S3DLIO, STREAMER, OURS = SYSTEMS = (
    "ceiling",
    "checked",
    "stock",
    "s3torchconnector",
    "obstore",
    "s3dlio",
    "runai-model-streamer",
    "ours",
)
PEERS = (CONNECTOR, OBSTORE, S3DLIO, STREAMER)
"""Packages of others, which the group ``bench`` installs."""
CLIENTS = (OBSTORE, S3DLIO, STREAMER)
"""Those of them that only move bytes."""


class Section(StrEnum):
    TRANSFER = "transfer"
    TRAINING = "training"
    RESHARDING = "resharding"
    PLANNING = "planning"
    SMALL = "small"
    LOCAL = "local"
    SEAWEEDFS = "seaweedfs"
    TLS = "tls"
    SHARE = "share"
    TLS_SHARE = "tls-share"


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        size: Bytes of the model, by system: what is ten times slower gets less, or it would take all the time.
        ceilings: Numbers of connections of the bare sockets; the best counts.
        turns: How often ours and the ceiling save and load by turns.
        other_bytes: Of the model where a disk or a real server is the limit.
        tensors: The number of small ones.
    """

    size: Mapping[str, int]
    repetitions: Mapping[str, int]
    ranks: Sequence[int]
    ceilings: Sequence[int]
    turns: int
    other_bytes: int
    tensors: int


# Each client of the library, and bare sockets, look for certificates in one of these.
_TRUST = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")

_MODEL_BYTES = 2_471_628_800
"""All of Llama 3.2 1B, see ``llama``."""
_MIB = 1024 * 1024

FULL = Scale(
    size={CEILING: _MODEL_BYTES, CHECKED: _MODEL_BYTES, OURS: _MODEL_BYTES, STOCK: 512 * _MIB}
    | dict.fromkeys(PEERS, 1024 * _MIB),
    repetitions={CEILING: 5, CHECKED: 5, OURS: 5, STOCK: 2} | dict.fromkeys(PEERS, 3),
    ranks=(1, 2),
    ceilings=(2, 4, 16),
    turns=7,
    other_bytes=512 * _MIB,
    tensors=2_000,
)
QUICK = Scale(
    size=dict.fromkeys(SYSTEMS, 256 * _MIB),
    repetitions=dict.fromkeys(SYSTEMS, 2),
    ranks=(1,),
    ceilings=(4,),
    turns=2,
    other_bytes=256 * _MIB,
    tensors=1_000,
)


@dataclass(frozen=True)
class Places:
    """Where things are saved. Attributes:
    sink: The endpoint of the loopback server.
    folder: On the local file system.
    seaweedfs: Fields of a ``Server``, and a bucket there; None without the program.
    tls: The endpoint of a sink that speaks TLS, and the file with the certificates to trust.
    """

    sink: str
    folder: str
    seaweedfs: tuple[Mapping[str, str], str] | None
    tls: tuple[str, str] | None


@dataclass(frozen=True)
class Run:
    """One call of ``processes.start``."""

    section: Section
    system: str
    ranks: int
    experiment: str
    parameters: dict[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.section}: {self.system}, {self.ranks} rank{'s' if self.ranks > 1 else ''}"


def planned(scale: Scale, places: Places) -> Iterator[Run]:
    """All runs; those that are compared follow each other."""
    for ranks in scale.ranks:
        for system in (CEILING, CHECKED):
            for connections in scale.ceilings:
                yield _transfer(scale, places, system, ranks, name=f"{system}-{connections}")
        for system in (STOCK, CONNECTOR, *(CLIENTS if ranks == min(scale.ranks) else ()), OURS):
            yield _transfer(scale, places, system, ranks, name=system)
    yield _share(Section.SHARE, scale, places.sink, {}, scale.size[OURS])
    for system in (STOCK, CONNECTOR, OURS):
        yield _on_sink(
            Section.TRAINING,
            places,
            system,
            "interference",
            url=f"s3://{DROPPING}/training-{system}",
            total_bytes=scale.size[system],
            repetitions=scale.repetitions[system],
        )
    for system in (STOCK, CONNECTOR, OURS):
        yield _on_sink(
            Section.RESHARDING,
            places,
            system,
            "resharding",
            keep_at=f"s3://{KEEPING}/resharding-{system}",
            total_bytes=scale.other_bytes,
            saved_by=8,
            loaded_by=6,
        )
    for system in (STOCK, OURS):
        yield _on_sink(
            Section.PLANNING,
            places,
            system,
            "planning",
            url=f"s3://{DROPPING}/planning-{system}",
            tensors=scale.tensors,
            total_bytes=scale.other_bytes,
        )
    for system in (STOCK, CONNECTOR, OURS):
        yield _on_sink(
            Section.SMALL,
            places,
            system,
            "transfer",
            save_to=f"s3://{DROPPING}/small-{system}",
            keep_at=f"s3://{KEEPING}/small-{system}",
            tensors=scale.tensors,
            repetitions=2,
            sink=True,
        )
    for system in (STOCK, OURS):
        yield _elsewhere(Section.LOCAL, scale, system, {}, f"{places.folder}/{system}")
    if places.seaweedfs:
        server, bucket = places.seaweedfs
        for system in (STOCK, CONNECTOR, OURS):
            yield _elsewhere(Section.SEAWEEDFS, scale, system, server, f"s3://{bucket}/{system}")
    if places.tls:
        endpoint, authority = places.tls
        trusted = dict.fromkeys(_TRUST, authority)
        for system in (CEILING, CHECKED, OURS):
            run = _elsewhere(Section.TLS, scale, system, {"endpoint": endpoint}, f"s3://{KEEPING}/{system}")
            name = system if system == OURS else f"{system}-4"
            urls = {"name": name, "save_to": f"s3://{DROPPING}/{system}"}
            yield replace(run, parameters=run.parameters | urls, environment=trusted)
        yield _share(Section.TLS_SHARE, scale, endpoint, trusted, scale.other_bytes)


def _transfer(scale: Scale, places: Places, system: str, ranks: int, *, name: str) -> Run:
    run = _on_sink(
        Section.TRANSFER,
        places,
        system,
        "transfer",
        save_to=f"s3://{DROPPING}/{name}-{ranks}",
        keep_at=f"s3://{KEEPING}/{name}-{ranks}",
        total_bytes=scale.size[system],
        repetitions=scale.repetitions[system],
        sink=True,
        saves=system != STREAMER,
    )
    return replace(run, ranks=ranks, parameters=run.parameters | {"name": name})


def _on_sink(section: Section, places: Places, system: str, experiment: str, **parameters: Any) -> Run:
    return Run(section, system, 1, experiment, {"name": system, "server": {"endpoint": places.sink}} | parameters)


def _share(section: Section, scale: Scale, endpoint: str, environment: Mapping[str, str], total_bytes: int) -> Run:
    parameters = {
        "name": OURS,
        "ceilings": [f"{CHECKED}-{connections}" for connections in scale.ceilings],
        "server": {"endpoint": endpoint},
        "save_to": f"s3://{DROPPING}/{section}",
        "keep_at": f"s3://{KEEPING}/{section}",
        "total_bytes": total_bytes,
        "repetitions": scale.turns,
    }
    return Run(section, OURS, 1, "turns", parameters, environment)


def _elsewhere(section: Section, scale: Scale, system: str, server: Mapping[str, str], base: str) -> Run:
    parameters = {
        "name": system,
        "server": dict(server),
        "save_to": f"{base}-saves",
        "keep_at": f"{base}-kept",
        "total_bytes": scale.other_bytes,
        "repetitions": 2,
        "sink": False,
    }
    return Run(section, system, 1, "transfer", parameters)

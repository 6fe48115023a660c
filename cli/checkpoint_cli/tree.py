"""Names of tensors as a tree of modules, and what differs between two snapshots. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from checkpoint_cli.records import DifferenceRecord, ItemRecord, SnapshotRecord

_PROPERTIES = ("step", "attempt", "world_size", "bytes", "files", "trigger", "verified")


def as_modules(items: Iterable[ItemRecord], depth: int) -> tuple[ItemRecord, ...]:
    """Return the items with those deeper than ``depth`` parts of their names summed up as modules.

    Args:
        depth: Number of parts, divided by dots; 0 for all items as they are.
    """
    if not depth:
        return tuple(items)
    found: dict[str, ItemRecord] = {}
    for item in items:
        parts = item.name.split(".")
        if item.type == "file" or len(parts) <= depth:
            found[item.name] = item
            continue
        name = ".".join(parts[:depth]) + "."
        module = found.get(name, ItemRecord(name=name, type="module", bytes=0))
        size = (module.bytes or 0) + (item.bytes or 0)
        found[name] = ItemRecord(name=name, type="module", tensors=module.tensors + item.tensors, bytes=size)
    return tuple(found.values())


def differing_properties(a: SnapshotRecord, b: SnapshotRecord) -> Iterator[DifferenceRecord]:
    """Yield the facts and metrics that differ."""
    for name in _PROPERTIES:
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            yield DifferenceRecord(what="property", name=name, a=str(one), b=str(other))
    for name in sorted(a.metrics.keys() | b.metrics.keys()):
        if a.metrics.get(name) != b.metrics.get(name):
            yield DifferenceRecord(what="metric", name=name, a=a.metrics.get(name), b=b.metrics.get(name))


def differing_items(a: Mapping[str, ItemRecord], b: Mapping[str, ItemRecord]) -> Iterator[DifferenceRecord]:
    """Yield the items that one side lacks, and those of another shape or dtype."""
    for name in sorted(a.keys() | b.keys()):
        one, other = a.get(name), b.get(name)
        if one is None or other is None:
            yield DifferenceRecord(what="item", name=name, a=_described(one), b=_described(other))
        elif one.shape != other.shape:
            yield DifferenceRecord(what="shape", name=name, a=_described(one), b=_described(other))
        elif one.dtype != other.dtype:
            yield DifferenceRecord(what="dtype", name=name, a=one.dtype, b=other.dtype)


def _described(item: ItemRecord | None) -> str | None:
    if item is None:
        return None
    return f"{list(item.shape)} {item.dtype}" if item.shape is not None else item.type

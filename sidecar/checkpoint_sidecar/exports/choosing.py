"""Decides which tensors of a snapshot are exported, and under which names. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.engine.safetensors import DTYPES
from checkpoint_sidecar.exports.contents import SnapshotContents, StoredTensor

MODEL = "model"
EVERYTHING = "."
"""As the part: all objects of the state, under their full names."""

_FORM = "__form__"
_PACKED_MAGIC = b"CKPTVAL1"
_OPERATION = "export"


@dataclass(frozen=True, slots=True)
class Naming:
    """Which tensors to take, and what to call them.

    Attributes:
        part: Name of an object of the state, or the start of names; empty for the model.
        strip: Prefixes; the first one that a name has is removed.
        rename: Regular expressions and their replacements, in order.
        dtype: Torch's name of the dtype of all floating-point tensors; empty for the stored one.
    """

    part: str = ""
    strip: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class ExportedTensor:
    """A tensor to export.

    Attributes:
        dtype: Torch's name of the dtype that it gets.
        ties: Further names of the same weight, which are not written again.
    """

    name: str
    stored: StoredTensor
    dtype: str
    ties: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size in the export."""
        stored = DTYPES[self.stored.dtype].bytes
        return self.stored.bytes // stored * DTYPES[self.dtype].bytes

    @property
    def is_cast(self) -> bool:
        return self.dtype != self.stored.dtype


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """What an export holds.

    Attributes:
        part: The part that was chosen.
        tensors: In the order of the snapshot.
        skipped: Names of values in the part that are no tensors.
    """

    part: str
    tensors: tuple[ExportedTensor, ...]
    skipped: tuple[str, ...] = field(default=())


def choose(contents: SnapshotContents, naming: Naming, tied: Iterable[Sequence[str]], *, subject: str) -> TensorChoice:
    """Return the tensors to export.

    Args:
        tied: Groups of names of one weight each, with the part: ``model.lm_head.weight``.
        subject: Name of the snapshot in errors.

    Raises:
        ConfigurationError: The part does not exist, two tensors get one name, or a setting is wrong.
    """
    check_naming(naming)
    if not contents.tensors and not contents.values:
        hint = "fetch_files copies the files of a trainer's folder."
        raise ConfigurationError(_OPERATION, subject, "it has files and no tensors", hint)
    part = naming.part or default_part(contents, subject=subject)
    chosen = {name: each for name, each in contents.tensors.items() if _is_in(part, name)}
    if not chosen:
        raise ConfigurationError(
            _OPERATION, subject, f"it has no tensor below {part}", f"It has {_listed(_objects(contents))}."
        )
    ties = _ties(chosen, tied)
    others = {name for names in ties.values() for name in names}
    tensors = tuple(
        ExportedTensor(
            exported_name(name, part, naming),
            each,
            naming.dtype if naming.dtype and DTYPES[each.dtype].floating else each.dtype,
            tuple(exported_name(tie, part, naming) for tie in ties.get(name, ())),
        )
        for name, each in chosen.items()
        if name not in others
    )
    _check_distinct(tensors, subject)
    skipped = [name for name in contents.values if _is_in(part, name) and _FORM not in name.split(".")]
    return TensorChoice(part, tensors, tuple(skipped))


def default_part(contents: SnapshotContents, *, subject: str) -> str:
    """Return the part that is meant if none is named.

    A ``Checkpointer`` names its objects: then it is the model, or the only module. Stock code may also have saved a
    bare state dict, whose names begin with those of submodules: then it is everything, unless an optimizer is there.

    Raises:
        ConfigurationError: Several could be meant.
    """
    modules = {name.partition(".")[0] for name in contents.values if _FORM in name.split(".")}
    objects = _objects(contents)
    if MODEL in objects and (modules or any(each.startswith("optim") for each in objects)):
        return MODEL
    candidates = [each for each in objects if each in modules] or objects
    if not modules:
        return EVERYTHING
    if len(candidates) == 1:
        return candidates[0]
    raise ConfigurationError(
        _OPERATION, subject, "no part of it is named model", f"Name one as the part: {_listed(candidates)}."
    )


def exported_name(name: str, part: str, naming: Naming) -> str:
    """Return the name that a tensor gets."""
    found = name if part == EVERYTHING else name.removeprefix(part).removeprefix(".") or name
    prefix = next((each for each in naming.strip if found.startswith(each)), "")
    found = found.removeprefix(prefix)
    for pattern, replacement in naming.rename:
        found = re.sub(pattern, replacement, found)
    return found


def check_naming(naming: Naming) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigurationError: A regular expression or the dtype is invalid.
    """
    for pattern, replacement in naming.rename:
        try:
            re.sub(pattern, replacement, "")
            re.compile(pattern)
        except (re.error, IndexError) as error:
            raise ConfigurationError(
                "rename tensors by", f"{pattern}={replacement}", f"it is no regular expression: {error}"
            ) from None
    if naming.dtype and not (naming.dtype in DTYPES and DTYPES[naming.dtype].floating):
        known = ", ".join(name for name, dtype in DTYPES.items() if dtype.floating)
        raise ConfigurationError("cast to", naming.dtype, "it is not a dtype to cast to", f"Use one of {known}.")


def form_items(contents: SnapshotContents) -> list[str]:
    """Return the items that describe modules, which say among other things which weights are tied."""
    return [name for name in contents.values if _FORM in name.split(".")]


def tied_names(form_item: str, packed: bytes) -> list[tuple[str, ...]]:
    """Return the groups of tied names in the description of a module, with the name of the module in front.

    ``training.state.values`` packs the description; only what is needed of it is read here. Anything else has no ties.
    """
    if not packed.startswith(_PACKED_MAGIC):
        return []
    try:
        described = _plain(msgspec.msgpack.decode(packed[len(_PACKED_MAGIC) :]))
        module = form_item.partition(".")[0]
        return [tuple(f"{module}.{name}" for name in group) for group in described.get("ties", ())]
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
        return []


def _plain(node: Any) -> Any:
    """Unpack dicts, lists and tuples."""
    if not isinstance(node, list) or not node:
        return node
    match node:
        case ["dict", list() as keys, list() as values]:
            return {key: _plain(value) for key, value in zip(keys, values, strict=True) if isinstance(key, str)}
        case ["list" | "tuple", list() as parts]:
            return [_plain(each) for each in parts]
    return None


def _ties(chosen: Mapping[str, StoredTensor], tied: Iterable[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the further names of each weight, by its first."""
    found = {}
    for group in tied:
        first, *others = [name for name in group if name in chosen] or [""]
        same = [each for each in others if _kind(chosen[each]) == _kind(chosen[first])]
        if same:
            found[first] = tuple(same)
    return found


def _kind(tensor: StoredTensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _check_distinct(tensors: Iterable[ExportedTensor], subject: str) -> None:
    counted = Counter(name for each in tensors for name in (each.name, *each.ties))
    if twice := next((name for name, count in counted.items() if count > 1), ""):
        raise ConfigurationError(_OPERATION, subject, f"two tensors get the name {twice}", "Rename fewer.")
    if "" in counted:
        raise ConfigurationError(_OPERATION, subject, "a tensor's whole name is stripped", "Strip less.")


def _is_in(part: str, name: str) -> bool:
    return part == EVERYTHING or name == part or name.startswith(f"{part}.")


def _objects(contents: SnapshotContents) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in contents.tensors))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

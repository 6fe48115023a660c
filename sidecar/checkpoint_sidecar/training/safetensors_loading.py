"""``load_safetensors``: begins training from weights that others published, each rank reading what it needs of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future
from torch.nn import Module

from checkpoint_sidecar.core.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    ObjectNotFoundError,
    TruncatedObjectError,
)
from checkpoint_sidecar.core.failures import INTERRUPTS, portable, raising_portable
from checkpoint_sidecar.core.warm_start import names_weights
from checkpoint_sidecar.engine.delivery import Assembly, Want
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.safetensors import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    MalformedHeaderError,
    TensorSpan,
    decode_header,
    header_length,
)
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.ranges import read_range
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.dcp.delivery import PIECE_BYTES
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.memory import as_buffer, is_plain, lies_in_order
from checkpoint_sidecar.training.dcp.slices import Slice
from checkpoint_sidecar.training.state import modules

_OPERATION = "load safetensors from"
_SUFFIX = ".safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class PublishedTensor:
    """A tensor in a safetensors file.

    Attributes:
        file: Name below the store's root.
        start: Where its bytes begin in the file.
    """

    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of all elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """The weights that were loaded.

    Attributes:
        tensors: Number of tensors.
        bytes: Their size in the files.
        seconds: Duration of the load.
        missing: With ``strict=False``, names that only the module has, which keep their values.
        unused: Names that only the files have; likewise.
    """

    tensors: int
    bytes: int
    seconds: float
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_safetensors(
    url: str | StoreSettings,
    into: Module | MutableMapping[str, Any],
    *,
    renamed: Callable[[str], str] = lambda name: name,
    strict: bool = True,
    filesystem: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LoadedWeights:
    """Load safetensors into a model, for example to begin a run from published weights.

    >>> if checkpointer.restore() is None:
    ...     load_safetensors("s3://models/llama-7b", into=model)

    The module may be plain or sharded in any way: each rank reads the ranges that its shards need. Collective if a
    process group exists: every rank calls it at the same point with the same arguments, and an error of one rank is
    raised on all. Values are converted to the dtype of the module. A weight that is tied to a loaded one need not be in
    the files.

    Args:
        url: A file ``*.safetensors``, an index of several, or a folder with either.
        into: A module; or tensors by name, which are filled in place.
        renamed: Returns the module's name for a name in the files.
        strict: Refuse if a name is on one side only.
        filesystem: See ``open_run``.
        storage_options: See ``open_run``.

    Raises:
        ConfigurationError: There are no such files, or two tensors get one name.
        IncompatibleSnapshotError: The tensors do not fit the module, which is unchanged.
        CorruptSnapshotError: A file is damaged.
        StoreError: The bucket cannot be read.
    """
    agreement = Agreement.among_all()
    try:
        settings = settings_from(url, filesystem=filesystem, storage_options=storage_options)
        return load_published(settings, into, agreement, renamed=renamed, strict=strict)
    finally:
        agreement.close()


def load_published(
    settings: StoreSettings,
    into: Module | MutableMapping[str, Any],
    agreement: Agreement,
    *,
    renamed: Callable[[str], str] = lambda name: name,
    strict: bool,
    progress: TransferMeter | None = None,
) -> LoadedWeights:
    """Load safetensors within a group of ranks. Arguments and errors as for ``load_safetensors``.

    Args:
        progress: Counts this rank's bytes.
    """
    began = time.monotonic()
    folder, only = _split(settings)
    store = open_store(folder)
    tensors = agreement.from_rank_0(lambda: published_tensors(store, only, renamed))
    failure: Exception | None = None
    try:
        with modules.sharded_state(into) if isinstance(into, Module) else nullcontext():
            state = modules.module_state(into) if isinstance(into, Module) else dict(into)
        missing, unused = _compared(state, tensors, _ties(into), settings.url, strict=strict)
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - raised below, on all ranks
        failure = portable(error, operation=_OPERATION, subject=settings.url)
    agreement.raise_any(failure)
    wanted = {name: state[name] for name in state if name in tensors}
    reader = PublishedReader(store, {name: tensors[name] for name in wanted}, progress)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with raising_ours(_OPERATION):
        load(wanted, storage_reader=reader, planner=planner, process_group=agreement.group)
    if isinstance(into, Module) and modules.is_flat(into):
        modules.put_module_state(into, wanted, strict=False)
    size = sum(each.bytes for name, each in tensors.items() if name in wanted)
    return LoadedWeights(len(wanted), size, time.monotonic() - began, missing, unused)


def _split(settings: StoreSettings) -> tuple[StoreSettings, str]:
    """Return the settings of the folder, and the name of the file or of the index if one was named."""
    if not names_weights(settings.url):
        return settings, ""
    folder, _, name = settings.url.rpartition("/")
    return replace(settings, url=folder), name


def published_tensors(store: Store, only: str, renamed: Callable[[str], str]) -> dict[str, PublishedTensor]:
    """Return the tensors of a folder by the module's names, from the headers of its files.

    Args:
        only: Name of one file or of an index; empty for all files.

    Raises:
        ConfigurationError, CorruptSnapshotError, StoreError: See ``load_safetensors``.
    """
    found: dict[str, PublishedTensor] = {}
    for file in [only] if only.endswith(_SUFFIX) else _files(store, only):
        for tensor, start in _read_header(store, file):
            name = renamed(tensor.name)
            if name in found:
                raise ConfigurationError(_OPERATION, store.url, f"two tensors get the name {name}", "Rename fewer.")
            found[name] = PublishedTensor(file, start, getattr(torch, tensor.dtype), tensor.shape)
    return found


def _files(store: Store, index: str) -> list[str]:
    try:
        data = store.get(index or _INDEX, max_bytes=MAX_HEADER_BYTES).data
    except ObjectNotFoundError:
        if index:
            raise ConfigurationError(
                _OPERATION, f"{store.url}/{index}", "it does not exist", "Check the URL."
            ) from None
        names = [info.key for info in store.list() if info.key.endswith(_SUFFIX) and "/" not in info.key]
        if not names:
            cause = f"there is neither a file *{_SUFFIX} nor an index"
            raise ConfigurationError(_OPERATION, store.url, cause, "Check the URL.") from None
        return names
    try:
        places = msgspec.json.decode(data, type=_Index).weight_map.values()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(store, _INDEX, f"it is not an index: {error}") from None
    if any("/" in name for name in places):
        raise _damaged(store, _INDEX, "it refers to another folder")
    return sorted(set(places))


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _read_header(store: Store, file: str) -> Iterator[tuple[TensorSpan, int]]:
    """Yield the tensors of a file, with the position of their bytes in it."""
    info = store.stat(file)
    if info is None:
        raise ConfigurationError(_OPERATION, f"{store.url}/{file}", "it does not exist", "Check the URL.")
    try:
        length = header_length(read_range(store, file, 0, min(LENGTH_BYTES, info.size)))
        begins = LENGTH_BYTES + length
        text = read_range(store, file, LENGTH_BYTES, length)
        tensors, _ = decode_header(text, data_bytes=info.size - begins)
    except (MalformedHeaderError, TruncatedObjectError) as error:
        cause = error.cause if isinstance(error, CheckpointError) else str(error)
        raise _damaged(store, file, cause) from None
    for tensor in tensors:
        yield tensor, begins + tensor.start


def _damaged(store: Store, file: str, cause: str) -> CorruptSnapshotError:
    return CorruptSnapshotError(
        _OPERATION, f"{store.url}/{file}", cause, "Publish it again.", evidence="ManifestMismatch"
    )


def _ties(into: Module | MutableMapping[str, Any]) -> list[tuple[str, ...]]:
    return modules.tied_names(into) if isinstance(into, Module) else []


def _compared(
    state: Mapping[str, Any],
    tensors: Mapping[str, PublishedTensor],
    ties: Sequence[tuple[str, ...]],
    url: str,
    *,
    strict: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that only one side has; refuse shapes that differ, and with ``strict`` such names."""
    wanted = {name: value for name, value in state.items() if isinstance(value, torch.Tensor) or _is_sharded(value)}
    loaded = {name for group in ties if any(each in tensors for each in group) for name in group}
    missing = tuple(sorted(wanted.keys() - tensors.keys() - loaded))
    unused = tuple(sorted(tensors.keys() - wanted.keys()))
    for name in wanted.keys() & tensors.keys():
        if (shape := tuple(wanted[name].size())) != tensors[name].shape:
            cause = f"{name} has the shape {list(tensors[name].shape)}, and {list(shape)} in the module"
            raise IncompatibleSnapshotError(_OPERATION, url, cause)
    if strict and (missing or unused):
        what = f"it lacks {missing[0]}" if missing else f"the module lacks {unused[0]}"
        more = len(missing) + len(unused) - 1
        raise IncompatibleSnapshotError(
            _OPERATION,
            url,
            what + (f", and {more} more names are on one side only" if more else ""),
            "Map names with renamed=, or load what fits with strict=False.",
        )
    return missing, unused


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "local_shards")


class PublishedReader(StorageReader):
    """DCP storage that reads safetensors files.

    Args:
        store: Opened at the folder.
        tensors: By the names under which they are loaded.
        progress: Counts this rank's bytes.
    """

    def __init__(
        self, store: Store, tensors: Mapping[str, PublishedTensor], progress: TransferMeter | None = None
    ) -> None:
        super().__init__()
        self._progress = progress
        self._store = store
        self._tensors = tensors
        self._settings = EngineSettings.from_environment()

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: this reader reads the files it was made for."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return metadata in which each tensor is one chunk."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(each.dtype),
                    torch.Size(each.shape),
                    [ChunkStorageMetadata(torch.Size([0] * len(each.shape)), torch.Size(each.shape))],
                )
                for name, each in self._tensors.items()
            },
            storage_meta=StorageMeta(),
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Do nothing: the headers were read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this rank's slices into their tensors."""
        done: Future[None] = Future()
        # DCP sends what is raised here to the other ranks; what cannot be sent would leave them waiting.
        with raising_portable(_OPERATION, self._store.url):
            targets = [(item, planner.resolve_tensor(item).detach()) for item in plan.items]
            wants = [want for item, target in targets for want in self._wants(item, target)]
            files = Files(self._store, "", None, settings=self._settings)
            if self._progress:
                self._progress.expect(sum(want.span.length for want in wants))
            files.read(wants, staging_bytes=self._settings.memory_bytes // 2, progress=self._progress)
            for item, target in targets:
                planner.commit_tensor(item, target)
        done.set_result(None)
        return done

    def _wants(self, item: ReadItem, target: torch.Tensor) -> Iterator[Want]:
        stored = self._tensors[item.storage_index.fqn]
        box = Slice(stored.shape, tuple(item.storage_offsets), tuple(item.lengths))
        if not box.count:
            return
        in_place = (
            box.contiguous
            and target.dtype == stored.dtype
            and target.device.type == "cpu"
            and is_plain(target)
            and lies_in_order(target)
        )
        if in_place:
            yield Want(stored.file, _span(stored, box), as_buffer(target))
            return
        for part in box.split(PIECE_BYTES // stored.dtype.itemsize):
            yield Want(stored.file, _span(stored, part), Assembly(partial(_copy, stored.dtype, box, part, target)))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Always False: DCP must not pick this reader by a path."""
        del checkpoint_id
        return False


def _span(stored: PublishedTensor, box: Slice) -> ByteRange:
    itemsize = stored.dtype.itemsize
    return ByteRange(stored.start + box.first * itemsize, box.extent * itemsize)


def _copy(dtype: torch.dtype, box: Slice, part: Slice, target: torch.Tensor, data: memoryview) -> None:
    for dimension, length in enumerate(part.lengths):
        target = target.narrow(dimension, part.offsets[dimension] - box.offsets[dimension], length)
    with torch.no_grad():
        target.copy_(torch.frombuffer(data, dtype=dtype).as_strided(part.lengths, part.strides))

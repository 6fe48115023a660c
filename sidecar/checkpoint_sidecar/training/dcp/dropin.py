"""Drop-in DCP storage: torch's ``FsspecWriter`` and ``FsspecReader``, atomic and verified.

Existing ``dcp.save``, ``dcp.load`` and ``dcp.async_save`` code keeps its arguments. The checkpoint directory becomes a
separate run, with a log inside (see ``attempt.directory_save``); torch's own reader can load it at any time.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar

from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from checkpoint_sidecar.attempt.directory_save import WRITER, DirectorySave
from checkpoint_sidecar.attempt.run_save import SaveTarget
from checkpoint_sidecar.core.errors import ConfigurationError, RestoreError, RestoreInterrupted
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.pointers import published_for
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.fsspec import listings, misdirected
from checkpoint_sidecar.store.fsspec.opening import can_serve, is_foreign
from checkpoint_sidecar.store.fsspec.storage_options import SCHEMES, settings_of
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.folders import UNMAPPED, MappedFolders
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]


class _OpenedByPath:
    """DCP storage whose ``checkpoint_id`` is the path of a checkpoint directory."""

    _store: Store
    _path: StrPath
    _filesystem: Any
    _options: dict[str, Any]
    _folders: MappedFolders

    @property
    def checkpoint_id(self) -> StrPath:
        return self._path

    def reset(self, checkpoint_id: StrPath | None = None) -> None:
        """Begin a save or load for DCP; open ``checkpoint_id`` with the storage options of the constructor."""
        if checkpoint_id:
            self._store = self._opened_at(checkpoint_id)
            self._path = checkpoint_id

    def _remember(self, path: StrPath, options: dict[str, Any], filesystem: Any) -> None:
        self._path = path
        self._options = options
        self._filesystem = filesystem
        # Kept by the object: a process that it is sent to, as async_save does, has not called install().
        self._folders = _mapped

    def _opened_at(self, path: StrPath) -> Store:
        return open_store(self._folders.settings_of(path) or settings_of(path, self._options, self._filesystem))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: StrPath) -> bool:
        """Return whether this package can open the path."""
        if is_foreign(os.fspath(checkpoint_id)) and can_serve(os.fspath(checkpoint_id)):
            return True  # without creating its filesystem, which may connect
        try:
            settings_of(checkpoint_id, {})
        except ConfigurationError:
            return False
        return True


class CheckpointWriter(_OpenedByPath, SnapshotWriter, BlockingAsyncStager):
    """Saves a checkpoint directory, all or nothing.

    Args:
        path: URL or local path of the checkpoint; ``dcp.save(checkpoint_id=...)`` replaces it.
        single_file_per_rank: Accepted for compatibility; there is always one file per rank.
        sync_files: Accepted for compatibility; a save is reported only after the store has confirmed it.
        thread_count: Accepted for compatibility; ``CHECKPOINT_CONNECTIONS`` limits requests.
        per_thread_copy_ahead: Accepted for compatibility; ``CHECKPOINT_MEMORY`` limits buffers.
        cache_staged_state_dict: See ``BlockingAsyncStager``.
        trust: Trust of later loads: a save refuses tensors that ``safe`` could not load, and warns of such objects.
        overwrite: Replace an existing checkpoint; the old one stays intact until the new one is committed and checked.
            False raises ``CheckpointExistsError`` inside DCP's ``CheckpointException``.
        filesystem: An fsspec filesystem that serves the path; it has to keep the promises in docs/storage.md.
        storage_options: fsspec's, see ``store.fsspec.storage_options``.

    Raises:
        ConfigurationError: The path or an option is invalid, or stock ``.distcp`` files without extensions do not
            support it.
    """

    default_trust: ClassVar[Trust] = "safe"

    def __init__(
        self,
        path: StrPath,
        single_file_per_rank: bool = True,
        sync_files: bool = True,
        thread_count: int = 1,
        per_thread_copy_ahead: int = 10_000_000,
        cache_staged_state_dict: bool = False,
        overwrite: bool = True,
        _extensions: Any = None,
        serialization_format: Any = None,
        *,
        trust: Trust | None = None,
        filesystem: Any = None,
        **storage_options: Any,
    ) -> None:
        del single_file_per_rank, sync_files, thread_count, per_thread_copy_ahead
        if _extensions or getattr(serialization_format, "value", "torch_save") != "torch_save":
            raise ConfigurationError(
                "save a checkpoint to",
                os.fspath(path),
                "stream extensions and the safetensors format are not supported",
                "Leave _extensions and serialization_format out.",
            )
        self._remember(path, storage_options, filesystem)
        SnapshotWriter.__init__(self, self._opened_at(path), None, trust=trust or self.default_trust)
        BlockingAsyncStager.__init__(self, cache_staged_state_dict=cache_staged_state_dict)
        self._overwrite = overwrite

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=os.fspath(self._path), save_id=self._save_id)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload this rank's items; see ``SnapshotWriter``."""
        done = super().write_data(plan, planner)
        listings.forget(self._store.url)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit; see ``SnapshotWriter``."""
        try:
            super().finish(metadata, results)
        finally:
            listings.forget(self._store.url)

    def _target_for(self, world_size: int) -> SaveTarget:
        return DirectorySave(self._store, overwrite=self._overwrite, world_size=world_size)


class CheckpointReader(_OpenedByPath, SnapshotReader):
    """Loads a checkpoint directory of this package, with verification, or one of torch's own, without.

    Args:
        path: URL or local path of the checkpoint; ``dcp.load(checkpoint_id=...)`` replaces it.
        verify: How far stored bytes are checked before they are used.
        trust: ``safe`` unpickles DCP's classes and what ``torch.load(weights_only=True)`` allows; ``full`` anything.
        filesystem: An fsspec filesystem that serves the path.
        storage_options: fsspec's, see ``store.fsspec.storage_options``.

    Raises:
        ConfigurationError: The path or an option cannot work.
    """

    default_trust: ClassVar[Trust] = "safe"

    def __init__(
        self,
        path: StrPath,
        _extension_registry: Any = None,
        *,
        verify: VerifyLevel = "Checksums",
        trust: Trust | None = None,
        filesystem: Any = None,
        **storage_options: Any,
    ) -> None:
        if _extension_registry is not None:
            raise ConfigurationError(
                "load a checkpoint from",
                os.fspath(path),
                "stream extensions are not supported",
                "Leave _extension_registry out.",
            )
        self._remember(path, storage_options, filesystem)
        super().__init__(self._opened_at(path), "", None, verify=verify, trust=trust or self.default_trust)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        plan = super().prepare_local_plan(plan)
        plan.storage_data = self._folder
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check that all ranks found the same snapshot. Each reads the log itself, and a save may end in between."""
        if len({plan.storage_data for plan in plans}) > 1:
            raise RestoreInterrupted(
                "load a checkpoint from",
                self._store.url,
                "a new checkpoint was committed while the ranks looked for the newest",
                "Load again.",
            )
        return super().prepare_global_plan(plans)

    def _locate(self) -> None:
        run = RunLog(self._store, writer=WRITER).refresh()
        snapshot = published_for(run, None)
        if snapshot is not None:
            self._open(snapshot.commit.path, read_manifest(self._store, snapshot.commit))
        elif run.ever_committed:
            raise RestoreError(
                "load a checkpoint from",
                self._store.url,
                "every checkpoint committed here was retired or proved damaged",
            )
        else:
            self._prefer_stock_checkpoint()
            self._open("", None)

    def _prefer_stock_checkpoint(self) -> None:
        """Read what torch wrote into a mapped folder before it was mapped, if the bucket has nothing for this path."""
        if self._folders.settings_of(self._path) is None or self._store.stat(METADATA_NAME) is not None:
            return
        if os.path.exists(os.path.join(self._path, METADATA_NAME)):
            logger.warning("%s holds no checkpoint: loading the one that torch wrote to %s", self._subject, self._path)
            self._store = open_store(settings_of(self._path, {}))


def install(
    *, trust: Trust = "safe", folders: Mapping[str | os.PathLike[str], str | StoreSettings] | None = None
) -> None:
    """Make DCP use these classes instead of ``FsspecWriter`` and ``FsspecReader`` in this process.

    Use it for code that only passes a URL as ``checkpoint_id``, like torchtitan. Torch's classes still handle local
    paths, URLs with other schemes (``hf://``, ``hdfs://``, ``memory://`` ...) and chained URLs. From then on, creating
    a folder or a file, or one of torch's readers and writers of local files, raises an error for a URL that a program
    mistook for a local path.

    Args:
        trust: Trust of every load, which also limits the contents of a save; see ``SnapshotReader``.
        folders: URLs, or settings with an endpoint and credentials, by absolute local folder, for trainers that insist
            on one: what DCP saves to and loads from ``<folder>/<path>`` is the checkpoint ``<url>/<path>``. A
            checkpoint that torch wrote to the folder earlier is loaded while the URL has none for its path. The last
            call decides.

    Raises:
        ConfigurationError: A folder or its URL cannot be mapped; see ``MappedFolders.of``.
    """
    global _mapped  # noqa: PLW0603 - as global as the classes that are replaced
    _mapped = MappedFolders.of(folders or {})
    for module in _patched_modules():
        writer, reader = _replaced.setdefault(module, (module.FsspecWriter, module.FsspecReader))
        ours = (
            _in_place_of(writer, CheckpointWriter, default_trust=trust),
            _in_place_of(reader, CheckpointReader, default_trust=trust),
        )
        module.FsspecWriter, module.FsspecReader = ours  # type: ignore[attr-defined]
    local: Any
    for local, counterpart in zip((FileSystemWriter, FileSystemReader), ours, strict=True):
        stock = _guarded.setdefault(local, (local.__init__, local.reset))
        local.__init__, local.reset = map(_checking, stock)
        _in_mapped_folders[local] = counterpart
        local.__new__ = _new
    misdirected.refuse()


def uninstall() -> None:
    """Undo ``install``; harmless without it."""
    global _mapped  # noqa: PLW0603
    _mapped = UNMAPPED
    while _replaced:
        module, (writer, reader) = _replaced.popitem()
        module.FsspecWriter, module.FsspecReader = writer, reader  # type: ignore[attr-defined]
    while _guarded:
        local, (init, reset) = _guarded.popitem()
        local.__init__, local.reset = init, reset  # type: ignore[misc, attr-defined]
    _in_mapped_folders.clear()  # __new__ stays: a class whose __new__ was removed can no longer be constructed
    misdirected.allow()


@contextmanager
def installed(
    *, trust: Trust = "safe", folders: Mapping[str | os.PathLike[str], str | StoreSettings] | None = None
) -> Iterator[None]:
    """Apply ``install`` inside a block."""
    install(trust=trust, folders=folders)
    try:
        yield
    finally:
        uninstall()


_mapped = UNMAPPED
_replaced: dict[ModuleType, tuple[type, type]] = {}
_guarded: dict[type, tuple[Any, Any]] = {}
_in_mapped_folders: dict[type, type] = {}
"""The class that takes the place of one of torch's."""


def _in_place_of(stock: Any, ours: Any, **attributes: Any) -> type:
    """Return a class that behaves as ours for URLs that we serve, and creates a stock instance for all others."""

    def new(cls: type, path: StrPath, *args: Any, **options: Any) -> Any:
        return object.__new__(cls) if cls is not made or _is_ours(path) else stock(path, *args, **options)

    def validate_checkpoint_id(cls: type, checkpoint_id: StrPath) -> bool:
        del cls
        # A URL that only we could serve is ours even if we refuse it: the error says why.
        return bool(_is_ours(checkpoint_id) or stock.validate_checkpoint_id(checkpoint_id))

    def reduce(self: Any, protocol: Any) -> Any:
        # Pickles as our class: the class made here cannot be imported by name, for example in a process that saves.
        del protocol
        return object.__new__, (ours,), self.__dict__

    members = {"__new__": new, "validate_checkpoint_id": classmethod(validate_checkpoint_id), "__reduce_ex__": reduce}
    made = type(ours.__name__, (ours,), members | attributes)
    return made


def _is_ours(path: StrPath) -> bool:
    text = os.fspath(path)
    scheme, separator, _ = text.partition("://")
    return "::" not in text and (not separator or scheme in SCHEMES)


def _new(cls: type, path: StrPath | None = None, *args: Any, **options: Any) -> Any:
    """Construct one of torch's classes for local files, or ours in a mapped folder.

    Replaced in the class itself, and not by name in modules, because trainers have imported it before ``install``.
    """
    ours = _in_mapped_folders.get(cls)
    if ours is not None and path is not None and _mapped.settings_of(path) is not None:
        return ours(path, *args, **options)
    return object.__new__(cls)


def _checking(method: Any) -> Any:
    """Return a constructor or ``reset`` of one of torch's classes for local files that refuses paths not meant for it.

    These are former URLs, and mapped folders: subclasses have behavior that ours lack. Subclasses inherit the check.
    """

    @functools.wraps(method)
    def checked(self: Any, path: StrPath | None = None, *args: Any, **options: Any) -> None:
        if path is not None and not isinstance(self, tuple(kind for kinds in _replaced.values() for kind in kinds)):
            misdirected.check(path, "open a checkpoint")
            if _mapped.settings_of(path) is not None:
                raise _not_mapped(self, path)
        method(self, path, *args, **options)

    return checked


def _not_mapped(storage: Any, path: StrPath) -> ConfigurationError:
    return ConfigurationError(
        "open a checkpoint",
        os.fspath(path),
        f"install() maps this folder to a store, to which {type(storage).__name__} cannot write or read here",
        "Create a FileSystemWriter or FileSystemReader for this path, or use a folder that is not mapped.",
    )


def _patched_modules() -> list[ModuleType]:
    """Return every module from which DCP, or its caller, may import the two names.

    torch 2.15 moved them to ``fsspec_filesystem`` and warns on import of the old module. Earlier versions have only
    ``_fsspec_filesystem``, which is looked up when a save starts.
    """
    package = "torch.distributed.checkpoint"
    home = "fsspec_filesystem" if find_spec(f"{package}.fsspec_filesystem") else "_fsspec_filesystem"
    names = (package, f"{package}._storage_utils", f"{package}.{home}")
    modules = [import_module(name) for name in names]
    old = sys.modules.get(f"{package}._fsspec_filesystem")
    return [module for module in {*modules, *([old] if old else [])} if "FsspecWriter" in vars(module)]

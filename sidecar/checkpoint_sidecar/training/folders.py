"""A trainer's folder in a run: what all ranks agree on before its files are saved or restored.

Ranks find out which of them share a folder by files with unpredictable names. The first rank of each folder lists and
stages it, and every rank computes the same plan from all listings. See ``core.folder_plan``.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

from checkpoint_sidecar.attempt.session import Candidate
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.folder_index import FolderIndex, IndexEntry, differing_paths, encode, entries_for
from checkpoint_sidecar.core.folder_plan import FolderPlan, plan_folder, to_compare, with_digests
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.folders.placing import IncomingFolder, set_aside, shared_out
from checkpoint_sidecar.engine.folders.sending import CopySource, FolderShare
from checkpoint_sidecar.engine.folders.staging import StagedFolder, StagedReader, stage
from checkpoint_sidecar.engine.folders.tree import Fingerprint, TrainerFolder, remove, write_record
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.verify import check_sizes
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.agreement import Agreement

T = TypeVar("T")

logger = logging.getLogger(__name__)

_HASHING_THREADS = 4


@dataclass(frozen=True, slots=True)
class FolderSave:
    """A folder on its way into a snapshot, on one rank.

    Attributes:
        staged: The files, on the rank that listed the folder; else None.
    """

    staged: StagedFolder | None
    share: FolderShare | None = None
    plan: FolderPlan | None = None


class RunFolder:
    """The folder of this rank. Methods marked collective are called by all ranks at the same point.

    Attributes:
        rank: This process's.
        paths: What the next save takes: files and folders below the folder; None for everything.
    """

    def __init__(self, folder: TrainerFolder) -> None:
        self.folder = folder
        self.paths: Sequence[str] | None = None
        self.rank = 0
        self._folders: list[list[int]] = [[0]]
        self._stored: dict[str, tuple[Fingerprint, IndexEntry]] = {}
        self._previous: FolderIndex | None = None
        self._source: CopySource | None = None
        self._no_copies = threading.Event()

    @property
    def ranks(self) -> list[int]:
        """The ranks that share this rank's folder."""
        return next(ranks for ranks in self._folders if self.rank in ranks)

    @property
    def leads(self) -> bool:
        """Whether this rank lists, stages and places the files of its folder."""
        return self.ranks[0] == self.rank

    @property
    def folders(self) -> list[list[int]]:
        """The ranks of every folder."""
        return self._folders

    def open(self, agreement: Agreement) -> None:
        """Create the folder, and find out which ranks share it. Collective.

        Raises:
            ConfigurationError: A rank cannot write into its folder.
        """
        self.rank = agreement.rank
        together(agreement, self.folder.open)
        name = f"probe-{agreement.rank}-{uuid.uuid4().hex}"
        probe = self.folder.work / name
        together(agreement, probe.touch)
        # By their names: a listing may come from a cache of a network filesystem.
        visible = [os.path.lexists(self.folder.work / each) for each in agreement.gather(name)]
        firsts = [seen.index(True) for seen in agreement.gather(visible)]
        self._folders = [[rank for rank, each in enumerate(firsts) if each == first] for first in sorted(set(firsts))]
        with suppress(OSError):
            probe.unlink()
        if self.leads:
            self.folder.clean()

    # Saving

    def stage(self) -> FolderSave:
        """Keep the files as they are now.

        Raises:
            ConfigurationError, StateCopyError: See ``engine.folders.staging``.
        """
        return FolderSave(stage(self.folder, self.paths, self._stored) if self.leads else None)

    def share_out(
        self, save: FolderSave, agreement: Agreement, may_copy: Callable[[str], bool], progress: TransferMeter
    ) -> FolderSave:
        """Decide which rank stores which files. Collective.

        Args:
            may_copy: Tells rank 0 whether objects of the snapshot with this path may be copied.
            progress: Counts the bytes that are compared with those of other folders; may cancel.

        Raises:
            StateCopyError: A file cannot be read, or changed.
            ConfigurationError: There are too many files.
        """
        path = self._source.path if self._source else ""
        copyable = agreement.from_rank_0(lambda: path if path and may_copy(path) else "")
        previous = self._previous if copyable and copyable == path else None
        shared = [
            agreement.from_rank(ranks[0], save.staged.shared() if save.staged else None) for ranks in self._folders
        ]
        staged = [each for each in shared if each is not None]
        own = save.staged or staged[self._folders.index(self.ranks)]
        reader = StagedReader(self.folder.work / own.name, self.folder.root, own)
        listings = [each.listing for each in staged]
        compared = to_compare(listings)
        if any(compared):
            mine = compared[self._folders.index(self.ranks)] if self.leads else set()
            digests = dict(together(agreement, lambda: _digests(reader, sorted(mine), progress)))
            for number, ranks in enumerate(self._folders):
                listings[number] = with_digests(listings[number], agreement.from_rank(ranks[0], digests))
        plan = plan_folder(listings, self._folders, previous)
        index = together(agreement, lambda: _encoded(plan, self.folder) if agreement.leads else b"")
        source = self._copy_source(plan, agreement) if previous else None
        objects = [each for each in plan.objects if each.rank == agreement.rank]
        return replace(save, share=FolderShare(objects, reader, plan.size, index, source, self._no_copies), plan=plan)

    def _copy_source(self, plan: FolderPlan, agreement: Agreement) -> CopySource | None:
        wanted = {each.copied_from for each in plan.objects if each.copied_from}
        if not wanted:
            return None
        source = self._source
        files = agreement.from_rank_0(
            lambda: {name: file for name, file in source.files.items() if name in wanted} if source else {}
        )
        return replace(source, files=files) if source else None

    def committed(self, save: FolderSave, path: str, manifest: Manifest | None) -> None:
        """Note that a snapshot has the files, so that unchanged ones are not sent again.

        Args:
            path: The snapshot's folder.
            manifest: The snapshot's, on rank 0.
        """
        if save.plan is None or save.share is None:
            return
        fingerprints = save.staged.fingerprints if save.staged else {}
        self._note(path, save.plan.index, manifest, save.plan.index.entries, fingerprints)

    def release(self, save: FolderSave) -> None:
        """Forget the files of a save that has ended."""
        if save.staged is not None:
            remove(self.folder.work / save.staged.name)

    # Restoring

    def restored(
        self, candidate: Candidate, entries: Sequence[IndexEntry], fingerprints: dict[str, Fingerprint]
    ) -> None:
        """Note that the folder has the files of a snapshot."""
        if candidate.index is not None:
            self._note(candidate.path, candidate.index, candidate.manifest, entries, fingerprints)

    def begin(self, agreement: Agreement, *, anew: Callable[[], bool]) -> None:
        """Prepare the folder for a start without a snapshot. Collective.

        What is in the folder is set aside if a fresh start was asked for. If nothing was ever committed it stays: the
        trainer may begin with files that were put there.

        Args:
            anew: Tells rank 0 whether something was ever committed.
        """
        if agreement.from_rank_0(anew):
            together(agreement, lambda: set_aside(self.folder) if self.leads else None)

    def _note(
        self,
        path: str,
        index: FolderIndex,
        manifest: Manifest | None,
        entries: Sequence[IndexEntry],
        fingerprints: dict[str, Fingerprint],
    ) -> None:
        self._previous = index
        files = {file.name: file for file in manifest.files} if manifest else {}
        self._source = CopySource(path, manifest.block_bytes if manifest else 0, files)
        mine = self._folders.index(self.ranks)
        # Of a restore that merged folders, the same path may stand for other contents.
        own = {entry.path: entry for entry in entries if entry.kind == "File"}
        if entries is index.entries:
            own = {entry.path: entry for entry in entries if entry.kind == "File" and mine in entry.folders}
        self._stored = {path: (each, own[path]) for path, each in fingerprints.items() if path in own}
        if self.leads:
            write_record(self.folder, fingerprints)


class FolderLoading:
    """Restores the files of one candidate, in phases that all ranks begin together."""

    def __init__(
        self,
        run_folder: RunFolder,
        candidate: Candidate,
        index: FolderIndex,
        store: Store,
        progress: TransferMeter,
        compared: ComparedBytes,
    ) -> None:
        self._run_folder = run_folder
        self._candidate = candidate
        self._store = store
        self._progress = progress
        self._compared = compared
        ranks = run_folder.ranks
        self._entries = entries_for(index, ranks, folders=run_folder.folders)
        self._index = index
        self._differing = differing_paths(index)
        self._share = shared_out(self._entries, ranks)[run_folder.rank]
        self._incoming = IncomingFolder(run_folder.folder, f"incoming-{candidate.snapshot}", self._entries)

    def prepare(self) -> None:
        """Make room for the files."""
        folders = sorted(map(sorted, self._run_folder.folders))
        if self._differing and self._run_folder.rank == 0 and folders != sorted(map(sorted, self._index.folders)):
            logger.warning(
                "the ranks share other folders than when they saved; of files that differed, each folder gets those of "
                "its lowest rank: %s",
                ", ".join(self._differing[:4]) + (", …" if len(self._differing) > 4 else ""),
            )
        if self._run_folder.leads:
            self._incoming.prepare()

    def read(self) -> None:
        """Read this rank's share into the work folder."""
        candidate = self._candidate
        wants = self._incoming.wants(self._share)
        names = {want.name for want in wants}
        self._progress.expect(sum(want.span.length for want in wants))
        check_sizes(
            self._store,
            candidate.path,
            [file for file in candidate.manifest.files if file.name in names],
            level=candidate.verify,
        )
        verified = candidate.verify == "Checksums"
        contents = Files(
            self._store,
            candidate.path,
            candidate.manifest,
            settings=EngineSettings.from_environment(),
            compared=self._compared if verified else None,
            compare=verified,
        )
        if wants:
            contents.read(wants, progress=self._progress)

    def place(self) -> None:
        """Move the files into place."""
        fingerprints = self._incoming.finish() if self._run_folder.leads else {}
        self._run_folder.restored(self._candidate, self._entries, fingerprints)

    def discard(self) -> None:
        """Remove what was read, after a failure."""
        self._incoming.discard()


def together(agreement: Agreement, operation: Callable[[], T]) -> T:
    """Run a function on every rank; an error of one is raised on all."""
    failure: Exception | None = None
    result: T | None = None
    try:
        result = operation()
    except INTERRUPTS:
        raise
    except BaseException as error:  # noqa: BLE001 - raised below, on all ranks
        failure = portable(error, operation="use the folder on", subject=f"rank {agreement.rank}")
    agreement.raise_any(failure)
    return cast("T", result)


def _digests(reader: StagedReader, paths: Sequence[str], progress: TransferMeter) -> list[tuple[str, bytes]]:
    with ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="hash") as pool:
        return list(zip(paths, pool.map(partial(reader.digest, meter=progress), paths), strict=True))


def _encoded(plan: FolderPlan, folder: TrainerFolder) -> bytes:
    try:
        return encode(plan.index)
    except ValueError as error:
        raise ConfigurationError(
            "save the files in",
            str(folder.root),
            str(error),
            "Exclude what is not needed, or pack many files into one.",
        ) from error

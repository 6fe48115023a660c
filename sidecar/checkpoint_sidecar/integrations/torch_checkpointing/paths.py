"""The paths by which torch_checkpointing names checkpoints and their files."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from checkpoint_sidecar.core import folder_index

_NAME = re.compile(r"(?P<prefix>.*?)step-(?P<step>0|[1-9][0-9]{0,18})")


@dataclass(frozen=True)
class CheckpointPath:
    """The path of a checkpoint, or of something in one.

    Attributes:
        pending: Whether the checkpoint is not committed: its name has a prefix, as in ``tmp_step-7``.
        inside: Path relative to the checkpoint, empty for the checkpoint itself.
    """

    step: int
    pending: bool
    inside: str

    def among(self, names: Collection[str]) -> bool:
        """Return whether it is one of the files of the checkpoint, or a folder of some."""
        return self.inside in names or bool(self.below(names))

    def below(self, names: Collection[str]) -> list[str]:
        """Return the names right below it, by the paths of all files of the checkpoint."""
        prefix = f"{self.inside}/" if self.inside else ""
        return sorted({name.removeprefix(prefix).partition("/")[0] for name in names if name.startswith(prefix)})


@dataclass(frozen=True)
class CheckpointPaths:
    """The paths below a root folder, in which torch_checkpointing sees the checkpoints. It exists nowhere else."""

    root: Path

    def parse(self, path: Path) -> CheckpointPath | None:
        """Return what a path names; None for the root.

        Raises:
            OSError: It is not below the root, or the name of a checkpoint is not ``step-<N>``.
        """
        if not path.is_relative_to(self.root):
            raise OSError(errno.EXDEV, f"only paths below {self.root} are in the run", str(path))
        if path == self.root:
            return None
        first, *rest = path.relative_to(self.root).parts
        match = _NAME.fullmatch(first)
        if match is None:
            raise _not_a_checkpoint(path)
        return CheckpointPath(int(match["step"]), bool(match["prefix"]), "/".join(rest))

    def inside(self, path: Path) -> CheckpointPath:
        """Return what a path names, which must not be the root. Raises ``OSError`` like ``parse``."""
        place = self.parse(path)
        if place is None:
            raise _not_a_checkpoint(path)
        return place

    def pending(self, path: Path) -> CheckpointPath:
        """Return what the path of a file names that is to be written or deleted.

        Raises:
            OSError: See ``parse``; the checkpoint is committed, or the file would not be inside of it.
        """
        place = self.inside(path)
        problem = folder_index.check_path(place.inside)
        if problem or not place.pending:
            cause = problem or "write_to_temp_dir must stay on, because the rename is the commit"
            raise OSError(errno.EINVAL, cause, str(path))
        return place

    def renamed(self, source: Path, target: Path) -> int:
        """Return the step of the checkpoint that a rename commits. Raises ``OSError`` if it is another rename."""
        old, new = self.inside(source), self.inside(target)
        if old.inside or new.inside or not old.pending or new.pending or old.step != new.step:
            raise OSError(errno.EXDEV, "only the folder of a checkpoint can be renamed, which commits it", str(source))
        return new.step


def _not_a_checkpoint(path: Path) -> OSError:
    return OSError(errno.EINVAL, "the name of a checkpoint must be step-<N>", str(path))

"""The paths by which torch_checkpointing names checkpoints and their files."""

from __future__ import annotations

import errno
import re
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


def parse(path: Path, root: Path) -> CheckpointPath | None:
    """Return what a path names; None for the root.

    Raises:
        OSError: It is not below the root, or the name of a checkpoint is not ``step-<N>``.
    """
    if not path.is_relative_to(root):
        raise OSError(errno.EXDEV, f"only paths below {root} are in the run", str(path))
    if path == root:
        return None
    first, *rest = path.relative_to(root).parts
    match = _NAME.fullmatch(first)
    if match is None:
        raise OSError(errno.EINVAL, "the name of a checkpoint must be step-<N>", str(path))
    return CheckpointPath(int(match["step"]), bool(match["prefix"]), "/".join(rest))


def parse_below(path: Path, root: Path) -> CheckpointPath:
    """Return what a path names, which must not be the root. Raises ``OSError`` like ``parse``."""
    place = parse(path, root)
    if place is None:
        raise OSError(errno.EINVAL, "the name of a checkpoint must be step-<N>", str(path))
    return place


def parse_pending(path: Path, root: Path) -> CheckpointPath:
    """Return what the path of a file names that is to be written or deleted.

    Raises:
        OSError: See ``parse``; the checkpoint is committed, or the file would not be inside of it.
    """
    place = parse_below(path, root)
    problem = folder_index.check_path(place.inside)
    if problem or not place.pending:
        cause = problem or "write_to_temp_dir must stay on, because the rename is the commit"
        raise OSError(errno.EINVAL, cause, str(path))
    return place


def parse_rename(source: Path, target: Path, root: Path) -> int:
    """Return the step of the checkpoint that a rename commits. Raises ``OSError`` if it is another rename."""
    old, new = parse_below(source, root), parse_below(target, root)
    if old.inside or new.inside or not old.pending or new.pending or old.step != new.step:
        raise OSError(errno.EXDEV, "only the folder of a checkpoint can be renamed, which commits it", str(source))
    return new.step


def names_below(names: list[str], folder: str) -> list[str]:
    """Return the paths below a folder, relative to it."""
    return [name[len(folder) + 1 if folder else 0 :] for name in names if not folder or name.startswith(f"{folder}/")]

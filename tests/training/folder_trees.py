"""Folders as a trainer leaves them, and what is in them."""

from __future__ import annotations

import os
from pathlib import Path

WORK = ".checkpoint-operator"


def tree(folder: Path) -> dict[str, bytes | str | int]:
    """Everything below a folder: bytes and mode of files, targets of links, and empty folders."""
    found: dict[str, bytes | str | int] = {}
    for place, folders, files in os.walk(folder):
        if WORK in folders:
            folders.remove(WORK)
        path = Path(place)
        for name in [*files, *folders]:
            each = path / name
            key = str(each.relative_to(folder))
            if each.is_symlink():
                found[key] = os.readlink(each)
            elif each.is_file():
                found[key] = each.read_bytes()
                found[f"{key} mode"] = each.stat().st_mode & 0o777
            elif not any(each.iterdir()):
                found[key] = "an empty folder"
    return found


def staged(folder: Path) -> list[str]:
    """What killed or running saves and restores have in the work folder."""
    return sorted(each.name for each in (folder / WORK).iterdir() if each.name.startswith(("staged-", "incoming-")))


def write(folder: Path, step: int, *, size: int = 300_000) -> None:
    """Write a checkpoint with everything that filesystems have."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "weights.bin").write_bytes(bytes([step % 256]) * size)
    (place / "état, 100% of #1?.json").write_text(f'{{"step": {step}}}')
    (place / ".hidden").write_text("dots are names too")
    (place / "nothing").touch()
    (place / "run.sh").write_text("#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    (place / "empty" / "folder").mkdir(parents=True)
    (place / "relative").symlink_to("empty/../weights.bin")
    (folder / "latest").write_text(f"checkpoint-{step}")

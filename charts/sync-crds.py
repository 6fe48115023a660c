#!/usr/bin/env python3
"""Copy crds/ into the chart, which may not read outside its own folder. With --check, only say whether it is done."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

CHARTS = Path(__file__).resolve().parent
SOURCE = CHARTS.parent / "crds"
COPY = CHARTS / "checkpoint-operator" / "files" / "crds"


def stale() -> list[Path]:
    """Files of the copy that are missing, different or without a source."""
    wanted = {path.name for path in SOURCE.glob("*.yaml")}
    found = {path.name for path in COPY.glob("*")}
    different = {name for name in wanted & found if (SOURCE / name).read_bytes() != (COPY / name).read_bytes()}
    return [COPY / name for name in sorted((wanted ^ found) | different)]


def sync() -> None:
    COPY.mkdir(parents=True, exist_ok=True)
    for copy in stale():
        source = SOURCE / copy.name
        if source.exists():
            copy.write_bytes(source.read_bytes())
        else:
            copy.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the copy is stale")
    if parser.parse_args().check:
        for path in stale():
            print(f"{path.relative_to(CHARTS.parent)} is stale: run charts/sync-crds.py", file=sys.stderr)
        return 1 if stale() else 0
    sync()
    return 0


if __name__ == "__main__":
    sys.exit(main())

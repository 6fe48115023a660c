"""Make the files of a release from a clean checkout; see docs/releasing.md."""

from __future__ import annotations

import argparse
import sys
import time
from email.utils import parseaddr
from pathlib import Path

from release import build, facts

ROOT = Path(__file__).parents[2]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="release", description=__doc__)
    made.add_argument("--out", type=Path, default=ROOT / "build" / "dist", help="folder for the files")
    made.add_argument("--registry", default="ghcr.io/example", help="where image and chart will be pushed")
    made.add_argument("--homepage", default="https://github.com/example/checkpoint-operator", help="repository's page")
    made.add_argument("--maintainer", default="", help="'Name <address>', shown by Artifact Hub")
    made.add_argument("--builder", default="urn:builder:local", help="URI of what runs this, for the provenance")
    made.add_argument("--quick", action="store_true", help="only what takes seconds: no image, one platform")
    made.add_argument("--dirty", action="store_true", help="accept changes that are not committed, for a trial")
    return made


def publisher(options: argparse.Namespace) -> facts.Publisher:
    """Raises `ReleaseError` for what registries would refuse later."""
    registry = options.registry.rstrip("/").lower()
    name, address = parseaddr(options.maintainer)
    if options.maintainer and not (name and "@" in address):
        raise facts.ReleaseError(f"read --maintainer {options.maintainer}: not of the form 'Name <address>'. Add both.")
    maintainer = facts.Maintainer(name, address) if options.maintainer else None
    homepage = options.homepage.rstrip("/")
    return facts.Publisher(registry, homepage, options.builder, maintainer)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - started:3.0f} s] {line}", flush=True)

    try:
        release = facts.gather(ROOT, publisher(options), dirty=options.dirty)
        made = build.build(ROOT, release, options.out, quick=options.quick, report=report)
    except facts.ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(f"{len(made.files)} files of version {release.semantic} in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

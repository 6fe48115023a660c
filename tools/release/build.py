"""Makes all files of a release and writes them to a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from release import artifacthub, chart, debian, distributions, facts, image, krew, library, provenance, sbom
from release.facts import Release
from release.packing import BuiltImage
from release.python_packages import LockedWheel

CHECKSUMS = "SHA256SUMS"

Report = Callable[[str], None]


@dataclass
class Made:
    """What has been made so far."""

    files: dict[str, bytes] = field(default_factory=dict)
    pushed: dict[str, str] = field(default_factory=dict)
    """Digests of what goes to a registry, by repository."""
    wheels: set[LockedWheel] = field(default_factory=set)
    packages: list[debian.Package] = field(default_factory=list)


def build(root: Path, release: Release, out: Path, *, quick: bool, report: Report = print) -> Made:
    """Make the release of the checkout `root`. `out` is written at the end. Raises `ReleaseError`.

    With `quick`, it lacks what takes minutes: the images, and the plugin for all platforms but the first.
    """
    made = Made()
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder, "sources")
        facts.stage(root, sources, release.epoch)
        report("wheel and source distribution")
        made.files |= distributions.build(sources, release)
        wheel = next(content for name, content in made.files.items() if name.endswith(".whl"))
        made.files[f"checkpoint-operator-{release.semantic}.cdx.json"] = sbom.of_the_wheel(sources, release)
        if not quick:
            report("image")
            _add_image(made, "image", release.image, image.build(sources, wheel, release, report), release)
            report("image of the library")
            _add_image(made, "library", release.library, library.build(sources, wheel, release), release)
        report("chart")
        _add_chart(made, sources, release)
        report("plugin for kubectl")
        _add_plugin(made, sources, wheel, release, krew.PLATFORMS[: 1 if quick else None])
        made.files["artifacthub-repo.yml"] = artifacthub.repository(release.publisher).encode()
        made.files["digests.txt"] = provenance.digests(made.pushed).encode()
        wheels = sorted(made.wheels, key=lambda one: one.filename)
        statement = provenance.statement(made.files, made.pushed, sources, wheels, made.packages, release)
        made.files["provenance.intoto.json"] = statement.encode()
    made.files[CHECKSUMS] = provenance.checksums(made.files).encode()
    write(made.files, out)
    return made


def _add_image(made: Made, kind: str, repository: str, built: BuiltImage, release: Release) -> None:
    name = f"checkpoint-operator-{release.semantic}-{kind}"
    made.files[f"{name}.oci.tar"] = built.archive
    made.files[f"{name}.cdx.json"] = sbom.of_packages(name, built.wheels, release, built.packages)
    made.pushed[repository] = built.digest
    made.wheels.update(built.wheels)
    made.packages += built.packages


def _add_chart(made: Made, sources: Path, release: Release) -> None:
    metadata, content = chart.package(sources, release, image.PLATFORMS)
    digest, archive = chart.layout(metadata, content, release)
    # Not named like the source distribution of Python, which differs in its ending only.
    made.files[f"checkpoint-operator-chart-{release.semantic}.tgz"] = content
    made.files[f"checkpoint-operator-chart-{release.semantic}.oci.tar"] = archive
    made.pushed[release.chart] = digest


def _add_plugin(made: Made, sources: Path, wheel: bytes, release: Release, platforms: Sequence[krew.Platform]) -> None:
    plugin = krew.build(sources, wheel, release, platforms)
    made.files |= plugin.archives
    made.files["ckpt.yaml"] = krew.manifest(plugin, release).encode()
    name = f"kubectl-ckpt-{release.semantic}"
    made.files[f"{name}.cdx.json"] = sbom.of_packages(name, plugin.wheels, release)
    made.wheels.update(plugin.wheels)


def write(files: dict[str, bytes], out: Path) -> None:
    """Replace what an earlier build left in `out`; nothing else is touched there."""
    out.mkdir(parents=True, exist_ok=True)
    former = out / CHECKSUMS
    if former.exists():
        for line in former.read_text().splitlines():
            (out / line.partition("  ")[2]).unlink(missing_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)

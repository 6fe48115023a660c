"""Why this machine cannot run a part of the cluster, in words for people.

Standard library only: a bootstrap runs `python -m localcluster.requirements` before the virtual environment exists;
it prints the system packages that are missing (by their Debian names), one per line.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from localcluster import build, versions

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where runc, unshare and mount may live; an ordinary PATH lacks it."""

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))

PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}
"""Programs that a node needs, and the packages that hold them."""

IMAGE_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
"""Programs that build an image (see `imagebuild`), and the packages that hold them."""


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")


def cni_folder() -> Path | None:
    """Where the network plug-ins are."""
    return next((folder for folder in CNI_FOLDERS if (folder / "loopback").exists()), None)


def binary(name: str) -> Path | None:
    """The program `name` of the control plane or a node: from KUBEBUILDER_ASSETS when that is set, else as built."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in versions.CONTROL_PLANE:
        given = Path(assets, name)
        return given if given.exists() else None
    return build.built(name)


def missing_packages() -> list[str]:
    """The system packages that nodes need and this machine lacks."""
    packages = {package for program, package in PROGRAMS.items() if find_program(program) is None}
    if cni_folder() is None:
        packages.add("containernetworking-plugins")
    return sorted(packages)


def missing_image_packages() -> list[str]:
    """The system packages that building images needs and this machine lacks."""
    return sorted(package for program, package in IMAGE_PROGRAMS.items() if find_program(program) is None)


def image_problem() -> str | None:
    """Why no image can be built here, or None."""
    if problem := _platform_problem():
        return problem
    if os.geteuid() != 0:
        return "building images needs root; run as root, in a virtual machine if in doubt"
    if find_program("apt-get") is None:
        return "images are built upon Debian or a relative of it; this is neither"
    return _packages_problem(missing_image_packages())


def control_plane_problem() -> str | None:
    """Why etcd and kube-apiserver cannot run here, or None. They need Linux, but neither root nor containerd."""
    return _platform_problem() or _binaries_problem(versions.CONTROL_PLANE)


def cluster_problem(*, built: bool = True) -> str | None:
    """Why nodes cannot run here, or None. With `built` false, binaries may still be missing if they can be built."""
    problem = _platform_problem() or _root_problem() or _packages_problem(missing_packages())
    if problem or built:
        return problem or _binaries_problem(versions.CLUSTER)
    return build.toolchain_problem() if _missing(versions.CLUSTER) else None


def _platform_problem() -> str | None:
    return None if sys.platform == "linux" else f"Kubernetes runs on Linux only; this is {sys.platform}"


def _root_problem() -> str | None:
    if os.geteuid() == 0:
        return None
    return "nodes need root (namespaces, mounts, control groups); run as root, in a virtual machine if in doubt"


def _packages_problem(packages: list[str]) -> str | None:
    return (
        f"missing system packages: `apt-get install --no-install-recommends {' '.join(packages)}`" if packages else None
    )


def _missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if binary(name) is None]


def _binaries_problem(names: Iterable[str]) -> str | None:
    missing = _missing(names)
    if not missing:
        return None
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and set(missing) & set(versions.CONTROL_PLANE):
        return f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(missing)}: unset it or point it at a complete folder"
    remedy = build.toolchain_problem() or "run `python -m localcluster.build` (once per machine, several minutes)"
    return f"{', '.join(missing)} not built yet: {remedy}"


if __name__ == "__main__":
    packages = [*missing_packages(), *missing_image_packages()]
    print(*packages, sep="\n", end="\n" if packages else "")

"""Stands for the library in pods that get it from an image, and becomes it when it is imported.

Python searches the folders of `PYTHONPATH` before the packages of the image, so this package is found first. It only
decides: a library that the image has is used as it is. Otherwise the injected one is, and its folders come last on
`sys.path`, so that packages of the image win. Packages that are too old for the library are refused instead.

It may be imported by a Python that the library does not support; nothing here needs more than Python 3.8.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import os
import re
import sys

OPERATOR = "checkpoint-operator"
ADVICE = "or install checkpoint-operator[torch] in it, which is then used"


def become_the_library() -> None:
    """Turn this module into the library. Raises `ImportError` where it cannot run.

    Another module in its place would not do: a second thread that imports it meanwhile keeps this one.
    """
    found = of_the_image() or injected()
    module = sys.modules[__name__]
    for name in ("cached", "loader", "origin", "submodule_search_locations"):
        setattr(__spec__, name, getattr(found, name))
    namespace = vars(module)
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]
    namespace.update({"__file__": found.origin, "__cached__": found.cached, "__loader__": found.loader})
    namespace["__path__"] = found.submodule_search_locations
    assert found.loader is not None
    found.loader.exec_module(module)


def of_the_image() -> importlib.machinery.ModuleSpec | None:
    """The library that the image has, found as Python would have found it without the injected folder."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    for finder in sys.meta_path:
        if finder is importlib.machinery.PathFinder:
            found = importlib.machinery.PathFinder.find_spec(__name__, others)
        else:
            found = finder.find_spec(__name__, None)
        if found is not None and found.has_location and found.origin != __spec__.origin:
            return found
    return None


def injected() -> importlib.machinery.ModuleSpec:
    """The library beside this package, with its dependencies last on `sys.path`."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "contents.json"), encoding="utf-8") as file:
        contents = json.load(file)
    folder = contents["folders"].get(importlib.machinery.EXTENSION_SUFFIXES[0])
    if folder is None:
        raise refused(
            f"{sys.implementation.name} {sys.version.split()[0]} is not supported",
            "an image with {}".format(contents["supported"]),
        )
    if conflicts := conflicts_with_the_image(contents["requirements"][folder]):
        names = sorted({name for name, _ in conflicts})
        raise refused("; ".join(line for _, line in conflicts), "versions of {} that it takes".format(", ".join(names)))
    packages = os.path.join(os.path.dirname(os.path.dirname(here)), "packages")
    paths = [os.path.join(packages, "any"), os.path.join(packages, folder)]
    sys.path += [path for path in paths if path not in sys.path]
    found = importlib.machinery.PathFinder.find_spec(__name__, paths)
    assert found is not None, f"{packages} lacks the library"
    return found


def conflicts_with_the_image(requirements: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """The packages of the image that do not meet what the library and its injected dependencies need."""
    conflicts = []
    for dependent, needs in requirements.items():
        if dependent != OPERATOR and version(dependent):
            continue  # that of the image is used, with what it needs
        for name, specifiers in needs.items():
            present = version(name)
            if present and not satisfies(present, specifiers):
                conflicts.append((name, f"{name} {present} of the image is not {specifiers}"))
    return conflicts


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def satisfies(present: str, specifiers: str) -> bool:
    """Whether a version meets specifiers with numbers only. Of a pre-release, the numbers count."""
    found = numbers(present)
    for one in filter(None, specifiers.split(",")):
        operator, wanted = re.match("([<>=!]=?)(.*)", one).groups()  # type: ignore[union-attr]
        bound = numbers(wanted)
        length = max(len(found), len(bound))
        left, right = (each + (0,) * (length - len(each)) for each in (found, bound))
        outcome = {">=": left >= right, "<=": left <= right, ">": left > right, "<": left < right, "!=": left != right}
        if not outcome.get(operator, left == right):
            return False
    return True


def numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"\s*(?:\d+!)?(\d+(?:\.\d+)*)", text)
    return tuple(map(int, found.group(1).split("."))) if found else ()


def refused(cause: str, step: str) -> ImportError:
    return ImportError(
        f"import checkpoint_sidecar from the image that the operator injects: {cause}. Use {step}, {ADVICE}.",
        name=__name__,
    )


if __name__ == "checkpoint_sidecar":  # not when tests import this file
    become_the_library()

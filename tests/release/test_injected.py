"""Which library a pod uses that gets one from an image, and what it says where it can use none.

A library and packages of a few bytes stand for the real ones, which `test_library_image` tests.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from localcluster import requirements
from release import injected, library

FOLDER = f"python3.{sys.version_info.minor}"


def add_package(folder: Path, name: str, version: str, text: str = "") -> None:
    """What pip leaves behind when it installs a package of one module."""
    described = folder / f"{name}-{version}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text or f"ORIGIN = {str(folder)!r}\n")


LIBRARY = """
import helper  # ours or that of the image
ORIGIN = __file__
"""


@dataclass(frozen=True)
class Pod:
    """The packages of an image, and the folder that the operator mounts."""

    image: Path
    mounted: Path

    def run(self, code: str, *, python: str = sys.executable, path: str = "") -> subprocess.CompletedProcess[str]:
        paths = [path, str(self.mounted / "python")] if path else [str(self.mounted / "python")]
        # After the start, as `site` does it: packages that are installed come after PYTHONPATH.
        start = f"import sys; sys.path.append({str(self.image)!r})\n"
        variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [python, "-S", "-c", start + textwrap.dedent(code)]
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    def said(self, code: str) -> list[str]:
        done = self.run(code)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def refusal(self, code: str = "import checkpoint_sidecar") -> str:
        done = self.run(code)
        assert done.returncode != 0, done.stdout
        return done.stderr.splitlines()[-1]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    made = Pod(tmp_path / "site-packages", tmp_path / "mounted")
    made.image.mkdir()
    chooser = made.mounted / "python" / "checkpoint_sidecar"
    chooser.mkdir(parents=True)
    shutil.copy(injected.__file__, chooser / "__init__.py")
    needs = {"checkpoint-operator": {"helper": ">=2.1"}, "helper": {"deep": "!=3.5,<4,>=3"}, "deep": {}}
    contents = {
        "supported": "Python 3.11 to 3.14",
        "folders": {importlib.machinery.EXTENSION_SUFFIXES[0]: FOLDER},
        "requirements": {FOLDER: needs},
    }
    (chooser / "contents.json").write_text(json.dumps(contents))
    packages = made.mounted / "packages"
    add_package(packages / "any", "checkpoint_sidecar", "1.0", LIBRARY)
    (packages / "any" / "checkpoint_sidecar" / "core.py").write_text("NAME = __name__\n")
    add_package(packages / FOLDER, "helper", "2.5")
    add_package(packages / FOLDER, "deep", "3.1")
    return made


WHICH = "import checkpoint_sidecar, helper; print(checkpoint_sidecar.ORIGIN); print(helper.ORIGIN)"


def test_an_image_without_the_library_uses_the_injected_one(pod: Pod) -> None:
    ours, helper = pod.said(WHICH)
    assert ours == str(pod.mounted / "packages" / "any" / "checkpoint_sidecar" / "__init__.py")
    assert helper == str(pod.mounted / "packages" / FOLDER)


def test_a_library_that_the_image_has_is_used(pod: Pod) -> None:
    add_package(pod.image, "checkpoint_sidecar", "0.9", "ORIGIN = __file__\n")
    said = pod.said("import checkpoint_sidecar; print(checkpoint_sidecar.ORIGIN); print(*sys.path, sep='\\n')")
    assert said[0] == str(pod.image / "checkpoint_sidecar" / "__init__.py")
    assert not [line for line in said[1:] if "packages/any" in line], "none of ours can be found then"


def test_a_library_that_an_editable_installation_finds_is_used(pod: Pod) -> None:
    sources = pod.image.parent / "sources"
    add_package(sources, "checkpoint_sidecar", "0.9", "ORIGIN = __file__\n")
    finder = f"""
        import importlib.machinery
        class Finder:
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return importlib.machinery.PathFinder.find_spec(name, [{str(sources)!r}])
        sys.meta_path.append(Finder)
        import checkpoint_sidecar
        print(checkpoint_sidecar.ORIGIN)
    """
    assert pod.said(finder) == [str(sources / "checkpoint_sidecar" / "__init__.py")]


def test_a_folder_of_that_name_is_no_library(pod: Pod) -> None:
    (pod.image / "checkpoint_sidecar").mkdir()
    assert pod.said(WHICH)[0].startswith(str(pod.mounted))


def test_packages_of_the_image_win(pod: Pod) -> None:
    add_package(pod.image, "helper", "2.1")
    assert pod.said(WHICH)[1] == str(pod.image)


def test_nothing_of_ours_is_found_before_the_library_is_imported(pod: Pod) -> None:
    assert "No module named 'helper'" in pod.refusal("import helper")


def test_a_package_that_is_too_old_is_named_with_what_to_do(pod: Pod) -> None:
    add_package(pod.image, "helper", "2.0.9")
    assert pod.refusal() == (
        "ImportError: import checkpoint_sidecar from the image that the operator injects: helper 2.0.9 of the image is "
        "not >=2.1. Use versions of helper that it takes, or install checkpoint-operator[torch] in it, which is then "
        "used."
    )


def test_what_an_injected_package_needs_is_compared_as_well(pod: Pod) -> None:
    add_package(pod.image, "deep", "4.0")
    assert "deep 4.0 of the image is not !=3.5,<4,>=3" in pod.refusal()


def test_what_a_package_of_the_image_needs_is_the_business_of_the_image(pod: Pod) -> None:
    add_package(pod.image, "helper", "9")
    add_package(pod.image, "deep", "4.0")
    assert pod.said(WHICH)[1] == str(pod.image)


def test_a_refusal_leaves_nothing_behind(pod: Pod) -> None:
    add_package(pod.image, "helper", "2.0.9")
    code = """
        before = [*sys.path]
        for _ in range(2):
            try:
                import checkpoint_sidecar
            except ImportError as error:
                print(error.name)
        print(before == sys.path, "checkpoint_sidecar" in sys.modules)
    """
    assert pod.said(code) == ["checkpoint_sidecar", "checkpoint_sidecar", "True False"]


def test_a_python_without_packages_is_named(pod: Pod) -> None:
    contents = pod.mounted / "python" / "checkpoint_sidecar" / "contents.json"
    contents.write_text(json.dumps(json.loads(contents.read_text()) | {"folders": {}}))
    assert f"cpython {sys.version.split()[0]} is not supported. Use an image with Python 3.11 to 3.14" in pod.refusal()


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_an_old_python_says_which_ones_are_supported(pod: Pod, version: str) -> None:
    of_pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    candidates = filter(None, [requirements.find_program(f"python{version}"), *map(str, of_pyenv)])
    working = (one for one in candidates if subprocess.run([one, "-c", ""], capture_output=True).returncode == 0)
    program = next(working, None)
    if program is None:
        pytest.skip(f"there is no python{version} here")
    done = pod.run("import checkpoint_sidecar", python=program)
    assert f"cpython {version}" in done.stderr.splitlines()[-1]
    assert "Use an image with Python 3.11 to 3.14" in done.stderr.splitlines()[-1]


def test_it_is_the_library_in_every_respect(pod: Pod) -> None:
    code = """
        import importlib.resources
        import checkpoint_sidecar.core
        from checkpoint_sidecar import core
        ours = sys.modules["checkpoint_sidecar"]
        print(core.NAME, ours.core is core, ours.__spec__.origin == ours.__file__, hasattr(ours, "injected"))
        print(importlib.resources.files(ours).joinpath("core.py").is_file())
        print(sys.path[-2:] == [entry for entry in sys.path if "/packages/" in entry])
    """
    assert pod.said(code) == ["checkpoint_sidecar.core True True False", "True", "True"]


def test_processes_that_are_spawned_use_the_same(pod: Pod) -> None:
    code = """
        import checkpoint_sidecar, multiprocessing
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(eval, ("__import__('checkpoint_sidecar').ORIGIN",)) == checkpoint_sidecar.ORIGIN)
    """
    assert pod.said(code) == ["True"]


def test_other_threads_wait_until_all_of_it_is_there(pod: Pod) -> None:
    slow = pod.mounted / "packages" / "any" / "checkpoint_sidecar" / "__init__.py"
    slow.write_text("import time; time.sleep(0.5)\nORIGIN = __file__\n")
    code = """
        import threading
        def find():
            import checkpoint_sidecar
            found.append(checkpoint_sidecar.ORIGIN)
        found = []
        threads = [threading.Thread(target=find) for _ in range(4)]
        [one.start() for one in threads]
        [one.join() for one in threads]
        print(len(found), len({*found}))
    """
    assert pod.said(code) == ["4 1"]


@pytest.mark.parametrize(
    ("present", "specifiers", "satisfied"),
    [
        ("1.40.0", ">=1.40", True),
        ("1.39.9", ">=1.40", False),
        ("1.100", ">=1.40", True),
        ("2.0rc1", ">=2", True),
        ("2.9.post0", ">=2.8", True),
        ("2.2.0", "!=2.2.0,<3,>=1.25.4", False),
        ("2.2", "!=2.2.0", False),
        ("3.0", "<3", False),
        ("3", "<=3.0", True),
        ("3.0.1", ">3", True),
        ("1!0.5", "<1", True),
        ("4.0", "==4", True),
        ("4.1", "==4", False),
        ("4.1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(present: str, specifiers: str, satisfied: bool) -> None:
    assert injected.satisfies(present, specifiers) == satisfied


@pytest.mark.parametrize(("operator", "version"), [("~=", "1.0"), ("==", "1.*"), (">=", "2.0rc1"), ("===", "1")])
def test_specifiers_that_it_would_misjudge_stop_the_build(operator: str, version: str) -> None:
    assert library._is_strange(operator, version)

"""The parts that make a release, one by one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from release import archives, chart, debian, downloads, facts, python_packages
from release.__main__ import ROOT, main, parser
from release.archives import Member
from release.facts import Publisher, Release, ReleaseError
from release.python_packages import LockedWheel, Target

PUBLISHER = Publisher("registry.example.com", "https://code.example.com", "urn:builder:tests")


@pytest.mark.parametrize(
    ("python", "semantic"),
    [("1.2.3", "1.2.3"), ("0.2.0a1", "0.2.0-alpha.1"), ("0.2.0b12", "0.2.0-beta.12"), ("2.0.0rc3", "2.0.0-rc.3")],
)
def test_a_version_has_one_form_for_python_and_one_for_the_rest(python: str, semantic: str) -> None:
    assert facts.semantic_version(python) == semantic


@pytest.mark.parametrize("version", ["1.2", "1.2.3.post1", "1.2.3.dev4", "1.2.3+local", "v1.2.3"])
def test_a_version_that_helm_and_krew_refuse_is_refused_first(version: str) -> None:
    with pytest.raises(ReleaseError, match=re.escape(version)):
        facts.semantic_version(version)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of two files that a release is made of."""
    folder = tmp_path / "clone"
    (folder / "cli").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (folder / "cli" / "tool").write_text("#!/bin/sh\n")
    (folder / "cli" / "tool").chmod(0o755)
    environment = os.environ | {"GIT_COMMITTER_DATE": "@1700000000 +0000", "GIT_AUTHOR_DATE": "@1700000000 +0000"}
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "--message=one")):
        subprocess.run(["git", *command], cwd=folder, env=environment, check=True)
    return folder


def test_a_release_knows_its_version_commit_and_time(clone: Path) -> None:
    release = facts.gather(clone, PUBLISHER, dirty=False)
    assert (release.version, release.epoch, release.created) == ("1.2.3", 1700000000, "2023-11-14T22:13:20Z")
    assert len(release.commit) == 40


@pytest.mark.parametrize("change", ["pyproject.toml", "cli/new.py"])
def test_a_checkout_that_differs_from_its_commit_is_refused(clone: Path, change: str) -> None:
    with (clone / change).open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ReleaseError, match=re.escape(change)):
        facts.gather(clone, PUBLISHER, dirty=False)
    assert facts.gather(clone, PUBLISHER, dirty=True).version == "1.2.3"


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="Run this in a clone"):
        facts.gather(tmp_path, PUBLISHER, dirty=False)


def test_only_tracked_sources_are_released_and_their_modes_are_those_of_git(clone: Path, tmp_path: Path) -> None:
    (clone / ".gitignore").write_text("*.secret\n")
    (clone / "cli" / "key.secret").write_text("secret")
    (clone / "notes.txt").write_text("not a source")
    (clone / "pyproject.toml").chmod(0o600)
    facts.stage(clone, tmp_path / "staged", 1700000000)
    files = {path.relative_to(tmp_path / "staged").as_posix() for path in (tmp_path / "staged").rglob("*")}
    assert files == {"pyproject.toml", "cli", "cli/tool"}
    modes = [(tmp_path / "staged" / name).stat().st_mode & 0o777 for name in ("pyproject.toml", "cli/tool")]
    assert modes == [0o644, 0o755]


def test_an_archive_depends_on_what_is_in_it_only() -> None:
    members = [Member("b/two", b"2"), Member("a", b"1", 0o755), Member("b/link", link="two")]
    packed = archives.compress(archives.tar(members, 1))
    assert packed == archives.compress(archives.tar(reversed(members), 1))
    assert packed != archives.compress(archives.tar(members, 2))


def wheel(*tags: str) -> LockedWheel:
    return LockedWheel("some", "1.0", f"https://files.example.com/x/some-1.0-{'-'.join(tags)}.whl", "0" * 64)


FILES = [
    wheel("py3", "none", "any"),
    wheel("cp312", "cp312", "manylinux_2_17_x86_64.manylinux2014_x86_64"),
    wheel("cp312", "cp312", "manylinux_2_34_x86_64"),
    wheel("cp311", "abi3", "manylinux_2_28_aarch64"),
    wheel("cp312", "cp312", "macosx_11_0_arm64"),
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(12, "linux", "x86_64"), 1),
        (Target(12, "linux", "x86_64", glibc=41), 2),
        (Target(13, "linux", "aarch64"), 3),
        (Target(12, "darwin", "arm64"), 4),
        (Target(13, "linux", "x86_64"), 0),
    ],
)
def test_the_wheel_is_chosen_that_pip_would_choose(target: Target, expected: int) -> None:
    assert python_packages.choose([Requirement("some==1.0")], {("some", "1.0"): FILES}, target) == [FILES[expected]]


def test_a_package_without_a_wheel_for_a_platform_is_named() -> None:
    target = Target(12, "darwin", "x86_64")
    with pytest.raises(ReleaseError, match=r"some 1\.0 for Python 3\.12 on darwin x86_64"):
        python_packages.choose([Requirement("some==1.0")], {("some", "1.0"): FILES[1:]}, target)


def test_a_package_for_another_system_is_left_out() -> None:
    windows = Requirement('some==1.0 ; sys_platform == "win32"')
    assert python_packages.choose([windows], {("some", "1.0"): FILES}, Target(12, "linux", "x86_64")) == []


def test_a_download_that_is_not_what_the_lock_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "some.deb"
    file.write_bytes(b"something else")
    with pytest.raises(ReleaseError, match=r"check some\.deb"):
        downloads.keep(file, "0" * 64)
    assert downloads.kept("0" * 64) is None
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_in_the_cache_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "some.deb"
    file.write_bytes(b"content")
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    downloads.keep(file, digest)
    assert downloads.kept(digest) == b"content"
    (kept,) = (path for path in tmp_path.rglob(digest))
    kept.write_bytes(b"conten")
    assert downloads.kept(digest) is None


@pytest.mark.parametrize("image", ["operator", "library"])
def test_an_image_is_made_of_the_same_packages_on_every_architecture(image: str) -> None:
    names = [[package.name for package in debian.locked(one, image)] for one in debian.ARCHITECTURES]
    assert names[0] == names[1]
    assert not {*names[0]} & debian.SCRIPTS_ONLY
    assert {*names[0]} >= {*debian.WANTED[image]}


def test_the_launcher_accepts_the_pythons_that_the_plugin_is_packed_for() -> None:
    text = (ROOT / "tools" / "release" / "launcher.py").read_text()
    assert f"\nMINORS = {python_packages.MINORS}\n" in text


def test_a_maintainer_without_an_address_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--maintainer=A Maintainer", f"--out={tmp_path}/out", "--quick", "--dirty"]) == 1
    assert "not of the form 'Name <address>'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


WORKFLOW = (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_the_workflow_pins_its_actions_by_commit() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW)
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one)] == []


def test_the_workflow_and_make_give_options_that_there_are() -> None:
    build = WORKFLOW.partition("-m release ")[2].partition("\n          done")[0]
    make = (ROOT / "Makefile").read_text().partition("-m release $")[2].partition("\n")[0]
    known = {option for action in parser()._actions for option in action.option_strings}
    for text in (build, make):
        given = {*re.findall(r"--[a-z]+", text)}
        assert {"--registry", "--homepage", "--maintainer"} <= given <= known


def test_a_chart_of_another_version_is_refused() -> None:
    with pytest.raises(ReleaseError, match=r"its version is .*, that of pyproject\.toml 9\.9\.9-rc\.1"):
        chart.package(ROOT, Release("9.9.9rc1", "0" * 40, 1700000000, PUBLISHER), [])

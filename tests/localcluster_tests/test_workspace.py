from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster import cgroups, workspace
from localcluster.processes import Daemons, Identity
from localcluster.workspace import NotAWorkspaceError, Workspace

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    place = Workspace(tmp_path / "place")
    place.create()
    yield place
    place.erase()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_erasing_ends_every_daemon_and_removes_the_directory(place: Workspace) -> None:
    identity = place.daemons.start("sleeper", ["sleep", "60"]).identity
    assert identity is not None
    place.erase()
    assert not identity.alive()
    assert not place.directory.exists()


def test_erasing_twice_is_fine(place: Workspace) -> None:
    place.erase()
    place.erase()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")
    for attempt in (Workspace(tmp_path).erase, Workspace(tmp_path).create):
        with pytest.raises(NotAWorkspaceError, match="choose another directory"):
            attempt()
    assert (tmp_path / "thesis.tex").read_text() == "the only copy"


@needs_root
def test_erasing_ends_unrecorded_processes_of_the_control_group(place: Workspace) -> None:
    cgroups.create(place.cgroup)
    procs = cgroups.daemons_folder(place.cgroup) / "cgroup.procs"
    process = subprocess.Popen(["sh", "-c", f"echo $$ >{procs}; exec sleep 60"])
    while process.pid not in cgroups.processes(place.cgroup):
        assert process.poll() is None
    place.erase()
    assert process.wait(timeout=5) == -signal.SIGKILL
    assert not [top for top in cgroups.hierarchies() if (top / place.cgroup).exists()]


def test_different_directories_have_different_control_groups(tmp_path: Path) -> None:
    assert Workspace(tmp_path / "a").cgroup != Workspace(tmp_path / "b").cgroup


def test_a_temporary_workspace_is_erased_when_its_user_fails(state: Path) -> None:
    used: list[tuple[Path, Identity]] = []

    def use_and_fail() -> None:
        with workspace.temporary("test") as place:
            identity = place.daemons.start("sleeper", ["sleep", "60"]).identity
            assert identity is not None
            used.append((place.directory, identity))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    ((directory, identity),) = used
    assert not identity.alive()
    assert not directory.exists()


def test_a_temporary_workspace_whose_user_was_killed_is_erased_by_the_next_one(state: Path) -> None:
    program = """if True:
        import os, signal
        from localcluster import workspace
        with workspace.temporary("killed") as place:
            place.daemons.start("sleeper", ["sleep", "60"])
            print(place.directory, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    directory = Path(killed.stdout.strip())
    identity = Daemons(directory).daemon("sleeper").identity
    assert identity is not None
    with workspace.temporary("next"):
        assert not identity.alive()
        assert not directory.exists()


def test_a_temporary_workspace_in_use_is_not_taken_for_abandoned(state: Path) -> None:
    with workspace.temporary("first") as first, workspace.temporary("second"):
        assert first.directory.exists()


def test_what_is_being_erased_is_not_taken_for_abandoned(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing a node's images takes many seconds, in which others look for what a killed run left behind."""
    found_meanwhile: list[object] = []
    remove = shutil.rmtree

    def rmtree(folder: Path) -> None:
        if folder != used.directory:
            found_meanwhile.extend(workspace.erase_abandoned(workspace.temporary_folder()))
        remove(folder)

    with workspace.temporary("test") as used:
        for number in range(20):
            (used.directory / f"folder-{number}").mkdir()
        monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert found_meanwhile == []
    assert not used.directory.exists()

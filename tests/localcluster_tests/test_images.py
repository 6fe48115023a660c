from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from pathlib import Path

import pytest

from localcluster import images


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, bytes]:
    pause = tmp_path / "pause"
    pause.write_bytes(b"a program")
    images.write_archive(tmp_path / "images.tar", pause)
    found = {}
    with tarfile.open(tmp_path / "images.tar") as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found


def test_the_archive_holds_both_images_by_name(archive: dict[str, bytes]) -> None:
    manifests = json.loads(archive["index.json"])["manifests"]
    names = [manifest["annotations"]["io.containerd.image.name"] for manifest in manifests]
    assert names == [images.PAUSE, images.EMPTY]


def test_every_blob_is_stored_under_its_digest(archive: dict[str, bytes]) -> None:
    blobs = {name: content for name, content in archive.items() if name.startswith("blobs/")}
    assert blobs
    assert all(Path(name).name == hashlib.sha256(content).hexdigest() for name, content in blobs.items())


def test_a_pod_gets_the_interpreter_and_the_environment_of_this_process() -> None:
    python = images.host_python()
    mounted = [Path(mount["mountPath"]) for mount in python.volume_mounts]
    for needed in (Path(sys.prefix), Path(sys.base_prefix), Path("/usr")):
        assert any(folder in (needed, *needed.parents) for folder in mounted), needed
    assert python.python == f"{sys.prefix}/bin/python"


def test_what_comes_from_the_host_is_read_only() -> None:
    python = images.host_python()
    from_host = {volume["name"] for volume in python.volumes if "hostPath" in volume}
    assert all(mount.get("readOnly") for mount in python.volume_mounts if mount["name"] in from_host)


def test_no_mounted_folder_lies_in_another(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    mounted = [Path(mount["mountPath"]) for mount in images.host_python(inner, tmp_path, scratch=False).volume_mounts]
    assert tmp_path in mounted
    assert not [folder for folder in mounted if set(folder.parents) & set(mounted)]


def test_pods_that_bring_their_own_scratch_space_get_none() -> None:
    assert all("hostPath" in volume for volume in images.host_python(scratch=False).volumes)

"""Stores over fsspec's filesystems keep every promise, or are refused by name before a run starts."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.cached import SimpleCacheFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from s3fs import S3FileSystem

from checkpoint_sidecar.conformance import __main__ as conformance
from checkpoint_sidecar.conformance import promises
from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.conformance.suite import BrokenPromiseError, Check, Trial
from checkpoint_sidecar.core.errors import (
    ConfigurationError,
    NoConditionalWriteError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store.access import AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_ACCOUNT_NAME, StoreSettings
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.fsspec.adapter import FsspecStore
from checkpoint_sidecar.store.fsspec.listings import forget
from checkpoint_sidecar.store.fsspec.storage_options import settings_of
from checkpoint_sidecar.store.fsspec.styles import protocols_of, style_of
from checkpoint_sidecar.store.local.adapter import LocalStore
from checkpoint_sidecar.store.opening import open_store
from emulators import filesystems
from emulators.servers import BUCKET, Emulator
from support.s3servers import Server


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if problem := filesystems.sshd_problem():
        pytest.skip(problem)
    with filesystems.sshd(tmp_path_factory.mktemp("sshd")) as options:
        yield fsspec.filesystem("sftp", **options)


@pytest.fixture(scope="session")
def webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with filesystems.webdav(tmp_path_factory.mktemp("webdav")) as url:
        yield fsspec.filesystem("webdav", base_url=url)


def _memory(_: pytest.FixtureRequest) -> tuple[Any, str]:
    return fsspec.filesystem("memory"), f"/{secrets.token_hex(6)}/run"


def _sftp(request: pytest.FixtureRequest) -> tuple[Any, str]:
    folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("sftp")
    return request.getfixturevalue("sftp"), f"{folder}/team/run"


def _s3fs(request: pytest.FixtureRequest) -> tuple[Any, str]:
    server: Server = request.getfixturevalue("seaweed")
    fs = fsspec.filesystem(
        "s3",
        key=server.access_key,
        secret=server.secret_key,
        endpoint_url=server.endpoint,
        client_kwargs={"region_name": "us-east-1"},
    )
    return fs, server.settings().url


def _gcsfs(request: pytest.FixtureRequest) -> tuple[Any, str]:
    from gcsfs.core import GCSFileSystem  # the one that fsspec makes asks for the bucket's layout over gRPC

    emulator: Emulator = request.getfixturevalue("google")
    return GCSFileSystem(endpoint_url=emulator.endpoint, token="anon"), f"gs://{BUCKET}/{secrets.token_hex(6)}/run"


def _adlfs(request: pytest.FixtureRequest) -> tuple[Any, str]:
    emulator: Emulator = request.getfixturevalue("azure")
    name = emulator.credentials[AZURE_STORAGE_ACCOUNT_NAME]
    key = emulator.credentials[AZURE_STORAGE_ACCOUNT_KEY]
    fs = fsspec.filesystem(
        "abfs",
        account_name=name,
        connection_string=f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};"
        f"BlobEndpoint={emulator.endpoint}/{name};",
    )
    return fs, f"abfs://{BUCKET}/{secrets.token_hex(6)}/run"


Opener = Callable[[pytest.FixtureRequest], tuple[Any, str]]
FILESYSTEMS = [
    pytest.param(_memory, id="memory"),
    pytest.param(_sftp, id="sftp", marks=pytest.mark.store),
    pytest.param(_s3fs, id="s3fs", marks=pytest.mark.store),
    pytest.param(_gcsfs, id="gcsfs", marks=pytest.mark.store),
    pytest.param(_adlfs, id="adlfs", marks=pytest.mark.store),
]


@pytest.fixture(scope="module", params=FILESYSTEMS)
def handed_in(request: pytest.FixtureRequest) -> FsspecStore:
    """A store over a filesystem object."""
    open_: Opener = request.param
    fs, path = open_(request)
    store = open_store(StoreSettings(path, filesystem=fs))
    assert isinstance(store, FsspecStore)
    return store


@pytest.mark.parametrize("check", promises.CHECKS, ids=lambda check: check.promise)
def test_a_filesystem_keeps_the_promise_that(
    check: Check, handed_in: FsspecStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promises, "MANY_KEYS", 120)  # a page of fsspec is a folder
    check.run(Trial(handed_in, handed_in.another_client(), f"{secrets.token_hex(6)}/"))


def test_the_probe_leaves_nothing_behind(handed_in: FsspecStore) -> None:
    probe(handed_in)

    assert [info.key for info in handed_in.list("_probe/")] == []


def test_a_local_filesystem_is_served_by_the_adapter_for_local_files(tmp_path: Path) -> None:
    store = open_store(StoreSettings(str(tmp_path / "run"), filesystem=LocalFileSystem()))
    store.put("key", b"data")

    assert isinstance(store, LocalStore)
    assert (tmp_path / "run" / "key").read_bytes() == b"data"


def test_a_folder_of_a_filesystem_is_served_by_the_filesystem_behind_it() -> None:
    fs = DirFileSystem(path="/team", fs=MemoryFileSystem())
    open_store(StoreSettings("run", filesystem=fs)).put("key", b"data")

    assert MemoryFileSystem().cat_file("/team/run/key") == b"data"


def test_a_url_and_storage_options_make_the_filesystem() -> None:
    store = open_store(settings_of("memory://made/run", {}))
    store.put("key", b"data")

    assert fsspec.filesystem("memory").cat_file("/made/run/key") == b"data"
    assert store.url == "memory://made/run"


@pytest.mark.store
def test_the_command_examines_a_url_of_fsspec(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main([f"memory://{secrets.token_hex(6)}/run", "--storage-options", "{}"]) == 0
    assert "through FsspecStore" in capsys.readouterr().out


class IgnoresMode(MemoryFileSystem):  # type: ignore[misc]
    """A filesystem that replaces whatever it is asked to create."""

    protocol = "ignoresmode"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:  # noqa: ARG002
        super().pipe_file(path, value)


class LooksFirst(IgnoresMode):
    """A filesystem that looks whether a file exists, and writes a moment later."""

    protocol = "looksfirst"
    store: ClassVar[dict[str, Any]] = {}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:  # noqa: ARG002
        if mode == "create":
            if self.exists(path):
                raise FileExistsError(path)
            time.sleep(0.02)
        super().pipe_file(path, value)


class HasNoCreate(IgnoresMode):
    """A filesystem that says that it cannot create exclusively."""

    protocol = "hasnocreate"
    store: ClassVar[dict[str, Any]] = {}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:  # noqa: ARG002
        if mode == "create":
            raise NotImplementedError
        super().pipe_file(path, value)


class SendsTwice(IgnoresMode):
    """A filesystem that repeats a create whose reply was lost, and finds what it has written itself."""

    protocol = "sendstwice"
    store: ClassVar[dict[str, Any]] = {}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:  # noqa: ARG002
        super().pipe_file(path, value)
        if mode == "create":
            raise FileExistsError(path)


@pytest.mark.parametrize("kind", [IgnoresMode, LooksFirst, HasNoCreate])
def test_a_filesystem_without_an_atomic_create_is_refused_by_name(kind: type[Any]) -> None:
    store = open_store(StoreSettings("/run", filesystem=kind()))

    with pytest.raises(NoConditionalWriteError, match=rf"{kind.__name__} has no .*create.* Use a filesystem"):
        probe(store)


@pytest.mark.store
def test_a_webdav_server_that_overwrites_in_two_steps_is_refused_by_name(webdav: Any) -> None:
    store = open_store(StoreSettings("team/run", filesystem=webdav))

    def probe_often() -> None:
        for _ in range(20):  # it is a race
            probe(store)

    with pytest.raises(BrokenPromiseError, match=r"WebdavFileSystem does not keep .* Use a filesystem"):
        probe_often()


def test_a_create_that_finds_its_own_bytes_has_an_unknown_outcome() -> None:
    store = open_store(StoreSettings("/run", filesystem=SendsTwice()))

    with pytest.raises(UnknownOutcomeError):
        store.put_if_absent("key", b"ours")


def test_an_error_of_a_filesystem_is_repeated_until_the_deadline_without_its_text() -> None:
    class Fails(IgnoresMode):
        protocol = "fails"

        def cat_file(self, *arguments: Any, **options: Any) -> bytes:  # noqa: ARG002
            raise OSError("signature=secret")

    fs = Fails()
    store = FsspecStore(StoreSettings("fails:///run", filesystem=fs), timeouts=Timeouts(0.2, 1, 1))
    store.put("key", b"data")

    with pytest.raises(StoreError, match="the filesystem failed") as raised:
        store.get("key", max_bytes=10)
    assert "secret" not in str(raised.value)
    assert raised.value.retryable


@pytest.mark.store
def test_a_missing_container_is_named(azure: Emulator, request: pytest.FixtureRequest) -> None:
    fs, _ = _adlfs(request)
    store = FsspecStore(StoreSettings("abfs://missing/run", filesystem=fs), timeouts=Timeouts(0.2, 1, 1))

    with pytest.raises(StoreError):
        store.put("key", b"data")


class Moves(AbstractFileSystem):  # type: ignore[misc]
    """A filesystem of which only the rename is known to be its own."""

    def mv(self, *paths: str) -> None: ...


def test_how_a_filesystem_writes_is_decided_by_its_class() -> None:
    styles = {kind: style_of(object.__new__(kind)) for kind in (S3FileSystem, MemoryFileSystem, Moves)}

    assert {kind: (style.staged_puts, style.staged_uploads) for kind, style in styles.items()} == {
        S3FileSystem: (False, False),
        MemoryFileSystem: (False, True),
        Moves: (True, True),
    }


def test_a_class_without_a_scheme_does_not_keep_listings_from_being_forgotten() -> None:
    class WithoutScheme(AbstractFileSystem):  # type: ignore[misc]
        protocol = None

    forget("memory://bucket/run")
    assert protocols_of(WithoutScheme) == ()


def test_an_fsspec_that_would_replace_what_is_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe_file(self: object, path: str, value: bytes, **kwargs: object) -> None:
        """As before fsspec 2024.12."""

    monkeypatch.setattr(AbstractFileSystem, "pipe_file", pipe_file)
    store = open_store(StoreSettings("/run", filesystem=MemoryFileSystem()))

    with pytest.raises(NoConditionalWriteError, match="does not know pipe_file"):
        probe(store)


@pytest.mark.parametrize(
    ("url", "options", "cause"),
    [
        ("nothing://bucket/run", {}, "the scheme nothing is unknown"),
        ("simplecache::memory://bucket/run", {}, "chained URLs"),
        ("smb://user:secret@host/run", {}, "a package for smb:// URLs is missing"),
    ],
)
def test_a_url_that_fsspec_cannot_serve_is_refused(url: str, options: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause) as raised:
        open_store(settings_of(url, options))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("fs", "cause"),
    [
        (SimpleCacheFileSystem(fs=MemoryFileSystem(), target_protocol=None), "answers from a cache"),
        ("memory", "str is not an fsspec filesystem"),
    ],
    ids=["a cache", "a name"],
)
def test_an_object_that_cannot_hold_a_run_is_refused(fs: Any, cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        open_store(StoreSettings("/run", filesystem=fs))


def test_storage_options_beside_a_filesystem_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Pass it when you create the filesystem"):
        settings_of("/run", {"key": "value"}, MemoryFileSystem())


@pytest.mark.store
def test_files_of_killed_writers_are_removed_after_a_day(sftp: Any, tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    for name, age in (("old", 2 * 24 * 3600), ("new", 3600)):
        (tmp_path / ".partial" / name).write_bytes(b"half")
        os.utime(tmp_path / ".partial" / name, (time.time() - age,) * 2)

    open_store(StoreSettings(str(tmp_path), filesystem=sftp)).put("key", b"data")

    assert [path.name for path in (tmp_path / ".partial").iterdir()] == ["new"]

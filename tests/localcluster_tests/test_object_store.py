from __future__ import annotations

import fsspec
import pytest

from localcluster.objectstore import ObjectStore

pytestmark = pytest.mark.store


def test_an_object_can_be_created_once_only(object_store: ObjectStore, bucket: str) -> None:
    store = fsspec.filesystem("s3", **object_store.storage_options())
    store.pipe_file(f"{bucket}/key", b"first", mode="create")
    with pytest.raises(OSError):  # noqa: PT011 - s3fs has errno 22 here, FileExistsError on other servers
        store.pipe_file(f"{bucket}/key", b"second", mode="create")
    assert store.cat_file(f"{bucket}/key") == b"first"


def test_every_test_gets_a_bucket_of_its_own(object_store: ObjectStore, bucket: str) -> None:
    assert object_store.bucket() != bucket

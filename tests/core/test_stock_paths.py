"""Paths of shared files in torch's metadata are found wherever they are, and nothing else changes."""

from __future__ import annotations

import pickle

import pytest

from checkpoint_sidecar.core.stock_paths import with_paths

KEYS = [f"step-1/0001-abcdefgh-12345678/__{rank}_s0.distcp" for rank in range(4)]
NEW = {key: f"0002-abcdefgh-12345678/{key.rpartition('/')[2]}" for key in KEYS}


@pytest.mark.parametrize("root", ["/b", "/bucket/run", f"/{'deep/' * 60}run"], ids=["short", "usual", "long"])
def test_every_shared_path_is_replaced_also_next_to_another(root: str) -> None:
    others = ["/etc/X-files", "X/step-1/__0_s0.distcp", "", "layer.weight"]
    paths = [f"{root}/{key}" for key in KEYS]
    texts = (text.encode() for text in (*others, *paths, *others))
    stored = (pickle.BINUNICODE + len(each).to_bytes(4, "little") + each + pickle.MEMOIZE for each in texts)
    data = b"".join((pickle.PROTO, b"\x04", pickle.MARK, *stored, pickle.TUPLE, pickle.STOP))
    assert pickle.loads(with_paths(data, NEW)) == (*others, *NEW.values(), *others)


def test_without_shared_files_metadata_stays_as_it_is() -> None:
    data = pickle.dumps([f"/bucket/run/{key}" for key in KEYS], protocol=3)
    assert with_paths(data, {}) == data

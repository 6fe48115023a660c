"""The operator's session with a run on a store that a test holds."""

from __future__ import annotations

import pytest

from checkpoint_operator.gather.run_store import RunStore
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store


def session_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setattr("checkpoint_operator.gather.run_store.open_store", lambda *_, **__: store)
    session = RunStore(StoreSettings("s3://memory/run"), writer="operator test")
    session.probe()
    session.log.refresh()
    return session

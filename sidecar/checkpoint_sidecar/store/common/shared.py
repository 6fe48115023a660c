"""Clients that stores share.

A client takes a third of a megabyte, and an operator may serve a thousand runs in one or two buckets.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.common.calls import Timeouts

Client = TypeVar("Client")


class SharedClients(Generic[Client]):
    """One client for each bucket and identity, kept while any store uses it. Safe from several threads.

    Args:
        make: Creates a client of a bucket, whose URL has no path; may be called in several threads at once.
    """

    def __init__(self, make: Callable[[StoreSettings, Timeouts, Mapping[str, str]], Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._clients: weakref.WeakValueDictionary[Hashable, Client] = weakref.WeakValueDictionary()

    def get(self, settings: StoreSettings, timeouts: Timeouts, values: Mapping[str, str]) -> Client:
        """Return the client for a run's store.

        Args:
            values: The present credentials.

        Raises:
            StoreError: It cannot be created.
        """
        location = replace(parse_url(settings.url), path="")
        bucket = replace(settings, url=location.url)
        # Clients also take identity, proxies and certificates from the environment, and do not survive a fork.
        environment = frozenset(os.environ.items())
        key = (os.getpid(), bucket, timeouts, frozenset(values.items()), environment)
        with self._lock:
            client = self._clients.get(key)
        if client is None:
            # Outside the lock: finding an identity may take seconds, and other buckets must not wait for it.
            made = self._make(bucket, timeouts, values)
            with self._lock:
                client = self._clients.setdefault(key, made)
        return client

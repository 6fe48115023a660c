"""Explains the exceptions of fsspec's filesystems.

Every filesystem brings the exceptions of its own client; what they share are Python's, which fsspec asks for.
"""

from __future__ import annotations

import errno
import os
import re

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestRefusedError,
    StoreError,
)
from checkpoint_sidecar.store.common.calls import ClientFault

_CHECK = "Check the URL and the options that the filesystem was made with."
_DENIED = ClientFault(
    AccessDeniedError, "access was denied", "Check the credentials that the filesystem was made with."
)
_FAULTS: tuple[tuple[tuple[type[Exception], ...], ClientFault], ...] = (
    ((FileNotFoundError,), ClientFault(ObjectNotFoundError, "no such object")),
    ((FileExistsError,), ClientFault(ObjectExistsError, "the key is taken")),
    ((PermissionError,), _DENIED),
    ((IsADirectoryError, NotADirectoryError), ClientFault(RequestRefusedError, "a folder and a file share a name")),
)
_REFUSALS = (NotImplementedError, TypeError, ValueError, AttributeError)
_IDENTITY = re.compile(r"Auth|Credential|Permission|Forbidden")


def explain_filesystem(error: Exception) -> ClientFault:
    """Return the meaning of a filesystem's exception, without its text, which may quote secrets."""
    for kinds, fault in _FAULTS:
        if isinstance(error, kinds):
            return fault
    name = type(error).__name__
    if _IDENTITY.search(name):
        return _DENIED
    if isinstance(error, _REFUSALS):
        return ClientFault(RequestRefusedError, f"the filesystem refuses the request ({name})", _CHECK, sent=False)
    # Not the exception's own strerror, in which s3fs quotes the server.
    reason = name
    if isinstance(error, OSError) and error.errno and error.errno in errno.errorcode:
        reason = f"{name}: {os.strerror(error.errno)}"
    return ClientFault(StoreError, f"the filesystem failed ({reason})", _CHECK, sent=True)

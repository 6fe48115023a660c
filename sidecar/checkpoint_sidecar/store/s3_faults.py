"""What the exceptions of botocore mean, the synchronous one's and the asynchronous one's."""

from __future__ import annotations

import socket

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import NewConnectionError

from checkpoint_sidecar.core.errors import AccessDeniedError, RequestRefusedError, StoreError
from checkpoint_sidecar.store.answers import explain_answer
from checkpoint_sidecar.store.calls import Fault
from checkpoint_sidecar.store.s3_signing import GIVE_CREDENTIALS, NO_CREDENTIALS

BOTO_ERRORS: tuple[type[Exception], ...] = (boto.BotoCoreError, boto.ClientError, ResponseParserError)

NO_CONNECTION = Fault(StoreError, "no connection to the store", "Check endpoint, proxy, DNS and certificates.")
SILENT = Fault(StoreError, "the store did not answer in time", sent=True)

_NO_CREDENTIALS = Fault(AccessDeniedError, NO_CREDENTIALS, GIVE_CREDENTIALS)
# aiobotocore gives the name EndpointConnectionError to resets of open connections, too.
_NOT_CONNECTED = (aiohttp.ClientConnectorError, NewConnectionError, socket.gaierror)
# In this order: the first class that fits.
_TRANSPORT_FAULTS: tuple[tuple[type[Exception], Fault], ...] = (
    (boto.NoCredentialsError, _NO_CREDENTIALS),
    (boto.PartialCredentialsError, _NO_CREDENTIALS),
    (boto.CredentialRetrievalError, _NO_CREDENTIALS),
    (boto.ParamValidationError, Fault(RequestRefusedError, "the client refuses the request's parameters")),
    (boto.ConnectTimeoutError, NO_CONNECTION),
    (boto.ProxyConnectionError, NO_CONNECTION),
    (boto.SSLError, NO_CONNECTION),
    (boto.ReadTimeoutError, SILENT),
    (ResponseParserError, Fault(StoreError, "the store's answer cannot be read", sent=True)),
)


def explain_boto(error: Exception) -> Fault:
    """What one of ``BOTO_ERRORS``, or an error below botocore, means."""
    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return explain_answer(status, str(error.response.get("Error", {}).get("Code", "")))
    if isinstance(error, boto.EndpointConnectionError) and isinstance(error.kwargs.get("error"), _NOT_CONNECTED):
        return NO_CONNECTION
    for kind, fault in _TRANSPORT_FAULTS:
        if isinstance(error, kind):
            return fault
    return Fault(StoreError, f"the connection broke off ({type(error).__name__})", sent=True)

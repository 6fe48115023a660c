"""Interprets the exceptions of s3fs: those of botocore, and of aiohttp below it."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from checkpoint_sidecar.core.errors import AccessDeniedError, RequestRefusedError, StoreError
from checkpoint_sidecar.store.common.calls import ClientFault
from checkpoint_sidecar.store.http.client import CHECK_CONNECTION, SILENT, explain
from checkpoint_sidecar.store.http.dialect import AnswerError, explanation_of
from checkpoint_sidecar.store.s3.identity import GIVE_CREDENTIALS, NO_CREDENTIALS

BOTO_ERRORS: tuple[type[Exception], ...] = (boto.BotoCoreError, boto.ClientError, ResponseParserError)

_NO_CREDENTIALS = ClientFault(AccessDeniedError, NO_CREDENTIALS, GIVE_CREDENTIALS)
# aiobotocore raises EndpointConnectionError for resets of open connections, too.
_NOT_CONNECTED = (aiohttp.ClientConnectorError, socket.gaierror)
_UNREACHABLE = (boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
# The first matching class counts.
_TRANSPORT_FAULTS: tuple[tuple[type[Exception], ClientFault], ...] = (
    (boto.NoCredentialsError, _NO_CREDENTIALS),
    (boto.PartialCredentialsError, _NO_CREDENTIALS),
    (boto.CredentialRetrievalError, _NO_CREDENTIALS),
    (boto.ParamValidationError, ClientFault(RequestRefusedError, "the client refuses the request's parameters")),
    (boto.ReadTimeoutError, SILENT),
    (ResponseParserError, ClientFault(StoreError, "the store's answer cannot be read", sent=True)),
)


def explain_boto(error: Exception, secrets: Mapping[str, str], asked: str) -> ClientFault:
    """Return the meaning of one of ``BOTO_ERRORS``, or of an error below botocore.

    Args:
        secrets: Secrets to remove from the store's message.
        asked: Host and port of the store.
    """
    if isinstance(error, boto.ClientError):
        return explain(_answer_error(error, secrets))
    if isinstance(error, boto.HTTPClientError) and isinstance(error.kwargs.get("error"), AnswerError):
        return explain(error.kwargs["error"])
    if isinstance(error, boto.EndpointConnectionError) and isinstance(error.kwargs.get("error"), _NOT_CONNECTED):
        return _not_connected(error.kwargs["error"], asked)
    if isinstance(error, _UNREACHABLE):
        return ClientFault(StoreError, f"no connection to {asked} ({type(error).__name__})", CHECK_CONNECTION)
    for kind, fault in _TRANSPORT_FAULTS:
        if isinstance(error, kind):
            return fault
    return ClientFault(StoreError, f"the connection broke off ({type(error).__name__})", sent=True)


def _answer_error(error: boto.ClientError, secrets: Mapping[str, str]) -> AnswerError:
    described = error.response.get("Error", {})
    code = str(described.get("Code", ""))
    return AnswerError(
        int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
        "" if code.isdigit() else code,
        explanation_of(str(described.get("Message", "")), secrets),
    )


def _not_connected(error: Exception, asked: str) -> ClientFault:
    cause = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error.strerror or type(error.os_error).__name__
    return ClientFault(StoreError, f"no connection to {asked} ({cause})", CHECK_CONNECTION)

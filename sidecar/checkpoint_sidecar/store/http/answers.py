"""Interprets error answers by HTTP status and error code, for S3, Google Cloud Storage and Azure."""

from __future__ import annotations

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    NoConditionalWriteError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestRefusedError,
    StoreError,
    TruncatedObjectError,
)
from checkpoint_sidecar.store.common.calls import ClientFault

_DENIED = "Check the credentials and what they allow: read, write, list and delete under this URL."
_BUCKET = "Create the bucket, or correct the URL; buckets are never created implicitly."
_ENDPOINT = "If nothing was ever found there, check that the endpoint is an object store's."
_REGION = "Set the region of the bucket."
_LOCKED = "The object is locked: wait until its retention ends."
_CONDITIONAL = "Use a store that honors If-None-Match on PUT."

_BY_CODE: dict[str, tuple[type[StoreError], str]] = {
    "AccessDenied": (AccessDeniedError, _DENIED),
    "AuthenticationFailed": (AccessDeniedError, _DENIED),
    "AuthorizationFailure": (AccessDeniedError, _DENIED),
    "ExpiredToken": (AccessDeniedError, _DENIED),
    "InvalidAccessKeyId": (AccessDeniedError, _DENIED),
    "InvalidToken": (AccessDeniedError, _DENIED),
    "RequestTimeTooSkewed": (AccessDeniedError, "Set this machine's clock."),
    "SignatureDoesNotMatch": (AccessDeniedError, _DENIED),
    "NoSuchBucket": (BucketNotFoundError, _BUCKET),
    "ContainerNotFound": (BucketNotFoundError, _BUCKET),
    "InvalidBucketName": (BucketNotFoundError, _BUCKET),
    "NoSuchKey": (ObjectNotFoundError, ""),
    "BlobNotFound": (ObjectNotFoundError, ""),
    "PreconditionFailed": (ObjectExistsError, ""),
    "BlobAlreadyExists": (ObjectExistsError, ""),
    # Another write or delete of the key was in progress; an object need not exist now.
    "ConditionalRequestConflict": (StoreError, ""),
    "OperationAborted": (StoreError, ""),
    "NotImplemented": (NoConditionalWriteError, _CONDITIONAL),
    "InvalidRange": (TruncatedObjectError, ""),
    "AuthorizationHeaderMalformed": (RequestRefusedError, _REGION),
    "IllegalLocationConstraintException": (RequestRefusedError, _REGION),
    "PermanentRedirect": (RequestRefusedError, _REGION),
    # Object lock and immutability, as MinIO and Azure name them.
    "ObjectLocked": (RequestRefusedError, _LOCKED),
    "BlobImmutableDueToPolicy": (RequestRefusedError, _LOCKED),
    "BadDigest": (StoreError, ""),
    "InvalidDigest": (StoreError, ""),
    "RequestTimeout": (StoreError, ""),
    "XAmzContentSHA256Mismatch": (StoreError, ""),
}

_BY_STATUS: dict[int, tuple[type[StoreError], str]] = {
    401: (AccessDeniedError, _DENIED),
    403: (AccessDeniedError, _DENIED),
    407: (RequestRefusedError, "Put the proxy's user and password into its URL."),
    404: (ObjectNotFoundError, _ENDPOINT),
    408: (StoreError, ""),
    409: (StoreError, ""),
    412: (ObjectExistsError, ""),
    416: (TruncatedObjectError, ""),
    429: (StoreError, ""),
    501: (NoConditionalWriteError, _CONDITIONAL),
}


def explain_answer(status: int, code: str, explanation: str = "", *, proxy: str = "") -> ClientFault:
    """Return the meaning of an error, by its code if that is known, else by the HTTP status.

    Args:
        explanation: The store's own message, without secrets.
        proxy: The proxy that forwarded or gave the answer.
    """
    fallback = (StoreError, "") if status >= 500 else (RequestRefusedError, "")
    kind, hint = _BY_CODE.get(code) or _BY_STATUS.get(status, fallback)
    # A store gives a code; a proxy that cannot reach the store does not.
    answering = f"the proxy {proxy}, or the store behind it," if proxy and not code else "the store"
    cause = f"{answering} answered {code or status}" + (f": {explanation}" if explanation else "")
    return ClientFault(kind, cause, hint, sent=kind is StoreError)


def not_deleted(subject: str, code: str, explanation: str) -> StoreError:
    """Return the error for keys that a bulk delete did not delete.

    Args:
        subject: The keys, as errors name them.
        code: The store's code for the first key.
        explanation: The store's own message for it, without secrets.
    """
    fault = explain_answer(500, code, explanation)
    return fault.kind("delete", subject, fault.cause, fault.hint)

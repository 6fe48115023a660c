"""Builds requests to S3's REST API and signs them with botocore."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import unquote_plus, urlencode
from xml.etree import ElementTree as ET

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials

from checkpoint_sidecar.store import access as secret
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import ObjectInfo, UnfinishedUpload
from checkpoint_sidecar.store.common.calls import LARGE_BODY
from checkpoint_sidecar.store.http.connections import Answer
from checkpoint_sidecar.store.http.dialect import (
    KeptObject,
    Message,
    Page,
    PartsDialect,
    StoredPart,
    UnreadableAnswerError,
    UploadPage,
    escaped,
    in_utc,
    joined,
    parse_xml,
    required,
    xml_error,
)
from checkpoint_sidecar.store.s3.identity import S3Identity

KEYS_PER_DELETE = 1000
"""Maximum that S3 accepts in one request."""

_CHECKSUM = "x-amz-checksum-crc32c"
_HASHED = Config(s3={"payload_signing_enabled": True})
# Large bodies have a separate checksum; hashing them would be a second pass over the data.
_NOT_HASHED = Config(s3={"payload_signing_enabled": False})


class S3Dialect(PartsDialect):
    """See ``Dialect``."""

    keys_per_delete = KEYS_PER_DELETE

    def __init__(self, settings: StoreSettings, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self._identity = S3Identity(settings, values)
        self.base = self._identity.target.base
        self.ca_file = self.ca_file or self._identity.ca_file
        self._used: ReadOnlyCredentials | None = None
        self._common = {"x-amz-request-payer": "requester"} if settings.requester_pays else {}
        self._written = _write_headers(settings)

    @property
    def secrets(self) -> Mapping[str, str]:
        used = self._used
        if used is None:
            return self._values
        found = {
            secret.AWS_ACCESS_KEY_ID: used.access_key,
            secret.AWS_SECRET_ACCESS_KEY: used.secret_key,
            secret.AWS_SESSION_TOKEN: used.token or "",
        }
        return {**self._values, **found}

    def signed(self, message: Message, url: str) -> tuple[str, Mapping[str, str]]:
        """See ``Dialect``."""
        self._used = credentials = self._identity.frozen()
        large = sum(view.nbytes for view in message.body) > LARGE_BODY
        request = AWSRequest(
            method=message.method,
            url=url,
            headers={**self._common, **message.headers, **message.checksum_headers},
            data=b"" if large else joined(message.body),
        )
        request.context["client_config"] = _NOT_HASHED if large else _HASHED
        S3SigV4Auth(credentials, "s3", self._identity.target.region).add_auth(request)
        return url, dict(request.headers.items())

    def put(self, key: str, body: Sequence[memoryview], crc32c: int, *, create: bool) -> Message:
        """See ``Dialect``."""
        condition = {"If-None-Match": "*"} if create else {}
        return Message(
            "PUT",
            escaped(key),
            {},
            {**self._written, **condition},
            body,
            checksum_headers={_CHECKSUM: _encoded(crc32c)},
        )

    def get(self, key: str, start: int | None = None, length: int = 0) -> Message:
        """See ``Dialect``."""
        if start is None:
            return Message("GET", escaped(key))
        # A server that ignores the range answers 200.
        success = (206,) if start else (206, 200)
        return Message("GET", escaped(key), headers={"Range": f"bytes={start}-{start + length - 1}"}, success=success)

    def head(self, key: str) -> Message:
        """See ``Dialect``."""
        return Message("HEAD", escaped(key))

    def list(self, prefix: str, after: str, token: str) -> Message:
        """See ``Dialect``."""
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        if after:
            query["start-after"] = after
        if token:
            query["continuation-token"] = token
        return Message("GET", query=query)

    def listed(self, answer: Answer) -> Page:
        """See ``Dialect``."""
        page = parse_xml(answer, "ListBucketResult")
        objects = [
            ObjectInfo(_key(page, item), _number(required(item, "Size")), _time(required(item, "LastModified")))
            for item in page.iter("Contents")
        ]
        return Page(objects, required(page, "NextContinuationToken") if _truncated(page) else "")

    def delete(self, keys: Sequence[str]) -> Message:
        """See ``Dialect``."""
        root = ET.Element("Delete", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        for key in keys:
            ET.SubElement(ET.SubElement(root, "Object"), "Key").text = key
        ET.SubElement(root, "Quiet").text = "true"
        body = ET.tostring(root)
        # The only checksum that every server accepts here, and some require.
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return Message("POST", query={"delete": ""}, headers={"Content-MD5": digest}, body=[memoryview(body)])

    def kept(self, answer: Answer) -> Sequence[KeptObject]:
        """See ``Dialect``."""
        result = parse_xml(answer, "DeleteResult", "DeleteObjectsResult")
        return [
            KeptObject(required(item, "Key"), item.findtext("Code") or "", item.findtext("Message") or "")
            for item in result.iter("Error")
        ]

    def failure(self, message: Message, answer: Answer) -> tuple[str, str]:  # noqa: ARG002
        """See ``Dialect``."""
        code, explanation = xml_error(answer.body)
        region = answer.headers.get("x-amz-bucket-region", "")
        if not explanation and region and answer.status in (301, 400):
            explanation = f"the bucket is in {region}"
        return code, explanation

    def begin_upload(self, key: str) -> Message:
        """See ``Dialect``."""
        return Message(
            "POST",
            escaped(key),
            {"uploads": ""},
            self._written,
            checksum_headers={"x-amz-checksum-algorithm": "CRC32C"},
        )

    def upload_id(self, answer: Answer) -> str:
        """See ``Dialect``."""
        return required(parse_xml(answer, "InitiateMultipartUploadResult"), "UploadId")

    def part(self, key: str, upload_id: str, index: int, body: Sequence[memoryview], crc32c: int) -> Message:
        """See ``Dialect``."""
        query = {"partNumber": str(index + 1), "uploadId": upload_id}
        return Message("PUT", escaped(key), query, body=body, checksum_headers={_CHECKSUM: _encoded(crc32c)})

    def copied_part(self, key: str, upload_id: str, index: int, source: str, start: int, length: int) -> Message:
        """See ``Dialect``."""
        query = {"partNumber": str(index + 1), "uploadId": upload_id}
        headers = {
            "x-amz-copy-source": f"/{escaped(source)}",
            "x-amz-copy-source-range": f"bytes={start}-{start + length - 1}",
        }
        return Message("PUT", escaped(key), query, headers)

    def stored_copy(self, answer: Answer) -> StoredPart:
        """See ``Dialect``."""
        result = parse_xml(answer, "CopyPartResult")
        checksum = result.findtext("ChecksumCRC32C")
        return StoredPart(required(result, "ETag"), None if checksum is None else _decoded_checksum(checksum))

    def copy(self, key: str, source: str) -> Message:
        """See ``Dialect``."""
        # Otherwise the copy has the tags of the original, which another version of the settings may have given it.
        tagged = {"x-amz-tagging-directive": "REPLACE"} if "x-amz-tagging" in self._written else {}
        return Message(
            "PUT",
            escaped(key),
            {},
            {**self._written, **tagged, "x-amz-copy-source": f"/{escaped(source)}"},
            checksum_headers={"x-amz-checksum-algorithm": "CRC32C"},
        )

    def copied(self, answer: Answer) -> int | None:
        """See ``Dialect``."""
        checksum = parse_xml(answer, "CopyObjectResult").findtext("ChecksumCRC32C")
        # One with a hyphen is a checksum of checksums of parts.
        return None if checksum is None or "-" in checksum else _decoded_checksum(checksum)

    def tag(self, answer: Answer) -> str:
        """See ``Dialect``."""
        try:
            return answer.headers["etag"]
        except KeyError:
            raise UnreadableAnswerError from None

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[StoredPart]) -> Message:
        """See ``Dialect``."""
        root = ET.Element("CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        for index, part in enumerate(parts):
            element = ET.SubElement(root, "Part")
            ET.SubElement(element, "PartNumber").text = str(index + 1)
            ET.SubElement(element, "ETag").text = part.tag
            if part.crc32c is not None:
                ET.SubElement(element, "ChecksumCRC32C").text = _encoded(part.crc32c)
        return Message("POST", escaped(key), {"uploadId": upload_id}, body=[memoryview(ET.tostring(root))])

    def check_completed(self, answer: Answer) -> None:
        """See ``Dialect``."""
        parse_xml(answer, "CompleteMultipartUploadResult")

    def abort_upload(self, key: str, upload_id: str) -> Message:
        """See ``Dialect``."""
        return Message("DELETE", escaped(key), {"uploadId": upload_id}, success=(200, 204))

    def unfinished(self, prefix: str, query: Mapping[str, str]) -> Message:
        """See ``Dialect``."""
        return Message("GET", query={"uploads": "", "encoding-type": "url", "prefix": prefix, **query})

    def listed_uploads(self, answer: Answer) -> UploadPage:
        """See ``Dialect``."""
        page = parse_xml(answer, "ListMultipartUploadsResult")
        uploads = [
            UnfinishedUpload(_key(page, item), required(item, "UploadId"), _time(required(item, "Initiated")))
            for item in page.iter("Upload")
        ]
        if not _truncated(page):
            return UploadPage(uploads)
        markers = {"key-marker": _decoded(page, required(page, "NextKeyMarker"))}
        return UploadPage(uploads, markers | {"upload-id-marker": required(page, "NextUploadIdMarker")})


def _write_headers(settings: StoreSettings) -> dict[str, str]:
    headers = {}
    if settings.server_side_encryption:
        headers["x-amz-server-side-encryption"] = settings.server_side_encryption
    if settings.kms_key_id:
        headers["x-amz-server-side-encryption-aws-kms-key-id"] = settings.kms_key_id
    if settings.tags:
        headers["x-amz-tagging"] = urlencode(settings.tags)
    return headers


def _encoded(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def _decoded_checksum(text: str) -> int:
    try:
        return int.from_bytes(base64.b64decode(text, validate=True), "big")
    except ValueError:
        raise UnreadableAnswerError from None


def _truncated(page: ET.Element) -> bool:
    return required(page, "IsTruncated").strip().lower() == "true"


def _key(page: ET.Element, item: ET.Element) -> str:
    return _decoded(page, required(item, "Key"))


def _decoded(page: ET.Element, text: str) -> str:
    return unquote_plus(text) if page.findtext("EncodingType") == "url" else text


def _time(text: str) -> dt.datetime:
    try:
        return in_utc(dt.datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise UnreadableAnswerError from None


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UnreadableAnswerError from None

"""Builds requests to Azure Blob Storage's REST API."""

from __future__ import annotations

import base64
import email.utils
import ipaddress
import os
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.azure.identity import AzureIdentity
from checkpoint_sidecar.store.base import ObjectInfo
from checkpoint_sidecar.store.http.connections import Answer
from checkpoint_sidecar.store.http.dialect import (
    Message,
    Page,
    PartsDialect,
    StoredPart,
    UnreadableAnswerError,
    escaped,
    in_utc,
    parse_xml,
    required,
    xml_error,
)

_VERSION = "2023-11-03"
_KEYS_PER_PAGE = "5000"


class AzureDialect(PartsDialect):
    """See ``Dialect``. Azure discards uncommitted blocks after a week."""

    def __init__(self, settings: StoreSettings, values: Mapping[str, str]) -> None:
        super().__init__(values)
        ambient = settings.credentials.ambient
        self._identity = AzureIdentity(values, ambient=ambient)
        endpoint = settings.endpoint or (os.environ.get("AZURE_STORAGE_ENDPOINT", "") if ambient else "")
        self.base = f"{_service(endpoint, self._identity.account)}/{parse_url(settings.url).bucket}"

    @property
    def secrets(self) -> Mapping[str, str]:
        return self._identity.secrets

    def signed(self, message: Message, url: str) -> tuple[str, Mapping[str, str]]:
        """See ``Dialect``."""
        headers = {
            "x-ms-version": _VERSION,
            "x-ms-date": email.utils.formatdate(usegmt=True),
            **message.headers,
        }
        if message.body or message.method == "PUT":
            headers["Content-Length"] = str(sum(view.nbytes for view in message.body))
        url, headers = self._identity.signed(message.method, url, headers)
        # The connection sets it by itself.
        headers.pop("Content-Length", None)
        return url, headers

    def put(self, key: str, body: Sequence[memoryview], crc32c: int, *, create: bool) -> Message:  # noqa: ARG002
        """See ``Dialect``. Azure does not verify CRC32C."""
        condition = {"If-None-Match": "*"} if create else {}
        headers = {"x-ms-blob-type": "BlockBlob", **condition}
        return Message("PUT", escaped(key), headers=headers, body=body, success=(201,))

    def get(self, key: str, start: int | None = None, length: int = 0) -> Message:
        """See ``Dialect``."""
        if start is None:
            return Message("GET", escaped(key))
        headers = {"x-ms-range": f"bytes={start}-{start + length - 1}"}
        return Message("GET", escaped(key), headers=headers, success=(206,) if start else (206, 200))

    def head(self, key: str) -> Message:
        """See ``Dialect``."""
        return Message("HEAD", escaped(key))

    def list(self, prefix: str, after: str, token: str) -> Message:  # noqa: ARG002 - Azure lists from the beginning
        """See ``Dialect``."""
        query = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": _KEYS_PER_PAGE}
        return Message("GET", query=query | ({"marker": token} if token else {}))

    def listed(self, answer: Answer) -> Page:
        """See ``Dialect``."""
        page = parse_xml(answer, "EnumerationResults")
        if page.find("Blobs") is None:
            raise UnreadableAnswerError
        return Page([_info(item) for item in page.iter("Blob")], required(page, "NextMarker").strip())

    def delete(self, keys: Sequence[str]) -> Message:
        """See ``Dialect``."""
        (key,) = keys
        return Message("DELETE", escaped(key), headers={"x-ms-delete-snapshots": "include"}, success=(202,))

    def failure(self, message: Message, answer: Answer) -> tuple[str, str]:  # noqa: ARG002
        """See ``Dialect``."""
        code, explanation = xml_error(answer.body)
        return answer.headers.get("x-ms-error-code", code), explanation.partition("\n")[0]

    def part(self, key: str, upload_id: str, index: int, body: Sequence[memoryview], crc32c: int) -> Message:  # noqa: ARG002
        """See ``Dialect``."""
        query = {"comp": "block", "blockid": _block_id(upload_id, index)}
        return Message("PUT", escaped(key), query, body=body, success=(201,))

    def tag(self, answer: Answer) -> str:  # noqa: ARG002 - blocks are known by their ids
        """See ``Dialect``."""
        return ""

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[StoredPart]) -> Message:
        """See ``Dialect``."""
        root = ET.Element("BlockList")
        for index in range(len(parts)):
            ET.SubElement(root, "Latest").text = _block_id(upload_id, index)
        body = [memoryview(ET.tostring(root, encoding="utf-8", xml_declaration=True))]
        return Message("PUT", escaped(key), {"comp": "blocklist"}, body=body, success=(201,))


def _service(endpoint: str, account: str) -> str:
    """Return the base URL of the account; emulators at an IP address have the account in the path."""
    if not endpoint:
        return f"https://{account}.blob.core.windows.net"
    url = urlsplit(endpoint)
    named = url.hostname != "localhost"
    try:
        ipaddress.ip_address(url.hostname or "")
    except ValueError:
        pass
    else:
        named = False
    base = endpoint.rstrip("/")
    return base if named or url.path.strip("/") else f"{base}/{account}"


def _info(item: ET.Element) -> ObjectInfo:
    name = item.find("Name")
    properties = item.find("Properties")
    if name is None or properties is None:
        raise UnreadableAnswerError
    key = name.text or ""
    try:
        modified = in_utc(email.utils.parsedate_to_datetime(required(properties, "Last-Modified")))
        size = int(required(properties, "Content-Length"))
    except (ValueError, OverflowError):
        raise UnreadableAnswerError from None
    return ObjectInfo(unquote(key) if name.get("Encoded") == "true" else key, size, modified)


def _block_id(upload_id: str, index: int) -> str:
    """Return a block's id. Ids of one object have the same length; those of its other uploads differ."""
    return base64.b64encode(f"{upload_id[:16]}{index:08}".encode()).decode()

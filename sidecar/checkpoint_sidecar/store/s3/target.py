"""The target of requests for a bucket: one description for every S3 client. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from checkpoint_sidecar.core.environment import AddressingStyle

DEFAULT_REGION = "us-east-1"

_LABEL_NAMES = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_DOTTED_NAMES = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class S3Target:
    """A bucket at an endpoint.

    Attributes:
        endpoint: Base URL of the service, without the bucket and without a trailing slash.
        virtual_hosted: Whether the bucket is in the host name instead of the path.
    """

    endpoint: str
    bucket: str
    region: str
    virtual_hosted: bool

    @property
    def base(self) -> str:
        """The URL of the bucket."""
        if not self.virtual_hosted:
            return f"{self.endpoint}/{self.bucket}"
        scheme, _, host = self.endpoint.partition("://")
        return f"{scheme}://{self.bucket}.{host}"


def target_of(
    bucket: str, *, style: AddressingStyle, region: str, endpoint: str = "", standard_endpoint: str = ""
) -> S3Target:
    """Decide the addressing style as botocore does, once the endpoint is known.

    Args:
        style: Auto means Path at a configured endpoint, Virtual at the cloud's own.
        endpoint: Endpoint in the settings, the environment or a profile; may be empty.
        standard_endpoint: The cloud's own endpoint; by default that of Amazon's region.
    """
    wanted = style == "Virtual" or (style == "Auto" and not endpoint)
    base = (endpoint or standard_endpoint or standard_endpoint_of(region)).rstrip("/")
    return S3Target(base, bucket, region, wanted and _fits_into_host(bucket, base))


def standard_endpoint_of(region: str) -> str:
    """Return Amazon's own endpoint of a region."""
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _fits_into_host(bucket: str, endpoint: str) -> bool:
    url = urlsplit(endpoint)
    try:
        ipaddress.ip_address(url.hostname or "")
    except ValueError:
        # The certificate for *.<endpoint> does not cover a name with a dot.
        names = _LABEL_NAMES if url.scheme == "https" else _DOTTED_NAMES
        return names.fullmatch(bucket) is not None
    return False

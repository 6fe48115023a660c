"""Who we are in S3, by botocore: its chain of credentials, its configuration, its signatures, whichever client sends.

So a profile, an identity provider (web identity, SSO, instance role) and a configured endpoint or region mean the same
here as in every other AWS tool, and identities are renewed before they expire.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any, cast

import botocore.exceptions
import botocore.httpsession
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials as Identity
from botocore.credentials import ReadOnlyCredentials

from checkpoint_sidecar.core.errors import AccessDeniedError, ConfigurationError
from checkpoint_sidecar.store import settings as secret
from checkpoint_sidecar.store.http_connections import CONNECT_SECONDS
from checkpoint_sidecar.store.settings import StoreSettings

DEFAULT_REGION = "us-east-1"

_EXPIRES_SECONDS = 900
"""Counts for the beginning of a request only."""

NO_CREDENTIALS = (
    "no usable credentials were found: neither in the environment, nor a workload identity, nor an instance role"
)
GIVE_CREDENTIALS = "Give credentials, or run where the platform provides an identity."


@functools.cache
def _descriptions() -> botocore.loaders.Loader:
    """botocore's descriptions of S3, parsed once: most of what a client costs, and every drop-in writer makes some."""
    return botocore.loaders.create_loader()


class S3Identity:
    """Signs for one store. Safe from several threads.

    Args:
        settings: Where the store is.
        values: The credentials given for it; empty for the ambient identity.

    Raises:
        ConfigurationError: botocore's configuration files cannot be used.
        AccessDeniedError: There is no ambient identity.
    """

    def __init__(self, settings: StoreSettings, values: Mapping[str, str]) -> None:
        self._settings = settings
        self._values = values
        self._session = botocore.session.Session()
        self._session.register_component("data_loader", _descriptions())
        try:
            self._credentials = self._find_credentials()
            self.region: str = settings.region or self._session.get_config_variable("region") or DEFAULT_REGION
            self._configured_bundle: str | None = self._session.get_config_variable("ca_bundle")
            self._presigner = self.client(answer_seconds=60)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            cause = type(error).__name__
        else:
            self.endpoint: str = self._presigner.meta.endpoint_url
            return
        # Raised outside the handler: the exception may quote secrets and must not hang on ours.
        raise ConfigurationError(
            "open the store",
            settings.url,
            f"the AWS configuration cannot be used ({cause})",
            "Check endpoint, region, AWS_PROFILE, AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE.",
        )

    def frozen(self) -> ReadOnlyCredentials:
        """The credentials of the moment, renewed if they expire soon.

        Raises:
            BotoCoreError: They could not be renewed.
        """
        return self._credentials.get_frozen_credentials()

    def presigned(self, method: str, parameters: Mapping[str, Any]) -> str:
        """The URL of one request, with its signature in it: a secret for as long as it is valid.

        Args:
            method: botocore's name of the operation.

        Raises:
            BotoCoreError: The credentials could not be renewed.
        """
        url: str = self._presigner.generate_presigned_url(method, Params=dict(parameters), ExpiresIn=_EXPIRES_SECONDS)
        return url

    def client(self, *, answer_seconds: float) -> Any:
        """A botocore client that repeats nothing by itself."""
        settings = self._settings
        config: dict[str, Any] = {
            # By default botocore signs URLs for other endpoints in a way of 2006.
            "signature_version": "s3v4",
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": answer_seconds,
            # Our manifest has checksums of all data; these would break older servers.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "virtual" if settings.virtual_hosted else "path"},
        }
        if not settings.credentials.ambient:
            # Else the client would take the job's own AWS_ENDPOINT_URL for a bucket that it has nothing to do with.
            config["ignore_configured_endpoint_urls"] = True
        return self._session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=settings.endpoint or None,
            verify=self.certificates,
            config=Config(**config),
        )

    @functools.cached_property
    def certificates(self) -> str:
        """The file of authorities that are trusted: those given, those configured, the system's, or botocore's own."""
        if given := self._values.get(secret.CA_CERTIFICATE):
            path = certificate_file(given)
            delete_with(self, path)
            return path
        return self._configured_bundle or certificate_bundle()

    def trust(self) -> ssl.SSLContext:
        """The same authorities, for a connection that botocore does not make.

        Raises:
            ConfigurationError: The file cannot be read, or holds no certificate.
        """
        try:
            return ssl.create_default_context(cafile=self.certificates)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                "open the store",
                self._settings.url,
                f"the certificates cannot be read ({type(error).__name__})",
                "Check ca.crt and AWS_CA_BUNDLE.",
            ) from None

    def _find_credentials(self) -> Identity:
        if not self._settings.credentials.ambient:
            self._session.set_credentials(
                self._values[secret.AWS_ACCESS_KEY_ID],
                self._values[secret.AWS_SECRET_ACCESS_KEY],
                self._values.get(secret.AWS_SESSION_TOKEN),
            )
        found = self._session.get_credentials()
        if found is None:
            raise AccessDeniedError("open the store", self._settings.url, NO_CREDENTIALS, GIVE_CREDENTIALS)
        return cast("Identity", found)


def certificate_bundle() -> str:
    """The system's file of authorities, or botocore's own where the system has none."""
    system = ssl.get_default_verify_paths().cafile
    bundle: str = system or botocore.httpsession.get_cert_path(True)
    return bundle


def certificate_file(pem: str) -> str:
    """A file with these certificates: botocore takes them from files only."""
    descriptor, path = tempfile.mkstemp(suffix=".crt")
    with os.fdopen(descriptor, "w") as file:
        file.write(pem)
    return path


def delete_with(owner: object, path: str) -> None:
    """Delete a file when an object that needs it is gone."""
    weakref.finalize(owner, _remove, path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)

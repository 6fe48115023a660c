"""The identity in S3 and its endpoint: given values alone, or those that botocore finds, as in every AWS tool.

Given values exclude the environment. Otherwise a profile, an identity provider (web identity, SSO, instance role) and a
configured endpoint, region or addressing style mean the same as elsewhere, and identities are renewed before they
expire.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any, cast

import botocore.exceptions
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.credentials import Credentials as Identity
from botocore.credentials import ReadOnlyCredentials

from checkpoint_sidecar.core.environment import AddressingStyle
from checkpoint_sidecar.core.errors import AccessDeniedError, ConfigurationError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store import access as secret
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.http.certificates import certificate_file, delete_with
from checkpoint_sidecar.store.s3.target import DEFAULT_REGION, S3Target, target_of

NO_CREDENTIALS = (
    "no usable credentials were found: neither in the environment, nor a workload identity, nor an instance role"
)
GIVE_CREDENTIALS = "Give credentials, or run where the platform provides an identity."

_STYLES: dict[str, AddressingStyle] = {"path": "Path", "virtual": "Virtual"}

# They log "Found credentials" for each client.
for _name in ("botocore.credentials", "aiobotocore.credentials"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@functools.cache
def _descriptions() -> botocore.loaders.Loader:
    """Return botocore's descriptions of S3, parsed once, because that is most of a client's cost."""
    return botocore.loaders.create_loader()


class S3Identity:
    """The identity and target of one store. Safe from several threads.

    Args:
        settings: Location of the store.
        values: The given credentials; empty for the ambient identity.

    Attributes:
        target: Target of requests.
        ca_file: File of the trusted authorities; empty for the system's.

    Raises:
        ConfigurationError: botocore's configuration files are invalid.
        AccessDeniedError: No ambient identity was found.
    """

    def __init__(self, settings: StoreSettings, values: Mapping[str, str]) -> None:
        self._settings = settings
        if settings.credentials.ambient:
            self._found, self.target, self.ca_file = self._ambient()
            return
        self._found = Identity(
            values[secret.AWS_ACCESS_KEY_ID],
            values[secret.AWS_SECRET_ACCESS_KEY],
            values.get(secret.AWS_SESSION_TOKEN),
        )
        self.target = target_of(
            parse_url(settings.url).bucket,
            style=settings.addressing_style,
            region=settings.region or DEFAULT_REGION,
            endpoint=settings.endpoint,
        )
        self.ca_file = ""
        if certificate := values.get(secret.CA_CERTIFICATE):
            self.ca_file = certificate_file(certificate)
            delete_with(self, self.ca_file)

    def frozen(self) -> ReadOnlyCredentials:
        """Return the present credentials, renewed if they expire soon.

        Raises:
            AccessDeniedError: They could not be renewed.
        """
        try:
            return self._found.get_frozen_credentials()
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            cause = f"the identity could not be renewed ({type(error).__name__})"
        # Raised outside the handler: the exception may quote secrets and must not be the context of ours.
        raise AccessDeniedError("open the store", self._settings.url, cause, GIVE_CREDENTIALS)

    def _ambient(self) -> tuple[Identity, S3Target, str]:
        session = botocore.session.Session()
        session.register_component("data_loader", _descriptions())
        try:
            found = session.get_credentials()
            target = self._configured_target(session)
            ca_file: str = session.get_config_variable("ca_bundle") or ""
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            cause = type(error).__name__
        else:
            if found is None:
                raise AccessDeniedError("open the store", self._settings.url, NO_CREDENTIALS, GIVE_CREDENTIALS)
            return cast("Identity", found), target, ca_file
        raise ConfigurationError(
            "open the store",
            self._settings.url,
            f"the AWS configuration cannot be used ({cause})",
            "Check endpoint, region, AWS_PROFILE, AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE.",
        )

    def _configured_target(self, session: Any) -> S3Target:
        settings = self._settings
        region = settings.region or session.get_config_variable("region") or DEFAULT_REGION
        endpoint = settings.endpoint
        if not endpoint and not session.get_config_variable("ignore_configured_endpoint_urls"):
            endpoint = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
        # Amazon's own endpoints differ by partition, and by the configuration of FIPS and dual stack.
        client = session.create_client("s3", region_name=region, config=Config(ignore_configured_endpoint_urls=True))
        style = settings.addressing_style
        if style == "Auto":
            configured = (session.get_config_variable("s3") or {}).get("addressing_style", "")
            style = _STYLES.get(configured, "Auto")
        return target_of(
            parse_url(settings.url).bucket,
            style=style,
            region=region,
            endpoint=endpoint or "",
            standard_endpoint=client.meta.endpoint_url,
        )

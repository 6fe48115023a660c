"""Opens the store behind an address, with the options that say how to reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from checkpoint_sidecar.store.base import Store

Endpoint = Annotated[str, typer.Option("--endpoint", envvar="CHECKPOINT_ENDPOINT", help="Base URL of the service.")]
Region = Annotated[str, typer.Option("--region", envvar="CHECKPOINT_REGION", help="Region of the bucket.")]
CredentialsFolder = Annotated[
    str,
    typer.Option(
        "--credentials-folder",
        envvar="CHECKPOINT_CREDENTIALS_FOLDER",
        help="Folder with a file for each key of the Secret; by default the environment's own identity.",
    ),
]


def store_at(
    url: str,
    endpoint: str = "",
    region: str = "",
    credentials_folder: str = "",
    *,
    on_page: Callable[[int], None] = lambda _: None,
) -> Store:
    """Open the store at a URL. No request is made.

    Args:
        on_page: See ``store.opening.open_store``.

    Raises:
        ConfigurationError: The URL or the credentials cannot work.
    """
    from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
    from checkpoint_sidecar.store.opening import open_store

    credentials = Credentials.in_folder(Path(credentials_folder)) if credentials_folder else AMBIENT
    settings = StoreSettings(url, endpoint=endpoint, region=region, credentials=credentials)
    return open_store(settings, on_page=on_page)

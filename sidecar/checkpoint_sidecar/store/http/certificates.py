"""Chooses the trusted authorities: those given, else the system's, else botocore's."""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import tempfile
import weakref
from pathlib import Path

from checkpoint_sidecar.core.errors import ConfigurationError


def trust(ca_file: str, url: str) -> ssl.SSLContext:
    """Return a TLS context that trusts a file's authorities, else the system's, else botocore's.

    Clients with the same authorities share one context: it takes almost a megabyte, and an operator has a thousand
    clients.

    Raises:
        ConfigurationError: The file cannot be read, or holds no certificate.
    """
    try:
        certificates = _certificates_in(Path(ca_file).read_bytes()) if ca_file else ""
        return _context(certificates, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "open the store",
            url,
            f"the certificates cannot be read ({type(error).__name__})",
            "Check ca.crt and AWS_CA_BUNDLE, or install the package ca-certificates in the image.",
        ) from None


def _certificates_in(bundle: bytes) -> str:
    """Return a bundle's certificates without the text between them: it may have any encoding, but ``ssl`` reads ASCII.

    Raises:
        ValueError: It has no certificates. An empty result would mean "not given" and trust the system's authorities.
    """
    text = bundle.decode("ascii", errors="ignore")
    if not text.strip():
        raise ValueError
    return text


@functools.lru_cache(maxsize=32)
def _context(certificates: str, *_system: str | None) -> ssl.SSLContext:
    """Return a context for certificates in PEM; if empty, for the system's, which the environment names."""
    if certificates:
        return ssl.create_default_context(cadata=certificates)
    context = ssl.create_default_context()
    if not _system_has_any():
        context.load_verify_locations(cafile=_botocores_own())
    return context


def certificate_bundle() -> str:
    """Return the path of the system's authorities, or of botocore's if the system has none."""
    system = ssl.get_default_verify_paths().cafile
    return system or _botocores_own()


def _system_has_any() -> bool:
    paths = ssl.get_default_verify_paths()
    return paths.cafile is not None or paths.capath is not None


def certificate_file(pem: str) -> str:
    """Return a file with these certificates, because botocore reads them from files only."""
    descriptor, path = tempfile.mkstemp(suffix=".crt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(pem)
    return path


def delete_with(owner: object, path: str) -> None:
    """Delete a file when the object that needs it is garbage-collected."""
    weakref.finalize(owner, _remove, path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _botocores_own() -> str:
    # Imported here: the import is slow, and few machines lack authorities.
    import botocore.httpsession

    path: str = botocore.httpsession.get_cert_path(True)
    return path

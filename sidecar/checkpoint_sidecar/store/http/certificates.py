"""Which authorities are trusted: those given, or the system's, or botocore's own where the system has none."""

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
    """The authorities in a file, or those of the system, or botocore's own where the system has none.

    One context for all who trust the same: it takes most of a megabyte, and an operator has a thousand clients.

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
    """A bundle without the text between its certificates, which may be in any encoding: ``ssl`` reads ASCII only.

    Raises:
        ValueError: Nothing is left of it. Taken for "none given", that would trust the system's authorities.
    """
    text = bundle.decode("ascii", errors="ignore")
    if not text.strip():
        raise ValueError
    return text


@functools.lru_cache(maxsize=32)
def _context(certificates: str, *_system: str | None) -> ssl.SSLContext:
    """A context for certificates in PEM; without any, for the system's, which the environment names."""
    if certificates:
        return ssl.create_default_context(cadata=certificates)
    context = ssl.create_default_context()
    if not _system_has_any():
        context.load_verify_locations(cafile=_botocores_own())
    return context


def certificate_bundle() -> str:
    """The system's file of authorities, or botocore's own where the system has none."""
    system = ssl.get_default_verify_paths().cafile
    return system or _botocores_own()


def _system_has_any() -> bool:
    paths = ssl.get_default_verify_paths()
    return paths.cafile is not None or paths.capath is not None


def certificate_file(pem: str) -> str:
    """A file with these certificates: botocore takes them from files only."""
    descriptor, path = tempfile.mkstemp(suffix=".crt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(pem)
    return path


def delete_with(owner: object, path: str) -> None:
    """Delete a file when an object that needs it is gone."""
    weakref.finalize(owner, _remove, path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _botocores_own() -> str:
    # Imported here: it takes long, and few machines have no authorities.
    import botocore.httpsession

    path: str = botocore.httpsession.get_cert_path(True)
    return path

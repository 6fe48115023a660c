"""Archives for support requests, the same through both doors."""

from __future__ import annotations

import io
import os
import re
import secrets
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from checkpoint_cli.exits import CommandRefusedError, ExitStatus

_SECRET_NAME = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL")
_SECRET_SHAPES = (
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL),
    re.compile(r"(?<=://)[^/@\s\"']+:[^/@\s\"']+(?=@)"),
    re.compile(r"(?<=[?&]sig=)[^&\s\"']+"),
)
"""Ids of AWS keys, JSON web tokens, private keys, and what logs in within URLs."""
REMOVED = "***"


def write_archive(path: Path, files: Iterable[tuple[str, str]], hidden: Mapping[str, str]) -> None:
    """Write a compressed archive of some texts without secrets; it appears under its name only when it is whole.

    Args:
        files: Names and texts.
        hidden: Secrets that this process knows, by name. What looks like a secret is removed as well.

    Raises:
        CommandRefusedError: It cannot be written there (USAGE).
    """
    archive = packed(files, hidden)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(archive)
        os.replace(partial, path)
    except OSError as error:
        cause = error.strerror or str(error)
        hint = "Choose another place with --file."
        raise CommandRefusedError("write the archive", str(path), cause, hint, status=ExitStatus.USAGE) from error
    finally:
        partial.unlink(missing_ok=True)


def packed(files: Iterable[tuple[str, str]], hidden: Mapping[str, str]) -> bytes:
    """Return the bytes of the archive."""
    from checkpoint_sidecar.store.access import redacted

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files:
            content = without_secrets(redacted(text, hidden)).encode()
            member = tarfile.TarInfo(f"bundle/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def without_secrets(text: str) -> str:
    """Return a text without what has the form of a secret."""
    for shape in _SECRET_SHAPES:
        text = shape.sub(REMOVED, text)
    return text


def names_a_secret(name: str) -> bool:
    """Return whether a variable of this name usually holds a secret."""
    return any(word in name.upper() for word in _SECRET_NAME)


def secrets_here(folder: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that this process knows: of its credentials, and of variables named like one."""
    from checkpoint_sidecar.store.access import Credentials

    found = dict(Credentials.in_folder(folder).read()) if folder else {}
    for name, value in environment.items():
        if value and names_a_secret(name) and not Path(value).is_absolute():
            found[name] = value
    return found
